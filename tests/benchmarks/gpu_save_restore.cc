// save_restore: what it costs to save and load a session, alone and beside others that draw.
#include <algorithm>
#include <memory>
#include <utility>

#include "model/base/status_macros.h"
#include "server/session/state_buffer.h"
#include "tests/benchmarks/bench_util.h"
#include "tests/benchmarks/executor_drive.h"
#include "tests/benchmarks/gpu_executor.h"
#include "tests/benchmarks/gpu_lines.h"
#include "tests/benchmarks/slot_churn.h"

namespace smt::bench {

using nlohmann::json;

namespace {

constexpr int kChurned = 16;  // slots that are saved and loaded beside those that draw
constexpr double kTimesASecond = 100;

absl::StatusOr<json> Alone(const GpuBenchOptions& options, Executor& executor) {
  ExecutorDrive drive(executor);
  ASSIGN_OR_RETURN(const int64_t length, FullLength(options));
  RETURN_IF_ERROR(drive.Fill(SlotRange(0, 1), length));
  StateBuffer state(static_cast<size_t>(executor.info().state_bytes));
  std::vector<double> times;
  for (int i = 0; i < options.rounds * options.Scale(40, 2); ++i) {
    const double start = Seconds();
    RETURN_IF_ERROR(drive.Wait(executor.Save(0, state.span())));
    RETURN_IF_ERROR(drive.Wait(executor.Load(0, std::as_const(state).span())));
    times.push_back(Seconds() - start);
  }
  return json{{"ms", Median(times) * 1e3}, {"state_bytes", executor.info().state_bytes}};
}

absl::StatusOr<json> BesideDrawing(const GpuBenchOptions& options, Executor& executor, int batch) {
  const int64_t stride = executor.info().stride, steps = options.Scale(16, 2) * stride;
  ExecutorDrive drive(executor);
  const std::vector<int32_t> drawing = SlotRange(0, batch), churned = SlotRange(batch, kChurned);
  ASSIGN_OR_RETURN(const int64_t length, FullLength(options));
  RETURN_IF_ERROR(drive.Fill(SlotRange(0, batch + kChurned), length));
  RETURN_IF_ERROR(drive.Draw(drawing, 1, options.Scale(4, 1) * stride).status());
  const auto round = [&]() -> absl::StatusOr<json> {
    ASSIGN_OR_RETURN(const Stretch alone, drive.Draw(drawing, stride, steps));
    SlotChurn churn(executor, churned, kTimesASecond);
    const double start = Seconds();
    ASSIGN_OR_RETURN(const Stretch beside, drive.Draw(drawing, stride, steps, [&] { return churn.Tick(); }));
    const double churning = Seconds() - start;
    const int64_t done = churn.done();
    RETURN_IF_ERROR(churn.Finish());
    return json{{"tok_s", static_cast<double>(beside.tokens) / beside.seconds},
                {"tok_s_alone", static_cast<double>(alone.tokens) / alone.seconds},
                {"save_restores_s", static_cast<double>(done) / churning}};
  };
  ASSIGN_OR_RETURN(json figures, MedianFigures(options.rounds, round));
  figures["decode_rate_ratio"] = figures["tok_s"].get<double>() / figures["tok_s_alone"].get<double>();
  return figures;
}

}  // namespace

json SaveRestoreLine(const GpuBenchOptions& options) {
  const std::vector<int> drawing = options.quick ? std::vector<int>{4} : std::vector<int>{64, 256};
  json figures = OverBatches(
      GpuRunner(options, 1), {1}, [](int) { return 1; },
      [&](Executor& executor, int) { return Alone(options, executor); });
  figures.update(OverBatches(
      GpuRunner(options, 1), drawing, [](int batch) { return batch + kChurned; },
      [&](Executor& executor, int batch) { return BesideDrawing(options, executor, batch); }));
  return figures;
}

}  // namespace smt::bench
