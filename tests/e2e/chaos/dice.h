// Random choices that are the same for the same seed wherever they are made.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <random>

#include "absl/time/time.h"

namespace smt::testing {

class Dice {
 public:
  Dice(uint64_t seed, std::initializer_list<uint64_t> stream) {
    for (const uint64_t part : stream) seed = Mix(seed ^ Mix(part + 1));
    engine_.seed(seed);
  }
  // low..high, both included.
  int64_t Between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  double Fraction() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  bool Chance(double probability) { return Fraction() < probability; }
  absl::Duration Between(absl::Duration low, absl::Duration high) { return low + Fraction() * (high - low); }
  // Exponential: the time to the next of events that come at random.
  absl::Duration Waiting(absl::Duration mean) { return -std::log(1 - Fraction()) * mean; }
  template <typename List>
  const auto& OneOf(const List& list) {
    return *(std::begin(list) + Between(0, static_cast<int64_t>(std::size(list)) - 1));
  }

 private:
  static uint64_t Mix(uint64_t x) {  // splitmix64
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }
  std::mt19937_64 engine_;
};

}  // namespace smt::testing
