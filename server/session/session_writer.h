// Three threads between sessions and the store. The first commits writes in the order they came: all that arrived
// during one sync form the next group, in which a turn's ids are one write, however often it added some. The second
// tells those concerned, while the first commits the next group. The third writes snapshots, each after the log it
// rests on, without holding up anyone's sync.
//
// Thread-safe. What adds or enqueues never blocks on I/O.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "server/session/lease_keeper.h"
#include "server/session/session_record.h"
#include "server/session/state_cache.h"
#include "server/session/turn_log.h"
#include "server/store/session_store.h"

namespace smt {

class SessionWriter {
 public:
  using Done = std::function<void(const absl::Status&)>;

  // States that are written go to `cache`, too.
  SessionWriter(SessionStore& store, StateCache& cache, int64_t max_pending_snapshot_bytes);
  // Snapshots are then put under the session's lease. Before anything is queued.
  void ShareStore(LeaseStore* store, LeaseKeeper* leases) {
    lease_store_ = store;
    leases_ = leases;
  }
  ~SessionWriter();  // after everything queued was written

  // `done` runs on the telling thread when the write is committed (and on disk, with `sync`) or has failed. One that
  // rests on a turn fails with that where it never began.
  void Enqueue(SessionWrite write, bool sync, Done done, std::shared_ptr<TurnLog> rests_on = nullptr);
  // What opens the turn, in the order of what is enqueued; TurnLog tells the outcome.
  void Open(std::shared_ptr<TurnLog> log, bool sync);
  // Adds ids to the turn's log. Those of a log that syncs are written at once, others when there are many.
  void Append(const std::shared_ptr<TurnLog>& log, std::span<const int32_t> ids);
  void WriteAll(const std::shared_ptr<TurnLog>& log);  // those that others wait for, too
  // Between these what is appended waits, unless something else is to be committed: the ids of one step of the engine
  // become one group. They nest.
  void HoldAppends();
  void ReleaseAppends();
  // Kept as one of the session's newest snapshots if the log reaches it and its branch is the present one. The newest
  // waiting one of a session replaces others. Dropped where the turn it rests on has failed.
  void EnqueueSnapshot(const SessionKey& key, SnapshotRecord snapshot, std::shared_ptr<TurnLog> rests_on = nullptr);

  // The same on this thread, not queued. Gives whether it was put: not where the session, or the branch, is gone or
  // never got that far.
  absl::StatusOr<bool> PutSnapshot(const SessionKey& key, const SnapshotRecord& snapshot);

  void Drain();                                 // returns when every write enqueued before is committed
  absl::Status Flush();                         // the same, snapshots included, all of it synced
  void AwaitSnapshots(absl::Duration at_most);  // until those handed over before are written, or so long

  // The waiting snapshot of this session and branch with the largest position, if that is at most `max_position`.
  std::optional<SnapshotRecord> WaitingSnapshot(uint64_t uid, int64_t branch, int64_t max_position);

  void FillCounters(SessionCounters* counters) const;

 private:
  struct Item {
    enum class Kind { kWrite, kOpen, kBarrier, kSnapshot } kind = Kind::kWrite;
    SessionWrite write;
    bool sync = false;
    Done done;
    std::shared_ptr<TurnLog> log;  // that it opens, or rests on; null: none
    SessionKey key;
    SnapshotRecord snapshot;
  };
  using Logs = std::vector<std::shared_ptr<TurnLog>>;
  // One who is told: a turn's watcher, or `done`.
  struct Telling {
    std::shared_ptr<TurnLog> log;
    Done done;
    absl::Status status;
  };

  void Queue(const std::shared_ptr<TurnLog>& log) ABSL_EXCLUSIVE_LOCKS_REQUIRED(log->mu_);
  void WriteLoop();
  std::deque<Item> TakeItems() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CommitGroup(Logs appends, std::deque<Item> items);
  std::vector<absl::Status> Commit(const std::vector<SessionWrite>& writes, bool sync);
  void TakeSnapshot(Item& item);
  void DropSnapshot(const SnapshotRecord& snapshot);
  void TellLoop();
  void SnapshotLoop();
  void WriteSnapshot(const SessionKey& key, const SnapshotRecord& snapshot);
  bool HasWork() const ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return stop_ || !queue_.empty() || (holds_ == 0 && !appends_.empty());
  }
  bool HasTellings() const ABSL_SHARED_LOCKS_REQUIRED(tell_mu_) { return stop_telling_ || !tellings_.empty(); }
  bool HasSnapshots() const ABSL_SHARED_LOCKS_REQUIRED(snapshot_mu_) { return stop_snapshots_ || !waiting_.empty(); }
  bool SnapshotsIdle() const ABSL_SHARED_LOCKS_REQUIRED(snapshot_mu_) { return waiting_.empty() && !writing_; }

  SessionStore& store_;
  StateCache& cache_;
  LeaseStore* lease_store_ = nullptr;
  LeaseKeeper* leases_ = nullptr;
  const int64_t max_snapshot_bytes_;

  absl::Mutex mu_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  int holds_ ABSL_GUARDED_BY(mu_) = 0;
  Logs appends_ ABSL_GUARDED_BY(mu_);  // before all that is in queue_: a turn's end, or a snapshot, comes after its ids
  std::deque<Item> queue_ ABSL_GUARDED_BY(mu_);

  absl::Mutex tell_mu_;
  bool stop_telling_ ABSL_GUARDED_BY(tell_mu_) = false;
  std::vector<Telling> tellings_ ABSL_GUARDED_BY(tell_mu_);

  struct Waiting {
    SessionKey key;
    SnapshotRecord snapshot;
  };
  absl::Mutex snapshot_mu_;
  bool stop_snapshots_ ABSL_GUARDED_BY(snapshot_mu_) = false;
  std::map<uint64_t, Waiting> waiting_ ABSL_GUARDED_BY(snapshot_mu_);  // by uid
  std::optional<Waiting> writing_ ABSL_GUARDED_BY(snapshot_mu_);

  std::atomic<int64_t> snapshot_bytes_{0};  // queued or waiting
  std::atomic<int64_t> commits_{0}, synced_{0}, writes_{0}, snapshots_{0}, dropped_{0}, errors_{0};

  std::thread write_thread_, tell_thread_, snapshot_thread_;
};

}  // namespace smt
