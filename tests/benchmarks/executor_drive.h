// Drives an Executor as the engine does: max_in_flight steps outstanding, each drawing once more in its slots. What an
// executor defers is asked for again by the next step, which has the same item.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/engine/executor.h"

namespace smt::bench {

// What a stretch of steps gave. Times are of the results' arrival, in seconds.
struct Stretch {
  int64_t tokens = 0;    // ids drawn
  int64_t deferred = 0;  // items
  double seconds = 0;
  double longest_gap = 0;         // the longest of `steps`, from the last step that did not count on
  std::vector<double> steps;      // between the results of two successive steps
  std::vector<double> intervals;  // between two successive ids of one slot
};

class ExecutorDrive {
 public:
  using Slots = std::span<const int32_t>;

  explicit ExecutorDrive(Executor& executor) : executor_(executor) {}

  // Gives each slot, emptied, `length` + slot % stride random ids, or `length` + extra(slot), and draws the first id.
  absl::Status Fill(Slots slots, int64_t length, const std::function<int64_t(int32_t slot)>& extra = nullptr);
  // Binds sampling parameters and draws at the present position: after a Load, for example.
  absl::Status Begin(Slots slots);
  // Submits `plan` and waits; what is deferred again, until nothing is.
  absl::Status Finish(std::vector<PlanItem> plan);
  absl::Status Wait(Ticket ticket);  // of a Load, Save or Copy

  // `warm` steps (>= 1) that do not count and `steps` that do. Step i draws in slots_at(i), which have an id each that
  // was drawn and not yet appended. `between` is called once a step.
  absl::StatusOr<Stretch> Draw(const std::function<Slots(int64_t step)>& slots_at, int64_t warm, int64_t steps,
                               const std::function<absl::Status()>& between = nullptr);
  absl::StatusOr<Stretch> Draw(Slots slots, int64_t warm, int64_t steps,
                               const std::function<absl::Status()>& between = nullptr);

 private:
  void BindSampling(Slots slots);
  Executor& executor_;
};

// 0, 1, … count - 1, from `first` on.
std::vector<int32_t> SlotRange(int32_t first, int32_t count);

}  // namespace smt::bench
