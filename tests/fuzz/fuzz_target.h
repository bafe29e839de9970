// What parses bytes of others, as functions that take any bytes: run by libFuzzer (scripts/fuzz) and, with seeds and
// mutations of them that are the same each time, by smt_fuzz_test. A new one is a file here and a line in
// fuzz_targets.cc and CMakeLists.txt. No LibTorch.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace smt::fuzz {

struct FuzzTarget {
  std::string_view name;
  void (*run)(std::string_view bytes);  // aborts where a promise is broken
  std::vector<std::string> (*seeds)();  // inputs that get far; those of past bugs are in corpus/<name>
};

std::span<const FuzzTarget> FuzzTargets();

// Cuts an input into the parts that a target wants: numbers first, then strings.
class Input {
 public:
  explicit Input(std::string_view bytes) : left_(bytes) {}
  uint8_t Byte() {
    if (left_.empty()) return 0;
    const auto byte = static_cast<uint8_t>(left_[0]);
    left_.remove_prefix(1);
    return byte;
  }
  size_t Number() {
    const size_t low = Byte();
    return low | static_cast<size_t>(Byte()) << 8;
  }
  // Up to the next zero byte, which is left out.
  std::string_view Part() {
    const size_t zero = left_.find('\0');
    const std::string_view part = left_.substr(0, zero);
    left_.remove_prefix(zero == std::string_view::npos ? left_.size() : zero + 1);
    return part;
  }
  std::string_view Rest() const { return left_; }

 private:
  std::string_view left_;
};

}  // namespace smt::fuzz

// A promise that holds for every input.
#define FUZZ_CHECK(condition)                                                      \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                \
    }                                                                              \
  } while (false)
