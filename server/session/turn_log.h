// The log of a running turn, between the turn, the writer and whoever waits for the disk: what opens it, ids that are
// still to be written, how far the log is on disk, and what went wrong. Outlives the turn in the writer's queue.
//
// Thread-safe; no call waits for I/O. Its mutex comes after SessionEntry::mu and before the writer's.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "server/store/lease_store.h"
#include "server/store/session_store.h"

namespace smt {

class TurnLog {
 public:
  // `open` is what the turn begins with: whose log and under which lease, prompt, header, record. It is the writer's
  // from now on (SessionWriter::Open), and what is added before it is committed goes with it. With `sync` each id is to
  // be on disk soon, otherwise they are written by the dozen and nobody waits.
  TurnLog(SessionWrite open, int64_t durable, bool sync);

  bool sync() const { return sync_; }
  int64_t end() const ABSL_LOCKS_EXCLUDED(mu_);  // counting what the writer was given

  // For the turn's end: what was added and not given to the writer, which may be no ids, after all that was.
  SessionWrite TakeRest() ABSL_LOCKS_EXCLUDED(mu_);

  // Whether the opening write was committed, or failed; status() then says why.
  bool settled() const { return settled_.load(std::memory_order_acquire); }
  bool begun() const ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status AwaitBegun() ABSL_LOCKS_EXCLUDED(mu_);  // until it is settled
  int64_t durable() const ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status status() const ABSL_LOCKS_EXCLUDED(mu_);  // the first failure
  bool asked_to_end() const ABSL_LOCKS_EXCLUDED(mu_);
  bool asked_to_cancel() const ABSL_LOCKS_EXCLUDED(mu_);

  // `changed` is called by Tell.
  void Watch(std::function<void()> changed) ABSL_LOCKS_EXCLUDED(mu_);
  // Changes of what is watched. True: Tell is to be called, by a thread that may take the time, and nobody is about to.
  bool Durable(int64_t position) ABSL_LOCKS_EXCLUDED(mu_);
  bool Fail(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  // The opening write's outcome; `durable` where it was synced.
  bool Settle(const absl::Status& status, std::optional<int64_t> durable) ABSL_LOCKS_EXCLUDED(mu_);
  // Another server wants the session, or its request cancelled: the turn is to end at its next token.
  bool AskToEnd(Handover handover) ABSL_LOCKS_EXCLUDED(mu_);
  void Tell() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  friend class SessionWriter;  // adds, and queues under the same mutex: what was added before a flush is in it

  SessionWrite TakeQueued() ABSL_LOCKS_EXCLUDED(mu_);  // and what was added since
  bool MustTell() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const SessionWrite log_;  // without content
  const bool sync_;
  std::atomic<bool> settled_{false};  // written under mu_
  mutable absl::Mutex mu_;
  std::optional<SessionWrite> open_ ABSL_GUARDED_BY(mu_);  // header and record, until the writer takes them
  bool begun_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<int32_t> ids_ ABSL_GUARDED_BY(mu_);  // added and not taken yet
  int64_t end_ ABSL_GUARDED_BY(mu_);               // with ids_
  int64_t given_ ABSL_GUARDED_BY(mu_);
  bool queued_ ABSL_GUARDED_BY(mu_) = true;  // the writer will take them
  int64_t durable_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  bool asked_to_end_ ABSL_GUARDED_BY(mu_) = false;
  bool asked_to_cancel_ ABSL_GUARDED_BY(mu_) = false;
  bool telling_ ABSL_GUARDED_BY(mu_) = false;  // Tell was asked for
  std::function<void()> changed_ ABSL_GUARDED_BY(mu_);
};

}  // namespace smt
