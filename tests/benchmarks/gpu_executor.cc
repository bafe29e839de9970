#include "tests/benchmarks/gpu_executor.h"

#include <algorithm>
#include <exception>
#include <iostream>
#include <string>
#include <utility>

#include "model/base/status_macros.h"
#include "server/engine/torch_executor.h"
#include "tests/benchmarks/bench_util.h"

namespace smt::bench {

using nlohmann::json;

RunnerOptions GpuRunner(const GpuBenchOptions& options, int slots) {
  RunnerOptions runner;
  runner.model_dir = options.model_dir;
  runner.device = options.device;
  runner.dtype = options.dtype;
  runner.slots = slots;
  runner.window_policy = WindowPolicy::kHop;
  return runner;
}

std::vector<int> WholeTokenBatches(const GpuBenchOptions& options) {
  if (!options.batches.empty()) return options.batches;
  return options.quick ? std::vector<int>{1, 4} : std::vector<int>{1, 64, 256, 1024};
}

absl::StatusOr<int64_t> FullLength(const GpuBenchOptions& options) {
  ASSIGN_OR_RETURN(const StrideHybridConfig config, StrideHybridConfig::Load(options.model_dir));
  return config.stride * config.n_ssm_outputs + config.m_input_tokens;
}

json Skipped(const absl::Status& status) {
  std::cerr << "  skipped: " << status << "\n";
  return {{"skipped", std::string(status.message())}};
}

json FiguresOf(int batch, const std::function<absl::StatusOr<json>()>& measure) {
  try {
    absl::StatusOr<json> figures = measure();
    if (!figures.ok()) return Skipped(figures.status());
    std::cerr << "  " << batch << ": " << figures->dump() << "\n";
    return *std::move(figures);
  } catch (const std::exception& error) {
    return Skipped(absl::InternalError(error.what()));
  }
}

json OverBatches(RunnerOptions options, std::vector<int> batches, const std::function<int(int batch)>& slots_of,
                 const std::function<absl::StatusOr<json>(Executor& executor, int batch)>& measure) {
  json figures;
  std::sort(batches.begin(), batches.end());
  std::unique_ptr<Executor> executor;
  while (!batches.empty() && executor == nullptr) {
    options.slots = slots_of(batches.back());
    absl::StatusOr<std::unique_ptr<Executor>> made = NewTorchExecutor(options);
    if (made.ok()) {
      executor = *std::move(made);
    } else {
      figures[std::to_string(batches.back())] = Skipped(made.status());
      batches.pop_back();
    }
  }
  for (const int batch : batches) {
    figures[std::to_string(batch)] = FiguresOf(batch, [&] { return measure(*executor, batch); });
  }
  return figures;
}

absl::StatusOr<json> MedianFigures(int rounds, const std::function<absl::StatusOr<json>()>& measure) {
  std::vector<json> all;
  for (int i = 0; i < rounds; ++i) {
    ASSIGN_OR_RETURN(json figures, measure());
    all.push_back(std::move(figures));
  }
  json medians = all.front();
  for (auto& [name, value] : medians.items()) {
    if (!value.is_number()) continue;
    std::vector<double> values;
    for (const json& figures : all) values.push_back(figures.at(name).get<double>());
    value = Median(values);
  }
  return medians;
}

}  // namespace smt::bench
