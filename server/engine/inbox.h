// The queue into the engine thread: new requests, cancellations, restored states. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/engine/engine.h"
#include "server/engine/mutex.h"
#include "server/engine/request.h"

namespace smt {

struct Command {
  enum class Kind { kSubmit, kCancel, kDiscard, kDiscardAll, kSaveState, kWake, kRestored, kDrain };
  Kind kind = Kind::kWake;
  RequestHandle handle = 0;                                  // kCancel, kRestored
  FinishReason reason = FinishReason::kCancelled;            // kCancel
  std::string key = {};                                      // kDiscard, kSaveState
  std::unique_ptr<Request> request = nullptr;                // kSubmit
  absl::StatusOr<RestoredState> restored = RestoredState();  // kRestored
  Engine::StateDone done = nullptr;                          // kSaveState
};

class Inbox {
 public:
  explicit Inbox(int32_t max_queue) : max_queue_(max_queue) {}

  // Refuses with UNAVAILABLE after Close and when max_queue requests wait, with FAILED_PRECONDITION when the request's
  // session has one already.
  absl::StatusOr<RequestHandle> Submit(std::unique_ptr<Request> request) ABSL_LOCKS_EXCLUDED(mu_);
  void Push(Command command) ABSL_LOCKS_EXCLUDED(mu_);
  // False, the command being as it was, after Close. What is taken the engine thread sees before it ends.
  [[nodiscard]] bool PushUnlessClosed(Command* command) ABSL_LOCKS_EXCLUDED(mu_);
  // Submit answers `why` from now on; the first call's reason stays.
  void Close(absl::Status why) ABSL_LOCKS_EXCLUDED(mu_);
  // What Close was given; OK before.
  absl::Status closed() const ABSL_LOCKS_EXCLUDED(mu_);

  // Engine thread: swaps out all commands.
  void TakeAll(std::vector<Command>* commands) ABSL_LOCKS_EXCLUDED(mu_);
  // Engine thread: returns when there is a command or at `deadline`.
  void Wait(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  // Engine thread: a request got a slot or ended before that.
  void LeftQueue() { waiting_.fetch_sub(1, std::memory_order_relaxed); }
  // Engine thread: the session may have its next request.
  void ReleaseKey(const std::string& key) ABSL_LOCKS_EXCLUDED(mu_);

  int64_t waiting() const { return waiting_.load(std::memory_order_relaxed); }

 private:
  void Add(Command command) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const int32_t max_queue_;
  std::atomic<int64_t> waiting_{0};
  std::atomic<bool> filled_{false};  // saves TakeAll the lock
  mutable PlainMutex mu_;
  PlainCondition arrived_;
  std::vector<Command> commands_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_set<std::string> keys_ ABSL_GUARDED_BY(mu_);  // sessions with a request
  absl::Status closed_ ABSL_GUARDED_BY(mu_);
  RequestHandle last_handle_ ABSL_GUARDED_BY(mu_) = 0;
  bool sleeping_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace smt
