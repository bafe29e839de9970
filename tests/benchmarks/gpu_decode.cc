// Lines of whole tokens: hop_whole, slide, random_phases, resident.
#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "model/base/status_macros.h"
#include "tests/benchmarks/executor_drive.h"
#include "tests/benchmarks/gpu_executor.h"
#include "tests/benchmarks/gpu_lines.h"

namespace smt::bench {

using nlohmann::json;

namespace {

constexpr int kMostSlide = 256;  // sessions: slide recomputes whole windows

// Fewer where steps are long, so that a round takes about a second.
int64_t Strides(const GpuBenchOptions& options, int batch) {
  return options.Scale(batch <= 16 ? 32 : batch <= 64 ? 16 : batch <= 256 ? 8 : 4, 1);
}

// NAME_ms, their mean, NAME_ms_p50, NAME_ms_p99 and NAME_p99_over_mean.
void AddTimes(const std::string& name, std::vector<double> times, json* figures) {
  std::sort(times.begin(), times.end());
  const double mean = std::accumulate(times.begin(), times.end(), 0.0) / static_cast<double>(times.size());
  const double p99 = times[times.size() * 99 / 100];
  figures->update({{name + "_ms", mean * 1e3},
                   {name + "_ms_p50", times[times.size() / 2] * 1e3},
                   {name + "_ms_p99", p99 * 1e3},
                   {name + "_p99_over_mean", p99 / mean}});
}

json FiguresOfStretch(Stretch stretch) {
  json figures = {
      {"tok_s", static_cast<double>(stretch.tokens) / stretch.seconds},
      {"deferred", static_cast<double>(stretch.deferred) / static_cast<double>(stretch.tokens + stretch.deferred)}};
  AddTimes("token", std::move(stretch.intervals), &figures);
  AddTimes("step", std::move(stretch.steps), &figures);
  return figures;
}

enum class Phases { kEven, kRandom };

absl::StatusOr<json> WholeTokens(const GpuBenchOptions& options, Executor& executor, int batch, int64_t strides,
                                 Phases phases) {
  const int64_t stride = executor.info().stride;
  ExecutorDrive drive(executor);
  const std::vector<int32_t> slots = SlotRange(0, batch);
  ASSIGN_OR_RETURN(const int64_t length, FullLength(options));
  std::mt19937 random(1);
  const auto any = [&](int32_t) { return static_cast<int64_t>(random() % static_cast<uint32_t>(stride)); };
  RETURN_IF_ERROR(phases == Phases::kRandom ? drive.Fill(slots, length, any) : drive.Fill(slots, length));
  // Every shape of a step has come often before it counts: some are captured as graphs at their third coming.
  RETURN_IF_ERROR(drive.Draw(slots, 1, options.Scale(4, 1) * stride).status());
  return MedianFigures(options.rounds, [&]() -> absl::StatusOr<json> {
    ASSIGN_OR_RETURN(Stretch stretch, drive.Draw(slots, stride, strides * stride));
    return FiguresOfStretch(std::move(stretch));
  });
}

json WholeTokensLine(const GpuBenchOptions& options, const RunnerOptions& runner, const std::vector<int>& batches,
                     int64_t divisor, Phases phases) {
  return OverBatches(
      runner, batches, [](int batch) { return batch; },
      [&](Executor& executor, int batch) {
        return WholeTokens(options, executor, batch, std::max<int64_t>(Strides(options, batch) / divisor, 1), phases);
      });
}

struct Rotation {
  int resident, active, ids_a_turn;
};

absl::StatusOr<json> RoundRobin(const GpuBenchOptions& options, Executor& executor, const Rotation& rotation) {
  ExecutorDrive drive(executor);
  const std::vector<int32_t> slots = SlotRange(0, rotation.resident);
  const int64_t groups = rotation.resident / rotation.active;
  const int64_t cycle = groups * rotation.ids_a_turn;  // steps
  ASSIGN_OR_RETURN(const int64_t length, FullLength(options));
  RETURN_IF_ERROR(drive.Fill(slots, length));
  const auto active = [&](int64_t step) {
    const auto group = static_cast<size_t>(step / rotation.ids_a_turn % groups);
    const auto size = static_cast<size_t>(rotation.active);
    return ExecutorDrive::Slots(slots).subspan(group * size, size);
  };
  double longest = 0;
  const auto round = [&]() -> absl::StatusOr<json> {
    ASSIGN_OR_RETURN(const Stretch stretch, drive.Draw(active, cycle, 2 * cycle));
    longest = std::max(longest, stretch.longest_gap);
    return json{{"tok_s", static_cast<double>(stretch.tokens) / stretch.seconds},
                {"mean_ms", stretch.seconds / static_cast<double>(2 * cycle) * 1e3}};
  };
  ASSIGN_OR_RETURN(json figures, MedianFigures(options.rounds, round));
  figures["longest_stall_ms"] = longest * 1e3;
  figures["resident"] = rotation.resident;
  figures["ids_a_turn"] = rotation.ids_a_turn;
  return figures;
}

}  // namespace

json HopWholeLine(const GpuBenchOptions& options) {
  return WholeTokensLine(options, GpuRunner(options, 1), WholeTokenBatches(options), 1, Phases::kEven);
}

json RandomPhasesLine(const GpuBenchOptions& options) {
  std::vector<int> batches = WholeTokenBatches(options);
  std::erase_if(batches, [](int batch) { return batch == 1; });
  return WholeTokensLine(options, GpuRunner(options, 1), batches, 1, Phases::kRandom);
}

json SlideLine(const GpuBenchOptions& options) {
  RunnerOptions runner = GpuRunner(options, 1);
  runner.window_policy = WindowPolicy::kSlide;
  std::vector<int> batches = WholeTokenBatches(options);
  std::erase_if(batches, [](int batch) { return batch > kMostSlide; });
  return WholeTokensLine(options, runner, batches, 2, Phases::kEven);
}

json ResidentLine(const GpuBenchOptions& options) {
  const Rotation rotation = {.resident = options.Scale(4096, 32), .active = options.Scale(256, 8), .ids_a_turn = 4};
  return OverBatches(
      GpuRunner(options, 1), {rotation.active}, [&](int) { return rotation.resident; },
      [&](Executor& executor, int) { return RoundRobin(options, executor, rotation); });
}

}  // namespace smt::bench
