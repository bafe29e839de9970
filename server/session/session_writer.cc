#include "server/session/session_writer.h"

#include <algorithm>
#include <utility>

#include "absl/synchronization/notification.h"
#include "model/base/status_macros.h"
#include "server/base/crash_point.h"

namespace smt {
namespace {

int64_t Bytes(const SnapshotRecord& s) { return static_cast<int64_t>(s.state->size()); }

}  // namespace

SessionWriter::SessionWriter(SessionStore& store, StateCache& cache, int64_t max_pending_snapshot_bytes)
    : store_(store), cache_(cache), max_snapshot_bytes_(max_pending_snapshot_bytes) {
  write_thread_ = std::thread([this] { WriteLoop(); });
  snapshot_thread_ = std::thread([this] { SnapshotLoop(); });
}

SessionWriter::~SessionWriter() {
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  write_thread_.join();
  {
    absl::MutexLock lock(&snapshot_mu_);
    stop_snapshots_ = true;
  }
  snapshot_thread_.join();
}

void SessionWriter::Enqueue(SessionWrite write, bool sync, Done done) {
  Item item;
  item.write = std::move(write);
  item.sync = sync;
  item.done = std::move(done);
  absl::MutexLock lock(&mu_);
  queue_.push_back(std::move(item));
}

void SessionWriter::EnqueueSnapshot(const SessionKey& key, SnapshotRecord snapshot) {
  if (snapshot_bytes_.load() + Bytes(snapshot) > max_snapshot_bytes_) {
    ++dropped_;
    return;
  }
  snapshot_bytes_ += Bytes(snapshot);
  Item item;
  item.kind = Item::Kind::kSnapshot;
  item.key = key;
  item.snapshot = std::move(snapshot);
  absl::MutexLock lock(&mu_);
  queue_.push_back(std::move(item));
}

void SessionWriter::Drain() {
  absl::Notification done;
  {
    Item item;
    item.kind = Item::Kind::kBarrier;
    item.done = [&](const absl::Status&) { done.Notify(); };
    absl::MutexLock lock(&mu_);
    queue_.push_back(std::move(item));
  }
  done.WaitForNotification();
}

absl::Status SessionWriter::Flush() {
  Drain();
  {
    absl::MutexLock lock(&snapshot_mu_);
    snapshot_mu_.Await(absl::Condition(this, &SessionWriter::SnapshotsIdle));
  }
  const auto statuses = store_.Commit({}, true);
  return statuses.empty() ? store_.Health() : statuses[0];
}

void SessionWriter::AwaitSnapshots(absl::Duration at_most) {
  Drain();
  absl::MutexLock lock(&snapshot_mu_);
  snapshot_mu_.AwaitWithTimeout(absl::Condition(this, &SessionWriter::SnapshotsIdle), at_most);
}

std::optional<SnapshotRecord> SessionWriter::WaitingSnapshot(uint64_t uid, int64_t branch, int64_t max_position) {
  const auto fits = [&](const SnapshotRecord& s) { return s.branch == branch && s.position <= max_position; };
  absl::MutexLock lock(&snapshot_mu_);
  auto it = waiting_.find(uid);
  if (it != waiting_.end() && fits(it->second.snapshot)) return it->second.snapshot;
  if (writing_ && writing_->key.uid == uid && fits(writing_->snapshot)) return writing_->snapshot;
  return std::nullopt;
}

void SessionWriter::FillCounters(SessionCounters* c) const {
  c->group_commits = commits_;
  c->synced_commits = synced_;
  c->committed_writes = writes_;
  c->snapshots_written = snapshots_;
  c->snapshots_dropped = dropped_;
  c->store_errors = errors_;
}

void SessionWriter::WriteLoop() {
  for (;;) {
    std::deque<Item> group;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(this, &SessionWriter::HasWork));
      if (queue_.empty()) return;  // stopped
      group.swap(queue_);
    }
    CommitGroup(std::move(group));
  }
}

