#include "tests/benchmarks/slot_churn.h"

#include <utility>

#include "model/base/status_macros.h"
#include "tests/benchmarks/bench_util.h"

namespace smt::bench {

SlotChurn::SlotChurn(Executor& executor, const std::vector<int32_t>& slots, double per_second)
    : executor_(executor), period_(1 / per_second), due_(Seconds()) {
  for (const int32_t slot : slots) {
    lanes_.push_back(
        {.slot = slot, .buffer = std::make_unique<StateBuffer>(static_cast<size_t>(executor.info().state_bytes))});
  }
}

absl::Status SlotChurn::Advance(Lane& lane, bool wait) {
  if (lane.phase == Phase::kIdle) return absl::OkStatus();
  bool done = false;
  do {
    ASSIGN_OR_RETURN(done, executor_.Poll(lane.ticket, wait, nullptr));
  } while (wait && !done);
  if (!done) return absl::OkStatus();
  if (lane.phase == Phase::kSaving) {
    lane.ticket = executor_.Load(lane.slot, std::as_const(*lane.buffer).span());
    lane.phase = Phase::kLoading;
  } else {
    lane.phase = Phase::kIdle;
    ++done_;
  }
  return absl::OkStatus();
}

absl::Status SlotChurn::Tick() {
  const double now = Seconds();
  for (Lane& lane : lanes_) {
    RETURN_IF_ERROR(Advance(lane, false));
    if (lane.phase != Phase::kIdle || due_ > now) continue;
    lane.ticket = executor_.Save(lane.slot, lane.buffer->span());
    lane.phase = Phase::kSaving;
    due_ += period_;
  }
  return absl::OkStatus();
}

absl::Status SlotChurn::Finish() {
  for (Lane& lane : lanes_) {
    while (lane.phase != Phase::kIdle) RETURN_IF_ERROR(Advance(lane, true));
  }
  return absl::OkStatus();
}

}  // namespace smt::bench
