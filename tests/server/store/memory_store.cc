#include "tests/server/store/memory_store.h"

#include <algorithm>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/store/record_format.h"

namespace smt {
namespace {

// As a request of uid 0.
std::string RemovalName(std::string_view id, std::string_view request_id) {
  return StrCat(id, std::string(1, '\0'), request_id);
}

}  // namespace

void MemoryStore::Hold(bool held) {
  absl::MutexLock lock(&mu_);
  held_ = held;
}

void MemoryStore::WaitUntilCommitWaits() {
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(&waiting_));
}

void MemoryStore::FailCommits(int count, absl::Status status) {
  absl::MutexLock lock(&mu_);
  fail_count_ = count;
  fail_status_ = std::move(status);
}

void MemoryStore::FailWrite(absl::Status status, std::function<bool(const SessionWrite& write, bool sync)> which) {
  absl::MutexLock lock(&mu_);
  fail_status_ = std::move(status);
  fails_ = std::move(which);
}

void MemoryStore::DamageLog(int64_t position) {
  absl::MutexLock lock(&mu_);
  damaged_position_ = position;
}

int64_t MemoryStore::commits() const {
  absl::MutexLock lock(&mu_);
  return static_cast<int64_t>(group_sizes_.size());
}
int64_t MemoryStore::syncs() const {
  absl::MutexLock lock(&mu_);
  return syncs_;
}
std::vector<size_t> MemoryStore::group_sizes() const {
  absl::MutexLock lock(&mu_);
  return group_sizes_;
}

MemoryStore::Session* MemoryStore::Of(const SessionKey& key) {
  auto it = sessions_.find(key.id);
  return it == sessions_.end() || it->second.uid != key.uid ? nullptr : &it->second;
}

std::vector<absl::Status> MemoryStore::Commit(std::span<const SessionWrite> writes, bool sync) {
  absl::MutexLock lock(&mu_);
  waiting_ = held_;
  const auto go = [](bool* held) { return !*held; };
  mu_.Await(absl::Condition(+go, &held_));
  waiting_ = false;
  std::vector<absl::Status> out;
  if (!writes.empty()) group_sizes_.push_back(writes.size());
  syncs_ += sync;
  const bool fail = fail_count_ > 0 && fail_count_-- > 0;
  for (const auto& w : writes) {
    const bool fails = fails_ != nullptr && fails_(w, sync);
    if (fails) fails_ = nullptr;
    out.push_back(fail || fails ? fail_status_ : Apply(w));
  }
  return out;
}

