// Runners that the benchmarks compare.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <utility>

#include "absl/status/statusor.h"
#include "model/runners.h"
#include "tests/benchmarks/model_bench.h"
#include "tests/benchmarks/random_ids.h"

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
  runner.dtype = options.dtype;
  runner.slots = slots;
  runner.deterministic = true;
  return runner;
}

}  // namespace smt::bench
