// Lines of the memory path: mamba_step, ingest, ingest_tokens.
#include <algorithm>
#include <memory>

#include "model/base/status_macros.h"
#include "server/engine/engine.h"
#include "tests/benchmarks/bench_util.h"
#include "tests/benchmarks/executor_drive.h"
#include "tests/benchmarks/gpu_executor.h"
#include "tests/benchmarks/gpu_lines.h"
#include "tests/benchmarks/random_ids.h"

namespace smt::bench {

using nlohmann::json;

namespace {

// Seconds of a write of each of `slots` sessions: one stride absorbed.
double WriteSeconds(SlotRunner& runner, int slots, int repeats) {
  const std::vector<int32_t> ids = Ids(runner.config().vocab_size, runner.config().stride, 5);
  std::vector<SlotRunner::Chunk> chunks;
  for (int slot = 0; slot < slots; ++slot) {
    runner.Reset(slot);
    chunks.push_back({slot, ids});
  }
  std::vector<std::byte> state(runner.layout().bytes());
  for (int i = 0; i < 3; ++i) runner.Ingest(chunks);  // warms up
  runner.Save(0, state);                              // waits for the device
  const double start = Seconds();
  for (int i = 0; i < repeats; ++i) runner.Ingest(chunks);
  runner.Save(0, state);
  return (Seconds() - start) / repeats;
}

struct Prompts {
  int sessions = 1;
  std::vector<int32_t> ids;  // of each
};

// tok_s of reading the prompts from empty, at most `ids_a_step` of each session in a step.
absl::StatusOr<double> ReadRate(Executor& executor, const Prompts& prompts, size_t ids_a_step) {
  ExecutorDrive drive(executor);
  for (int slot = 0; slot < prompts.sessions; ++slot) executor.Reset(slot);
  const double start = Seconds();
  for (size_t at = 0; at < prompts.ids.size(); at += ids_a_step) {
    const auto ids = std::span(prompts.ids).subspan(at, std::min(ids_a_step, prompts.ids.size() - at));
    std::vector<PlanItem> plan;
    for (int slot = 0; slot < prompts.sessions; ++slot) plan.push_back({.slot = slot, .ids = ids});
    RETURN_IF_ERROR(drive.Finish(std::move(plan)));
  }
  // A step that draws nothing may be done before the device is; a state that is saved is not.
  std::vector<std::byte> state(static_cast<size_t>(executor.info().state_bytes));
  RETURN_IF_ERROR(drive.Wait(executor.Save(0, state)));
  return static_cast<double>(prompts.ids.size()) * prompts.sessions / (Seconds() - start);
}

absl::StatusOr<json> ReadPrompts(const GpuBenchOptions& options, Executor& executor, int sessions) {
  const int64_t stride = executor.info().stride;
  const Prompts prompts = {
      .sessions = sessions,
      .ids = Ids(executor.info().vocab_size, options.Scale(sessions == 1 ? 1024 : 256, 8) * stride, 6)};
  const int64_t budget = Engine::Options().ingest_tokens_per_step_idle;
  const auto share = static_cast<size_t>(std::max(budget / sessions / stride * stride, stride));
  const auto round = [&]() -> absl::StatusOr<json> {
    ASSIGN_OR_RETURN(const double whole, ReadRate(executor, prompts, prompts.ids.size()));
    ASSIGN_OR_RETURN(const double parts, ReadRate(executor, prompts, share));
    return json{{"tok_s", whole}, {"engine_tok_s", parts}};
  };
  RETURN_IF_ERROR(round().status());  // warms up
  return MedianFigures(options.rounds, round);
}

json ReadPromptsLine(const GpuBenchOptions& options, PoolScope scope, const std::vector<int>& batches) {
  RunnerOptions runner = GpuRunner(options, 1);
  runner.pool_scope = scope;
  return OverBatches(
      runner, batches, [](int batch) { return batch; },
      [&](Executor& executor, int batch) { return ReadPrompts(options, executor, batch); });
}

}  // namespace

json MambaStepLine(const GpuBenchOptions& options) {
  const std::vector<int> batches = options.quick ? std::vector<int>{1, 4} : std::vector<int>{1, 4, 16, 64, 256};
  RunnerOptions runner_options = GpuRunner(options, batches.back());
  if (options.device != "cpu") runner_options.impl = RunnerOptions::Impl::kCudaKernels;
  json figures;
  const absl::StatusOr<std::unique_ptr<SlotRunner>> runner = NewSlotRunner(runner_options);
  for (const int batch : batches) {
    figures[std::to_string(batch)] = FiguresOf(batch, [&]() -> absl::StatusOr<json> {
      RETURN_IF_ERROR(runner.status());
      return MedianFigures(options.rounds, [&]() -> absl::StatusOr<json> {
        return json{{"ms", WriteSeconds(**runner, batch, options.Scale(50, 2)) * 1e3}};
      });
    });
  }
  return figures;
}

json IngestLine(const GpuBenchOptions& options) {
  return ReadPromptsLine(options, PoolScope::kWindow, {1, options.Scale(64, 4)});
}

json IngestTokensLine(const GpuBenchOptions& options) { return ReadPromptsLine(options, PoolScope::kTokens, {1}); }

}  // namespace smt::bench
