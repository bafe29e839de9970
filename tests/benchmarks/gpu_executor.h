// What the lines of `smt_bench gpu` run on.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "model/runners.h"
#include "nlohmann/json.hpp"
#include "server/engine/executor.h"
#include "tests/benchmarks/gpu_options.h"

namespace smt::bench {

// Options of a runner under hop, with the model's own pool scope.
RunnerOptions GpuRunner(const GpuBenchOptions& options, int slots);

// Sessions that step together where whole tokens are measured.
std::vector<int> WholeTokenBatches(const GpuBenchOptions& options);
// Ids after which a session's memory is full.
absl::StatusOr<int64_t> FullLength(const GpuBenchOptions& options);

// {"skipped": the reason}, told on stderr too.
nlohmann::json Skipped(const absl::Status& status);
// `measure`'s figures, told on stderr too; those of Skipped where it fails or throws.
nlohmann::json FiguresOf(int batch, const std::function<absl::StatusOr<nlohmann::json>()>& measure);

// {batch: figures}, from the smallest to the largest, all on one executor of slots_of(the largest that fits) slots.
// Batches that do not fit, or fail, are Skipped.
nlohmann::json OverBatches(RunnerOptions options, std::vector<int> batches,
                           const std::function<int(int batch)>& slots_of,
                           const std::function<absl::StatusOr<nlohmann::json>(Executor& executor, int batch)>& measure);

// The median of each number that `measure` gives; other values are those of the first round.
absl::StatusOr<nlohmann::json> MedianFigures(int rounds,
                                             const std::function<absl::StatusOr<nlohmann::json>()>& measure);

}  // namespace smt::bench
