// Runners and texts that the benchmarks compare on.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <random>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "model/runners.h"
#include "tests/benchmarks/model_bench.h"

namespace smt::bench {

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::cerr << "smt_bench: " << value.status().message() << "\n";
    std::exit(1);
  }
  return *std::move(value);
}

inline RunnerOptions Runner(const ModelBenchOptions& options, int slots) {
  RunnerOptions runner;
  runner.model_dir = options.model_dir;
  runner.device = options.device;
  runner.slots = slots;
  runner.deterministic = true;
  return runner;
}

// A text's worth of ids that every side of a comparison uses.
inline std::vector<int32_t> Ids(int64_t vocabulary, int count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(vocabulary));
  return ids;
}

}  // namespace smt::bench