absl::Status MemoryStore::Apply(const SessionWrite& w) {
  if (w.kind == SessionWrite::Kind::kCreate) {
    if (sessions_.count(w.key.id)) return absl::AlreadyExistsError(StrCat("session '", w.key.id, "' exists already"));
  } else if (Of(w.key) == nullptr) {
    return absl::NotFoundError(StrCat("session '", w.key.id, "' does not exist any more"));
  }
  if (w.kind == SessionWrite::Kind::kRemove) {
    sessions_.erase(w.key.id);
    std::erase_if(requests_, [&](const auto& r) { return r.first.first == w.key.uid; });
    if (w.removal) requests_[{0, RemovalName(w.key.id, w.removal->request_id)}] = w.removal->record;
    data_[w.key.uid].deleted = true;
    data_[w.key.uid].references.clear();
    Collect();
    return absl::OkStatus();
  }
  for (const StoreReference& r : w.references.value_or(std::vector<StoreReference>())) {
    const auto data = data_.find(r.owner.uid);
    bool there = data != data_.end();
    if (there && r.kind == StoreReference::Kind::kLog) {
      const auto log = data->second.logs.find(r.branch);
      there = log != data->second.logs.end() && log->second.end() >= r.position;
    } else if (there) {
      there = data->second.snapshots.count({r.branch, r.position}) > 0;
    }
    if (!there) {
      return absl::NotFoundError(StrCat("session '", r.owner.id, "' has no ",
                                        r.kind == StoreReference::Kind::kLog ? "log up to" : "snapshot at",
                                        " position ", r.position, " any more"));
    }
  }
  if (w.position) {
    const auto& logs = data_[w.key.uid].logs;
    const auto it = logs.find(w.branch);
    const int64_t end = it != logs.end() ? it->second.end() : w.log_begin;
    if (end != *w.position) {
      return absl::AbortedError(
          StrCat("session '", w.key.id, "': the log ends at position ", end, ", the writer expects ", *w.position));
    }
  }
  Session& s = sessions_[w.key.id];
  s.uid = w.key.uid;
  Data& data = data_[w.key.uid];
  if (w.header) s.header = *w.header;
  if (!w.ids.empty()) {
    auto [it, fresh] = data.logs.try_emplace(w.branch);
    if (fresh) it->second.start = *w.position;
    it->second.ids.insert(it->second.ids.end(), w.ids.begin(), w.ids.end());
  }
  for (const auto& [id, record] : w.requests) requests_[{w.key.uid, id}] = record;
  if (w.kept_logs) {
    for (auto& [branch, log] : data.logs) {
      if (branch >= w.kept_logs->below) break;
      const auto kept = w.kept_logs->logs.find(branch);
      int64_t end = std::max(log.start, kept == w.kept_logs->logs.end() ? 0 : kept->second);
      while (end < log.end() && Referred(StoreReference::Kind::kLog, w.key.uid, branch, end + 1)) ++end;
      if (end < log.end()) log.ids.resize(static_cast<size_t>(end - log.start));
    }
    std::erase_if(data.logs, [](const auto& log) { return log.second.ids.empty(); });
  }
  if (w.references) {
    data.references = *w.references;
    Collect();
  }
  return absl::OkStatus();
}

bool MemoryStore::Referred(StoreReference::Kind kind, uint64_t uid, int64_t branch, int64_t position) {
  for (const auto& [reader, data] : data_) {
    for (const StoreReference& r : data.references) {
      if (r.kind == kind && r.owner.uid == uid && r.branch == branch && r.position >= position &&
          (kind == StoreReference::Kind::kLog || r.position == position)) {
        return true;
      }
    }
  }
  return false;
}

void MemoryStore::Collect() {
  for (auto& [uid, data] : data_) {
    if (!data.deleted) continue;
    // The analysis does not see into closures; the mutex is held.
    std::erase_if(data.logs, [&, uid = uid](const auto& log) ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return !Referred(StoreReference::Kind::kLog, uid, log.first, 0);
    });
    std::erase_if(data.snapshots, [&, uid = uid](const auto& snapshot) ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return !Referred(StoreReference::Kind::kSnapshot, uid, snapshot.first.first, snapshot.first.second);
    });
  }
  std::erase_if(data_, [](const auto& item) {
    return item.second.deleted && item.second.logs.empty() && item.second.snapshots.empty();
  });
}

absl::StatusOr<StoredSession> MemoryStore::Find(std::string_view id) {
  absl::MutexLock lock(&mu_);
  auto it = sessions_.find(std::string(id));
  if (it == sessions_.end()) return absl::NotFoundError(StrCat("session '", id, "' does not exist"));
  return StoredSession{{it->first, it->second.uid}, it->second.header};
}

absl::StatusOr<std::vector<StoredSession>> MemoryStore::List(std::string_view after, size_t limit) {
  absl::MutexLock lock(&mu_);
  std::vector<StoredSession> out;
  for (auto it = sessions_.upper_bound(std::string(after)); it != sessions_.end() && out.size() < limit; ++it) {
    out.push_back({{it->first, it->second.uid}, it->second.header});
  }
  return out;
}

absl::StatusOr<int64_t> MemoryStore::Count() {
  absl::MutexLock lock(&mu_);
  return static_cast<int64_t>(sessions_.size());
}

absl::StatusOr<int64_t> MemoryStore::LogEnd(const SessionKey& key, int64_t branch) {
  absl::MutexLock lock(&mu_);
  const auto data = data_.find(key.uid);
  if (data == data_.end() || !data->second.logs.count(branch)) return 0;
  return data->second.logs[branch].end();
}

