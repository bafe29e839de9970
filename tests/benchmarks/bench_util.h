// What the benchmarks share: clocks, medians, resident memory. A figure is the median of several rounds, and what is
// compared alternates within one run so that both sides see the same machine.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

namespace smt::bench {

inline double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Of this process, bytes.
inline double ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  double total = 0, resident = 0;
  statm >> total >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

struct Pair {
  double a = 0, b = 0;
};

// Runs both sides alternately `rounds` times (each returns its figure) and gives the medians.
inline Pair Alternate(int rounds, const std::function<double()>& a, const std::function<double()>& b) {
  std::vector<double> left, right;
  for (int i = 0; i < rounds; ++i) {
    left.push_back(a());
    right.push_back(b());
  }
  return {Median(left), Median(right)};
}

}  // namespace smt::bench
