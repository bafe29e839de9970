#include "server/session/session_writer.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/synchronization/notification.h"
#include "model/base/status_macros.h"
#include "server/base/crash_point.h"

namespace smt {
namespace {

constexpr size_t kFlushIds = 64;  // of a log that nobody waits for

int64_t Bytes(const SnapshotRecord& s) { return static_cast<int64_t>(s.state->size()); }

}  // namespace

SessionWriter::SessionWriter(SessionStore& store, StateCache& cache, int64_t max_pending_snapshot_bytes)
    : store_(store), cache_(cache), max_snapshot_bytes_(max_pending_snapshot_bytes) {
  write_thread_ = std::thread([this] { WriteLoop(); });
  tell_thread_ = std::thread([this] { TellLoop(); });
  snapshot_thread_ = std::thread([this] { SnapshotLoop(); });
}

SessionWriter::~SessionWriter() {
  Drain();  // who is told may have more to write
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  write_thread_.join();
  {
    absl::MutexLock lock(&tell_mu_);
    stop_telling_ = true;
  }
  tell_thread_.join();
  {
    absl::MutexLock lock(&snapshot_mu_);
    stop_snapshots_ = true;
  }
  snapshot_thread_.join();
}

void SessionWriter::Enqueue(SessionWrite write, bool sync, Done done, std::shared_ptr<TurnLog> rests_on) {
  Item item;
  item.write = std::move(write);
  item.sync = sync;
  item.done = std::move(done);
  item.log = std::move(rests_on);
  absl::MutexLock lock(&mu_);
  queue_.push_back(std::move(item));
}

void SessionWriter::Open(std::shared_ptr<TurnLog> log, bool sync) {
  Item item;
  item.kind = Item::Kind::kOpen;
  item.sync = sync;
  item.log = std::move(log);
  absl::MutexLock lock(&mu_);
  queue_.push_back(std::move(item));
}

void SessionWriter::Append(const std::shared_ptr<TurnLog>& log, std::span<const int32_t> ids) {
  absl::MutexLock lock(&log->mu_);
  log->ids_.insert(log->ids_.end(), ids.begin(), ids.end());
  log->end_ += static_cast<int64_t>(ids.size());
  if (log->sync_ || log->ids_.size() >= kFlushIds) Queue(log);
}

void SessionWriter::WriteAll(const std::shared_ptr<TurnLog>& log) {
  absl::MutexLock lock(&log->mu_);
  if (!log->ids_.empty()) Queue(log);
}

void SessionWriter::Queue(const std::shared_ptr<TurnLog>& log) {
  log->given_ = log->end_;
  if (std::exchange(log->queued_, true)) return;
  absl::MutexLock lock(&mu_);
  appends_.push_back(log);
}

void SessionWriter::HoldAppends() {
  absl::MutexLock lock(&mu_);
  ++holds_;
}

void SessionWriter::ReleaseAppends() {
  absl::MutexLock lock(&mu_);
  --holds_;
}

void SessionWriter::EnqueueSnapshot(const SessionKey& key, SnapshotRecord snapshot, std::shared_ptr<TurnLog> rests_on) {
  if (snapshot_bytes_.load() + Bytes(snapshot) > max_snapshot_bytes_) {
    ++dropped_;
    return;
  }
  snapshot_bytes_ += Bytes(snapshot);
  Item item;
  item.kind = Item::Kind::kSnapshot;
  item.key = key;
  item.snapshot = std::move(snapshot);
  item.log = std::move(rests_on);
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
    Logs appends;
    std::deque<Item> items;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(this, &SessionWriter::HasWork));
      if (queue_.empty() && appends_.empty()) return;  // stopped
      appends.swap(appends_);
      items = TakeItems();
    }
    CommitGroup(std::move(appends), std::move(items));
  }
}

// Up to the first that rests on a turn which opens in this very group: whether that is committed has to be known first,
// since a store may refuse one write of a group and take the next.
std::deque<SessionWriter::Item> SessionWriter::TakeItems() {
  const auto waits = [](const Item& item) {
    return item.kind != Item::Kind::kOpen && item.log != nullptr && !item.log->settled();
  };
  const auto end = std::find_if(queue_.begin(), queue_.end(), waits);
  if (end == queue_.end()) return std::exchange(queue_, {});
  std::deque<Item> items(std::make_move_iterator(queue_.begin()), std::make_move_iterator(end));
  queue_.erase(queue_.begin(), end);
  return items;
}

