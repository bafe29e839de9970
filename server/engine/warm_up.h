// WarmUp: has an executor do before anybody waits for it what a device does slowly at first: load kernels, and capture
// CUDA graphs, which happens the third time that a pass's shape comes.
//
// For each batch size b the slots 0 to b - 1 become what sessions are in the steady state, with full windows and phases
// (position mod stride) spread evenly, and draw for three strides, with as many steps in flight as the engine keeps.
// At the end all slots are empty and nothing is bound to them: later results are those of an executor that was not
// warmed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/engine/executor.h"

namespace smt {

struct WarmUpOptions {
  std::vector<int32_t> batches;                 // >= 1, warmed in this order; those above the slots are skipped
  absl::Duration budget = absl::Seconds(10);    // looked at between steps, so a step may go beyond it
  std::function<absl::Time()> now = absl::Now;  // fake clock in tests
};

struct WarmUpReport {
  std::vector<int32_t> batches;  // warmed
  absl::Status stopped;          // why no more of them: OK, DEADLINE_EXCEEDED (the budget), or how a draw failed
};

// For an executor whose slots are empty, before the engine takes it. INTERNAL after a fault: the executor is dead.
absl::StatusOr<WarmUpReport> WarmUp(Executor& executor, const WarmUpOptions& options);
// The same on another thread. DEADLINE_EXCEEDED where a call of the executor takes longer than `timeout`: it is then
// never taken apart, and `executor` is empty.
absl::StatusOr<WarmUpReport> WarmUpWithin(absl::Duration timeout, std::unique_ptr<Executor>& executor,
                                          const WarmUpOptions& options);

}  // namespace smt