absl::StatusOr<std::vector<int32_t>> MemoryStore::ReadLog(const SessionKey& key, int64_t branch, int64_t first,
                                                          int64_t last) {
  absl::MutexLock lock(&mu_);
  if (first < 1 || last < first) return std::vector<int32_t>();
  if (damaged_position_ >= first && damaged_position_ <= last) {
    return absl::DataLossError(StrCat("session '", key.id, "': the log is damaged at position ", damaged_position_));
  }
  const auto data = data_.find(key.uid);
  const Log log = data == data_.end() ? Log() : data->second.logs[branch];
  if (first <= log.start || last > log.end()) {
    return absl::DataLossError(StrCat("session '", key.id, "': the log has no id at position ",
                                      first <= log.start ? first : log.end() + 1, ", which was asked for up to ",
                                      last));
  }
  return std::vector<int32_t>(log.ids.begin() + (first - 1 - log.start), log.ids.begin() + (last - log.start));
}

absl::StatusOr<std::string> MemoryStore::GetRequest(const SessionKey& key, std::string_view request_id) {
  absl::MutexLock lock(&mu_);
  auto it = requests_.find({key.uid, std::string(request_id)});
  if (it == requests_.end())
    return absl::NotFoundError(StrCat("session '", key.id, "' has no request '", request_id, "'"));
  return it->second;
}

absl::StatusOr<std::string> MemoryStore::GetRemoval(std::string_view id, std::string_view request_id) {
  return GetRequest({std::string(id), 0}, RemovalName(id, request_id));
}

absl::StatusOr<std::vector<StoredRequest>> MemoryStore::ListRequests(std::string* cursor, size_t limit) {
  absl::MutexLock lock(&mu_);
  std::vector<StoredRequest> out;
  auto it = requests_.begin();
  if (!cursor->empty()) it = requests_.upper_bound({ReadBigEndian(*cursor), cursor->substr(8)});
  for (; it != requests_.end() && out.size() < limit; ++it) {
    out.push_back({it->first.first, it->first.second, it->second});
    cursor->clear();
    AppendBigEndian(cursor, it->first.first);
    cursor->append(it->first.second);
  }
  if (it == requests_.end()) cursor->clear();
  return out;
}

absl::Status MemoryStore::RemoveRequests(std::span<const StoredRequest> requests) {
  absl::MutexLock lock(&mu_);
  for (const auto& r : requests) {
    auto it = requests_.find({r.uid, r.request_id});
    if (it != requests_.end() && r.record.ok() && it->second == *r.record) requests_.erase(it);
  }
  return absl::OkStatus();
}

absl::Status MemoryStore::PutSnapshot(const SessionKey& key, const SnapshotName& name, std::string_view bytes,
                                      std::span<const SnapshotName> drop) {
  absl::MutexLock lock(&mu_);
  if (Of(key) == nullptr) return absl::NotFoundError(StrCat("session '", key.id, "' does not exist any more"));
  auto& snapshots = data_[key.uid].snapshots;
  snapshots[{name.branch, name.position}] = std::string(bytes);
  for (const SnapshotName& other : drop) {
    if (other == name || Referred(StoreReference::Kind::kSnapshot, key.uid, other.branch, other.position)) continue;
    snapshots.erase({other.branch, other.position});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SnapshotName>> MemoryStore::ListSnapshots(const SessionKey& key) {
  absl::MutexLock lock(&mu_);
  std::vector<SnapshotName> out;
  const auto data = data_.find(key.uid);
  if (data == data_.end()) return out;
  for (auto it = data->second.snapshots.rbegin(); it != data->second.snapshots.rend(); ++it) {
    out.push_back({it->first.first, it->first.second});
  }
  return out;
}

absl::StatusOr<std::string> MemoryStore::GetSnapshot(const SessionKey& key, const SnapshotName& name) {
  absl::MutexLock lock(&mu_);
  const auto data = data_.find(key.uid);
  if (data == data_.end() || !data->second.snapshots.count({name.branch, name.position})) {
    return absl::NotFoundError(StrCat("session '", key.id, "' has no snapshot at position ", name.position));
  }
  return data->second.snapshots[{name.branch, name.position}];
}

}  // namespace smt
