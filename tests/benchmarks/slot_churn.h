// Saves and loads sessions beside what else an executor does, a given number of times a second, as sessions that come
// and go would.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "server/engine/executor.h"
#include "server/session/state_buffer.h"

namespace smt::bench {

class SlotChurn {
 public:
  // On slots of its own: nobody else uses them meanwhile, and they hold sessions. More than one transfer may be under
  // way, one a slot; where they are slower than asked for, it falls behind.
  SlotChurn(Executor& executor, const std::vector<int32_t>& slots, double per_second);
  ~SlotChurn() { Finish().IgnoreError(); }
  SlotChurn(const SlotChurn&) = delete;
  SlotChurn& operator=(const SlotChurn&) = delete;

  // Call often: begins what is due and goes on with what is done. Never waits.
  absl::Status Tick();
  // Waits for what is under way; the number of save-and-loads since the construction.
  absl::Status Finish();
  int64_t done() const { return done_; }

 private:
  enum class Phase { kIdle, kSaving, kLoading };
  struct Lane {
    int32_t slot = 0;
    std::unique_ptr<StateBuffer> buffer;
    Phase phase = Phase::kIdle;
    Ticket ticket = 0;
  };
  // Takes note of a transfer that is done and begins the one that follows it.
  absl::Status Advance(Lane& lane, bool wait);

  Executor& executor_;
  const double period_;  // seconds
  double due_;           // the next save
  std::vector<Lane> lanes_;
  int64_t done_ = 0;
};

}  // namespace smt::bench
