// The sessions in memory: those with a turn, and the headers of recently used ones. Loading is lazy, so that a server
// over 100,000 sessions starts at once.
//
// Lock order: SessionEntry::mu, then the table's or the writer's own mutex. Neither calls out while holding its own.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/session/lease_keeper.h"
#include "server/session/session_record.h"
#include "server/session/turn_log.h"

namespace smt {

struct SessionEntry {
  explicit SessionEntry(std::string_view id) : id(id) {}

  const std::string id;
  absl::Mutex mu;
  // Held by a turn, a creation or a deletion.
  bool busy ABSL_GUARDED_BY(mu) = false;
  bool in_turn ABSL_GUARDED_BY(mu) = false;  // busy with a turn
  bool makes ABSL_GUARDED_BY(mu) = false;    // that makes the session: the store has it once the turn has begun
  // Whether what follows holds: the store's content with the writes under way. Cleared when a write fails, once idle.
  bool loaded ABSL_GUARDED_BY(mu) = false;
  bool stale ABSL_GUARDED_BY(mu) = false;  // a write failed during the turn: load again after it
  SessionKey key ABSL_GUARDED_BY(mu);
  SessionHeader header ABSL_GUARDED_BY(mu);
  int64_t idle_end ABSL_GUARDED_BY(mu) = 0;           // of the log, but for what a turn adds
  RequestRecord request ABSL_GUARDED_BY(mu);          // of the turn
  std::shared_ptr<TurnLog> turn ABSL_GUARDED_BY(mu);  // null: none

  // Of the log, counting what was given to the writer.
  int64_t log_end() const ABSL_SHARED_LOCKS_REQUIRED(mu) { return turn != nullptr ? turn->end() : idle_end; }

  bool free() const ABSL_SHARED_LOCKS_REQUIRED(mu) { return !busy; }
  std::string lease ABSL_GUARDED_BY(mu);  // while busy, in a shared store

  // Ends busy and gives the lease back (`leases` is null where the store is not shared); forgets what is not certain
  // any more. What was handed to the writer under the lease is committed.
  void Release(LeaseKeeper* leases) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  SessionInfo Info() const ABSL_SHARED_LOCKS_REQUIRED(mu);
};

class SessionTable {
 public:
  explicit SessionTable(int64_t max_idle) : max_idle_(static_cast<size_t>(max_idle)), trim_at_(max_idle_) {}

  std::shared_ptr<SessionEntry> Acquire(std::string_view id);  // makes an entry, not loaded
  std::shared_ptr<SessionEntry> Peek(std::string_view id);     // null when it is not in memory
  std::vector<std::shared_ptr<SessionEntry>> All();

 private:
  // Drops entries that nobody holds.
  void Trim() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const size_t max_idle_;
  absl::Mutex mu_;
  size_t trim_at_ ABSL_GUARDED_BY(mu_);
  std::unordered_map<std::string, std::shared_ptr<SessionEntry>> entries_ ABSL_GUARDED_BY(mu_);
};

}  // namespace smt