void SessionWriter::CommitGroup(Logs appends, std::deque<Item> items) {
  // Of a turn that never began nothing is written.
  std::erase_if(appends, [](const std::shared_ptr<TurnLog>& log) { return !log->begun(); });
  const auto writes_something = [](const Item& item) {
    return item.kind == Item::Kind::kOpen ||
           (item.kind == Item::Kind::kWrite && (item.log == nullptr || item.log->begun()));
  };
  std::vector<SessionWrite> writes;
  writes.reserve(appends.size() + items.size());
  bool sync = false;
  for (const std::shared_ptr<TurnLog>& log : appends) {
    writes.push_back(log->TakeQueued());
    sync |= log->sync();
  }
  for (Item& item : items) {
    if (!writes_something(item)) continue;
    writes.push_back(item.kind == Item::Kind::kOpen ? item.log->TakeQueued() : std::move(item.write));
    sync |= item.sync;
  }
  const std::vector<absl::Status> statuses = Commit(writes, sync);
  std::vector<Telling> tellings;
  tellings.reserve(appends.size() + items.size());
  const auto end_of = [](const SessionWrite& write) {
    return *write.position + static_cast<int64_t>(write.ids.size());
  };
  size_t at = 0;
  for (std::shared_ptr<TurnLog>& log : appends) {
    const int64_t end = end_of(writes[at]);
    const absl::Status& status = statuses[at++];
    const bool tell = !status.ok() ? log->Fail(status) : log->sync() && log->Durable(end);
    if (tell) tellings.push_back({std::move(log), nullptr, absl::OkStatus()});
  }
  for (Item& item : items) {
    if (item.kind == Item::Kind::kSnapshot) {
      TakeSnapshot(item);
      continue;
    }
    absl::Status status;
    if (writes_something(item)) {
      status = statuses[at++];
    } else if (item.kind == Item::Kind::kWrite) {
      status = item.log->status();
    }
    if (item.kind == Item::Kind::kOpen) {
      const bool durable = item.sync && status.ok();
      const bool tell = item.log->Settle(status, durable ? std::optional(end_of(writes[at - 1])) : std::nullopt);
      if (tell) tellings.push_back({std::move(item.log), nullptr, absl::OkStatus()});
    } else if (item.done) {
      tellings.push_back({nullptr, std::move(item.done), status});
    }
  }
  if (tellings.empty()) return;
  absl::MutexLock lock(&tell_mu_);
  std::move(tellings.begin(), tellings.end(), std::back_inserter(tellings_));
}

std::vector<absl::Status> SessionWriter::Commit(const std::vector<SessionWrite>& writes, bool sync) {
  if (writes.empty()) return {};
  CrashPoint("before_commit");
  std::vector<absl::Status> statuses = store_.Commit(writes, sync);
  CrashPoint("after_commit");
  ++commits_;
  synced_ += sync;
  writes_ += static_cast<int64_t>(writes.size());
  for (const absl::Status& status : statuses) errors_ += !status.ok();
  return statuses;
}

void SessionWriter::TakeSnapshot(Item& item) {
  // A state of ids that are not in the log may not wait until others are there.
  if (item.log != nullptr && !item.log->status().ok()) return DropSnapshot(item.snapshot);
  absl::MutexLock lock(&snapshot_mu_);
  auto [it, fresh] = waiting_.try_emplace(item.key.uid);
  if (!fresh) DropSnapshot(it->second.snapshot);
  it->second = {std::move(item.key), std::move(item.snapshot)};
}

void SessionWriter::DropSnapshot(const SnapshotRecord& snapshot) {
  snapshot_bytes_ -= Bytes(snapshot);
  ++dropped_;
}

void SessionWriter::TellLoop() {
  std::vector<Telling> tellings;
  for (;;) {
    tellings.clear();
    {
      absl::MutexLock lock(&tell_mu_);
      tell_mu_.Await(absl::Condition(this, &SessionWriter::HasTellings));
      if (tellings_.empty()) return;  // stopped
      tellings.swap(tellings_);
    }
    for (Telling& telling : tellings) {
      if (telling.log) telling.log->Tell();
      if (telling.done) telling.done(telling.status);
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
