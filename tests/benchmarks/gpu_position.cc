// late_over_early: what a token costs at position 1,000,000. Nobody needs to draw a million ids to get there: a state's
// size and cost do not depend on how many came, so the late sessions are the early ones' saved states with another
// position in them (model/state_layout.h), a whole number of strides further on, loaded like any other.
#include <memory>
#include <numeric>
#include <utility>

#include "model/base/status_macros.h"
#include "model/config.h"
#include "model/state_layout.h"
#include "server/session/state_buffer.h"
#include "tests/benchmarks/bench_util.h"
#include "tests/benchmarks/executor_drive.h"
#include "tests/benchmarks/gpu_executor.h"
#include "tests/benchmarks/gpu_lines.h"

namespace smt::bench {

using nlohmann::json;

namespace {

constexpr int64_t kEarly = 1'000, kLate = 1'000'000;

// Sessions that begin at the same place in every round.
class SavedSessions {
 public:
  SavedSessions(Executor& executor, std::vector<int32_t> slots) : executor_(executor), slots_(std::move(slots)) {}

  // Saves what is in `from`, `shift` positions further on.
  absl::Status Take(std::span<const int32_t> from, const StateLayout& layout, int64_t shift) {
    ExecutorDrive drive(executor_);
    for (const int32_t slot : from) {
      auto& state = states_.emplace_back(std::make_unique<StateBuffer>(layout.bytes()));
      RETURN_IF_ERROR(drive.Wait(executor_.Save(slot, state->span())));
      layout.position(state->span()) += shift;
    }
    return absl::OkStatus();
  }
  // Seconds between successive ids, on average.
  absl::StatusOr<double> InterToken(int64_t strides) {
    ExecutorDrive drive(executor_);
    const int64_t stride = executor_.info().stride;
    for (size_t i = 0; i < slots_.size(); ++i) {
      RETURN_IF_ERROR(drive.Wait(executor_.Load(slots_[i], std::as_const(*states_[i]).span())));
    }
    RETURN_IF_ERROR(drive.Begin(slots_));
    ASSIGN_OR_RETURN(const Stretch stretch, drive.Draw(slots_, 2 * stride, strides * stride));
    return std::accumulate(stretch.intervals.begin(), stretch.intervals.end(), 0.0) /
           static_cast<double>(stretch.intervals.size());
  }

 private:
  Executor& executor_;
  const std::vector<int32_t> slots_;
  std::vector<std::unique_ptr<StateBuffer>> states_;
};

absl::StatusOr<json> LateOverEarly(const GpuBenchOptions& options, Executor& executor, int batch) {
  ASSIGN_OR_RETURN(const StrideHybridConfig config, StrideHybridConfig::Load(options.model_dir));
  const StateLayout layout(config);
  const int64_t shift = (kLate - kEarly + config.stride - 1) / config.stride * config.stride;
  ExecutorDrive drive(executor);
  SavedSessions early(executor, SlotRange(0, batch)), late(executor, SlotRange(batch, batch));
  RETURN_IF_ERROR(drive.Fill(SlotRange(0, batch), kEarly));
  RETURN_IF_ERROR(early.Take(SlotRange(0, batch), layout, 0));
  RETURN_IF_ERROR(late.Take(SlotRange(0, batch), layout, shift));
  const int64_t strides = options.Scale(batch <= 16 ? 16 : 8, 1);
  const auto round = [&]() -> absl::StatusOr<json> {
    ASSIGN_OR_RETURN(const double late_s, late.InterToken(strides));
    ASSIGN_OR_RETURN(const double early_s, early.InterToken(strides));
    return json{{"late_ms", late_s * 1e3}, {"early_ms", early_s * 1e3}};
  };
  RETURN_IF_ERROR(round().status());  // warms up
  ASSIGN_OR_RETURN(json figures, MedianFigures(options.rounds, round));
  figures["ratio"] = figures["late_ms"].get<double>() / figures["early_ms"].get<double>();
  figures["early_position"] = kEarly;
  figures["late_position"] = kEarly + shift;
  return figures;
}

}  // namespace

json LateOverEarlyLine(const GpuBenchOptions& options) {
  return OverBatches(
      GpuRunner(options, 1), {1, options.Scale(64, 4)}, [](int batch) { return 2 * batch; },
      [&](Executor& executor, int batch) { return LateOverEarly(options, executor, batch); });
}

}  // namespace smt::bench