void SessionWriter::CommitGroup(std::deque<Item> group) {
  std::vector<SessionWrite> writes;
  bool sync = false;
  for (Item& item : group) {
    if (item.kind != Item::Kind::kWrite) continue;
    writes.push_back(std::move(item.write));
    sync |= item.sync;
  }
  std::vector<absl::Status> statuses;
  if (!writes.empty()) {
    CrashPoint("before_commit");
    statuses = store_.Commit(writes, sync);
    CrashPoint("after_commit");
    ++commits_;
    synced_ += sync;
    writes_ += static_cast<int64_t>(writes.size());
  }
  size_t at = 0;
  for (Item& item : group) {
    switch (item.kind) {
      case Item::Kind::kWrite: {
        const absl::Status& status = statuses[at++];
        errors_ += !status.ok();
        if (item.done) item.done(status);
        break;
      }
      case Item::Kind::kBarrier:
        item.done(absl::OkStatus());
        break;
      case Item::Kind::kSnapshot: {
        absl::MutexLock lock(&snapshot_mu_);
        auto [it, fresh] = waiting_.try_emplace(item.key.uid);
        if (!fresh) {
          snapshot_bytes_ -= Bytes(it->second.snapshot);
          ++dropped_;
        }
        it->second = {std::move(item.key), std::move(item.snapshot)};
        break;
      }
    }
  }
}

void SessionWriter::SnapshotLoop() {
  for (;;) {
    Waiting next;
    {
      absl::MutexLock lock(&snapshot_mu_);
      snapshot_mu_.Await(absl::Condition(this, &SessionWriter::HasSnapshots));
      if (waiting_.empty()) return;  // stopped
      next = waiting_.begin()->second;
      writing_ = next;
      waiting_.erase(waiting_.begin());
    }
    WriteSnapshot(next.key, next.snapshot);
    snapshot_bytes_ -= Bytes(next.snapshot);
    absl::MutexLock lock(&snapshot_mu_);
    writing_.reset();
  }
}

absl::StatusOr<bool> SessionWriter::PutSnapshot(const SessionKey& key, const SnapshotRecord& s) {
  ASSIGN_OR_RETURN(const StoredSession found, store_.Find(key.id));
  if (found.key != key) return false;
  RETURN_IF_ERROR(found.header.status());
  ASSIGN_OR_RETURN(const SessionHeader header, DecodeHeader(*found.header));
  if (header.branch != s.branch) return false;  // rolled back meanwhile
  // A state of ids that never reached the log would be wrong for what is appended there later.
  ASSIGN_OR_RETURN(const int64_t end, store_.LogEnd(key, s.branch));
  if (std::max(end, header.before.end()) < s.position) return false;
  auto names = store_.ListSnapshots(key);
  // Where one is damaged none can be listed; the new one is worth having all the same.
  if (absl::IsDataLoss(names.status())) names = std::vector<SnapshotName>();
  RETURN_IF_ERROR(names.status());
  const std::vector<SnapshotName> drop = SuperfluousSnapshots(key, header, s.position, *names);
  const SnapshotName name{s.branch, s.position};
  const std::string bytes = EncodeSnapshot(s);
  CrashPoint("before_snapshot");
  if (leases_ == nullptr) {
    RETURN_IF_ERROR(store_.PutSnapshot(key, name, bytes, drop));
  } else {
    RETURN_IF_ERROR(leases_->Borrow(
        key, [&](const std::string& lease) { return lease_store_->PutSnapshotLeased(key, lease, name, bytes, drop); }));
  }
  CrashPoint("after_snapshot");
  cache_.Put(key.uid, s);
  return true;
}

void SessionWriter::WriteSnapshot(const SessionKey& key, const SnapshotRecord& s) {
  const absl::StatusOr<bool> put = PutSnapshot(key, s);
  if (put.ok() && *put) {
    ++snapshots_;
    return;
  }
  if (!put.ok() && !absl::IsNotFound(put.status())) ++errors_;
  ++dropped_;
}

}  // namespace smt
