// One mutex orders all mutations: check, then one WriteBatch for the group, then one sync. Reads run beside them:
// RocksDB gives each a consistent view, and only a session's one writer changes what its own reads depend on.
#include "server/store/rocksdb_store.h"

#include <rocksdb/env.h>
#include <rocksdb/write_batch.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <map>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/store/record_format.h"
#include "server/store/rocksdb_internal.h"
#include "server/store/rocksdb_reader.h"
#include "server/store/rocksdb_references.h"
#include "server/store/rocksdb_sync_guard.h"

namespace smt {
namespace {

using namespace store_internal;  // NOLINT: the other half of this class

constexpr size_t kMaxSegmentIds = 4096;  // a reader decodes whole segments
// A segment shorter than this is written again, longer, by the append after it: ids that come one by one would
// otherwise be a record each, and most of the work would be RocksDB's, writing and merging tables of them.
constexpr size_t kOpenSegmentIds = 32;
constexpr size_t kMostRemembered = 1 << 17;
constexpr int64_t kReopenBytes = int64_t{8} << 20;
constexpr size_t kMaxSingleDeletes = 1024;  // beyond it a range tombstone is cheaper

class RocksDbStore final : public SessionStore {
 public:
  RocksDbStore(RocksDbStoreOptions options, std::unique_ptr<SyncGuard> guard, OpenedDb opened)
      : options_(std::move(options)), guard_(std::move(guard)), o_(std::move(opened)) {}

  ~RocksDbStore() override {
    // A clean end leaves nothing in the write-ahead log, where a damaged byte would concern every session.
    absl::MutexLock lock(&mu_);
    absl::WriterMutexLock db_lock(&db_mu_);
    if (!out_of_space_ && Failed().ok() && Room().ok()) {
      o_.db->Flush(rocksdb::FlushOptions(), {o_.handles.begin(), o_.handles.end()}).PermitUncheckedError();
    }
    Close();
  }

  std::vector<absl::Status> Commit(std::span<const SessionWrite> writes, bool sync) override {
    absl::MutexLock lock(&mu_);
    if (const absl::Status open = ReopenIfNeeded(); !open.ok()) return std::vector<absl::Status>(writes.size(), open);
    absl::ReaderMutexLock db_lock(&db_mu_);
    std::vector<absl::Status> out(writes.size());
    Group group;
    size_t begin = 0;  // of the group
    // The analysis does not see into closures; both mutexes are held.
    const auto write = [&](size_t end, bool synced) ABSL_NO_THREAD_SAFETY_ANALYSIS {
      const absl::Status written = Write(&group.batch, synced);
      Remember(group, written.ok());
      for (; begin < end; ++begin) {
        if (out[begin].ok()) out[begin] = written;
      }
    };
    for (size_t i = 0; i < writes.size(); ++i) {
      // These look at what others wrote.
      const SessionWrite& w = writes[i];
      if ((w.references || w.kept_logs || w.kind == SessionWrite::Kind::kRemove) && group.batch.Count() > 0) {
        write(i, false);
        group = Group();
      }
      group.batch.SetSavePoint();
      out[i] = Stage(writes[i], &group);
      const rocksdb::Status back = out[i].ok() ? group.batch.PopSavePoint() : group.batch.RollbackToSavePoint();
      if (!back.ok()) out[i] = absl::InternalError(back.ToString());
    }
    write(writes.size(), sync);
    return out;
  }

  absl::StatusOr<StoredSession> Find(std::string_view id) override {
    RETURN_IF_ERROR(OpenForReading());
    absl::ReaderMutexLock lock(&db_mu_);
    ASSIGN_OR_RETURN(const RocksDbReader reader, Reader());
    return reader.Find(id);
  }

  absl::StatusOr<std::vector<StoredSession>> List(std::string_view after, size_t limit) override {
    RETURN_IF_ERROR(OpenForReading());
    absl::ReaderMutexLock lock(&db_mu_);
    ASSIGN_OR_RETURN(const RocksDbReader reader, Reader());
    return reader.List(after, limit);
  }

  absl::StatusOr<int64_t> Count() override {
    RETURN_IF_ERROR(OpenForReading());
    absl::ReaderMutexLock lock(&db_mu_);
    ASSIGN_OR_RETURN(const RocksDbReader reader, Reader());
    return reader.Count();
  }

  absl::StatusOr<int64_t> LogEnd(const SessionKey& key, int64_t branch) override {
    RETURN_IF_ERROR(OpenForReading());
    absl::ReaderMutexLock lock(&db_mu_);
    ASSIGN_OR_RETURN(const RocksDbReader reader, Reader());
    ASSIGN_OR_RETURN(const std::optional<int64_t> end, reader.LogEnd(key, branch));
    return end.value_or(0);
  }

  absl::StatusOr<std::vector<int32_t>> ReadLog(const SessionKey& key, int64_t branch, int64_t first,
                                               int64_t last) override {
    RETURN_IF_ERROR(OpenForReading());
    absl::ReaderMutexLock lock(&db_mu_);
    ASSIGN_OR_RETURN(const RocksDbReader reader, Reader());
    return reader.ReadLog(key, branch, first, last);
  }

  absl::StatusOr<std::string> GetRequest(const SessionKey& key, std::string_view request_id) override {
    RETURN_IF_ERROR(OpenForReading());
    absl::ReaderMutexLock lock(&db_mu_);
    ASSIGN_OR_RETURN(const RocksDbReader reader, Reader());
    return reader.Request(key, request_id);
  }

  absl::StatusOr<std::string> GetRemoval(std::string_view id, std::string_view request_id) override {
    return GetRequest({std::string(id), 0}, RemovalName(id, request_id));
  }

  absl::StatusOr<std::vector<StoredRequest>> ListRequests(std::string* cursor, size_t limit) override {
    RETURN_IF_ERROR(OpenForReading());
    absl::ReaderMutexLock lock(&db_mu_);
    ASSIGN_OR_RETURN(const RocksDbReader reader, Reader());
    return reader.ListRequests(cursor, limit);
  }

  absl::StatusOr<std::vector<SnapshotName>> ListSnapshots(const SessionKey& key) override {
    RETURN_IF_ERROR(OpenForReading());
    absl::ReaderMutexLock lock(&db_mu_);
    ASSIGN_OR_RETURN(const RocksDbReader reader, Reader());
    return reader.ListSnapshots(key);
  }

  absl::StatusOr<std::string> GetSnapshot(const SessionKey& key, const SnapshotName& name) override {
    RETURN_IF_ERROR(OpenForReading());
    absl::ReaderMutexLock lock(&db_mu_);
    ASSIGN_OR_RETURN(const RocksDbReader reader, Reader());
    return reader.Snapshot(key, name);
  }

  absl::Status RemoveRequests(std::span<const StoredRequest> requests) override {
    absl::MutexLock lock(&mu_);
    RETURN_IF_ERROR(ReopenIfNeeded());
    absl::ReaderMutexLock db_lock(&db_mu_);
    ASSIGN_OR_RETURN(const RocksDbReader reader, Reader());
    rocksdb::WriteBatch batch;
    for (const auto& r : requests) {
      const auto now = reader.Request({"", r.uid}, r.request_id);
      if (now.ok() && r.record.ok() && *now == *r.record) batch.Delete(o_.cf.requests, RequestKey(r.uid, r.request_id));
    }
    return Write(&batch, false);
  }

  absl::Status PutSnapshot(const SessionKey& key, const SnapshotName& name, std::string_view bytes,
                           std::span<const SnapshotName> drop) override {
    absl::MutexLock lock(&mu_);
    RETURN_IF_ERROR(ReopenIfNeeded());
    absl::ReaderMutexLock db_lock(&db_mu_);
    ASSIGN_OR_RETURN(const RocksDbReader reader, Reader());
    ASSIGN_OR_RETURN(const std::optional<uint64_t> uid, reader.Uid(key.id));
    if (uid != key.uid) return Gone(key);
    rocksdb::WriteBatch batch;
    for (const SnapshotName& other : drop) {
      ASSIGN_OR_RETURN(const bool held, RocksDbReferences(o_).Holds(key.uid, other));
      if (held || other == name) continue;
      const std::string gone = NumberedKey(key.uid, other.branch, other.position);
      batch.Delete(o_.cf.snapshots, gone);
      batch.Delete(o_.cf.references, SnapshotNameKey(gone));
    }
    const std::string db_key = NumberedKey(key.uid, name.branch, name.position);
    batch.Put(o_.cf.snapshots, db_key, SealRecord(RecordType::kSnapshot, kRecordVersion, db_key, bytes));
    PutSnapshotName(o_, db_key, &batch);
    return Write(&batch, false);
  }

  absl::Status Backup(const std::string& dir) override {
    RETURN_IF_ERROR(OpenForReading());
    absl::ReaderMutexLock lock(&db_mu_);
    RETURN_IF_ERROR(Failed());
    return BackupDb(o_, dir);
  }

  absl::Status Health() override {
    RETURN_IF_ERROR(OpenForReading());
    absl::ReaderMutexLock lock(&db_mu_);
    RETURN_IF_ERROR(Failed());
    return Room();
  }

  int64_t FreeBytes() override {
    struct statvfs fs;
    if (::statvfs(options_.dir.c_str(), &fs) != 0) return -1;
    return static_cast<int64_t>(fs.f_bavail) * static_cast<int64_t>(fs.f_frsize);
  }

 private:
  // Where a log ends, and its last segment while that may grow.
  struct Tail {
    int64_t end = 0;
    std::vector<int32_t> open;  // its ids; empty: it does not
  };
  using LogName = std::pair<uint64_t, int64_t>;  // uid, branch
  // What a group's earlier writes have changed, for the checks of its later ones.
  struct Group {
    rocksdb::WriteBatch batch;
    std::map<std::string, std::optional<uint64_t>> uids;
    absl::flat_hash_map<LogName, Tail> tails;
  };

  // What was written, for the checks of later groups: with many streams, reading it back would be most of their work.
  void Remember(Group& group, bool written) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (!written || uids_.size() + tails_.size() > kMostRemembered) {
      uids_.clear();
      tails_.clear();
    }
    if (!written) return;
    for (const auto& [id, uid] : group.uids) {
      if (uid) {
        uids_[id] = *uid;
      } else {
        uids_.erase(id);
      }
    }
    for (auto& [log, tail] : group.tails) tails_[log] = std::move(tail);
  }

  static absl::Status Gone(const SessionKey& key) {
    return absl::NotFoundError(StrCat("session '", key.id, "' does not exist any more"));
  }

  // Checks a write and adds it to the group. What a failed one left in the batch is to be taken back.
  absl::Status Stage(const SessionWrite& w, Group* g) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_)
      ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    RETURN_IF_ERROR(Failed());
    auto found = g->uids.find(w.key.id);
    if (found == g->uids.end()) {
      std::optional<uint64_t> uid;
      if (const auto known = uids_.find(w.key.id); known != uids_.end()) {
        uid = known->second;
      } else {
        ASSIGN_OR_RETURN(uid, RocksDbReader(o_).Uid(w.key.id));
      }
      found = g->uids.emplace(w.key.id, uid).first;
    }
    const std::optional<uint64_t> uid = found->second;
    if (w.kind == SessionWrite::Kind::kCreate) {
      if (uid) return absl::AlreadyExistsError(StrCat("session '", w.key.id, "' exists already"));
    } else if (uid != w.key.uid) {
      return Gone(w.key);
    }
    if (w.kind == SessionWrite::Kind::kRemove) {
      RETURN_IF_ERROR(StageRemove(w.key, g));
      if (w.removal) {
        const std::string k = RequestKey(0, RemovalName(w.key.id, w.removal->request_id));
        g->batch.Put(o_.cf.requests, k, SealRecord(RecordType::kRequest, kRecordVersion, k, w.removal->record));
      }
      found->second.reset();
      return absl::OkStatus();
    }
    if (w.references) RETURN_IF_ERROR(RocksDbReferences(o_).Replace(w.key, *w.references, &g->batch));
    if (w.kept_logs) RETURN_IF_ERROR(RocksDbReferences(o_).Trim(w.key, *w.kept_logs, &g->batch));
    if (w.position) RETURN_IF_ERROR(StageAppend(w, g));
    found->second = w.key.uid;
    if (w.header) {
      const std::string k = SessionDbKey(w.key);
      g->batch.Put(o_.cf.sessions, k, SealRecord(RecordType::kSession, kRecordVersion, k, *w.header));
    }
    for (const auto& [request_id, record] : w.requests) {
      const std::string k = RequestKey(w.key.uid, request_id);
      g->batch.Put(o_.cf.requests, k, SealRecord(RecordType::kRequest, kRecordVersion, k, record));
    }
    return absl::OkStatus();
  }

  absl::Status StageAppend(const SessionWrite& w, Group* g) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_)
      ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    const LogName log{w.key.uid, w.branch};
    std::optional<Tail> stored;
    if (const auto staged = g->tails.find(log); staged != g->tails.end()) {
      stored = staged->second;
    } else if (const auto known = tails_.find(log); known != tails_.end()) {
      stored = known->second;
    } else {
      ASSIGN_OR_RETURN(const std::optional<int64_t> end, RocksDbReader(o_).LogEnd(w.key, w.branch));
      if (end) stored = Tail{*end, {}};
    }
    const int64_t end = stored ? stored->end : w.log_begin;
    if (end != *w.position) {
      return absl::AbortedError(
          StrCat("session '", w.key.id, "': the log ends at position ", end, ", the writer expects ", *w.position));
    }
    if (!stored && w.ids.empty()) return absl::OkStatus();
    Tail tail = stored ? *std::move(stored) : Tail();
    if (w.ids.empty()) {
      g->tails[log] = std::move(tail);
      return absl::OkStatus();
    }
    if (tail.open.size() + w.ids.size() > kOpenSegmentIds) tail.open.clear();
    tail.end = end + static_cast<int64_t>(w.ids.size());
    if (w.ids.size() < kOpenSegmentIds) {
      tail.open.insert(tail.open.end(), w.ids.begin(), w.ids.end());
      PutSegment(log, tail.end - static_cast<int64_t>(tail.open.size()), tail.open, g);
    } else {
      for (size_t at = 0; at < w.ids.size(); at += kMaxSegmentIds) {
        const size_t n = std::min(kMaxSegmentIds, w.ids.size() - at);
        PutSegment(log, end + static_cast<int64_t>(at), std::span(w.ids).subspan(at, n), g);
      }
    }
    if (tail.open.size() == kOpenSegmentIds) tail.open.clear();
    g->tails[log] = std::move(tail);
    return absl::OkStatus();
  }

  void PutSegment(const LogName& log, int64_t start, std::span<const int32_t> ids, Group* g)
      ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    const std::string k = NumberedKey(log.first, log.second, start);
    const std::string_view bytes(reinterpret_cast<const char*>(ids.data()), ids.size_bytes());
    g->batch.Put(o_.cf.log, k, SealRecord(RecordType::kLog, kRecordVersion, k, bytes));
  }

  absl::Status StageRemove(const SessionKey& key, Group* g) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_)
      ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    RETURN_IF_ERROR(RocksDbReferences(o_).Remove(key, &g->batch));
    const std::string prefix = UidPrefix(key.uid);
    const auto keys = RocksDbReader(o_).Keys(o_.cf.requests, prefix, kMaxSingleDeletes + 1);
    if (!keys.ok() || keys->size() > kMaxSingleDeletes) {
      g->batch.DeleteRange(o_.cf.requests, prefix, PrefixEnd(prefix));
    } else {
      for (const auto& k : *keys) g->batch.Delete(o_.cf.requests, k);
    }
    g->batch.Delete(o_.cf.sessions, SessionDbKey(key));
    return absl::OkStatus();
  }

  absl::Status Room() {
    const int64_t free = FreeBytes();
    if (free >= 0 && free < options_.min_free_bytes) {
      return absl::ResourceExhaustedError(StrCat("no space left for the store in '", options_.dir, "': ", free,
                                                 " bytes are free, at least ", options_.min_free_bytes,
                                                 " are needed; nothing was written"));
    }
    return absl::OkStatus();
  }

  absl::Status Write(rocksdb::WriteBatch* batch, bool sync) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_)
      ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    RETURN_IF_ERROR(Failed());
    if (batch->Count() == 0 && !sync) return absl::OkStatus();
    RETURN_IF_ERROR(Room());
    const uint64_t before = o_.db->GetLatestSequenceNumber();
    rocksdb::WriteOptions write;
    write.sync = sync;
    const absl::Time begin = absl::Now();
    rocksdb::Status s = o_.db->Write(write, batch);
    if (const rocksdb::IOStatus synced = guard_->status(); !synced.ok()) s = synced;
    if (s.ok()) {
      if (sync && options_.on_sync) options_.on_sync(absl::Now() - begin);
      return absl::OkStatus();
    }
    if (s.IsNoSpace()) {
      out_of_space_ = true;
      written_ = before;
      return NoSpace(s.ToString());
    }
    absl::MutexLock lock(&failed_mu_);
    failed_ = Broken(s);
    return failed_;
  }

  absl::Status Broken(const rocksdb::Status& why) const {
    return absl::UnavailableError(StrCat("the store in '", options_.dir, "' has failed and is closed (", why.ToString(),
                                         "); what was acknowledged is on disk, restart the server"));
  }

  absl::Status NoSpace(std::string_view why) const {
    return absl::ResourceExhaustedError(StrCat("no space left for the store in '", options_.dir, "' (", why,
                                               "); nothing was acknowledged, free some space"));
  }

  // After a write found no space RocksDB's log ends in a torn record and its files refuse more: with room again, open
  // it anew, which reads what is on disk.
  absl::Status ReopenIfNeeded() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) ABSL_LOCKS_EXCLUDED(db_mu_) {
    if (!out_of_space_) return absl::OkStatus();
    const int64_t free = FreeBytes();
    const int64_t needed = std::max(options_.min_free_bytes, kReopenBytes);
    if (free >= 0 && free < needed) return NoSpace(StrCat(free, " bytes are free, at least ", needed, " are needed"));
    absl::WriterMutexLock lock(&db_mu_);
    Close();
    guard_->Reset();
    // Where only the sync found no space, what was refused is in the log all the same.
    const absl::Status cut = CutLogAfter(options_, written_);
    auto opened = cut.ok() ? OpenDb(options_) : absl::StatusOr<OpenedDb>(cut);
    if (!opened.ok()) {
      const std::string why(opened.status().message());
      closed_ = absl::IsResourceExhausted(opened.status())
                    ? NoSpace(why)
                    : absl::UnavailableError(StrCat("the store in '", options_.dir, "' is closed, since opening it ",
                                                    "again after it had found no space failed (", why,
                                                    "); what was acknowledged is on disk, each call tries again"));
      return closed_;
    }
    o_ = *std::move(opened);
    out_of_space_ = false;
    uids_.clear();
    tails_.clear();
    return absl::OkStatus();
  }

  // Reads go on in a database that found no space. Where opening it anew found none either there is nothing to read
  // from, and they try again: whoever wants to write reads first.
  absl::Status OpenForReading() ABSL_LOCKS_EXCLUDED(mu_, db_mu_) {
    {
      absl::ReaderMutexLock lock(&db_mu_);
      if (o_.db != nullptr) return absl::OkStatus();
    }
    absl::MutexLock lock(&mu_);
    return ReopenIfNeeded();
  }

  void Close() ABSL_EXCLUSIVE_LOCKS_REQUIRED(db_mu_) {
    if (o_.db == nullptr) return;
    for (auto* handle : o_.handles) o_.db->DestroyColumnFamilyHandle(handle);
    o_.db->Close().PermitUncheckedError();
    o_ = {};
  }

  absl::StatusOr<RocksDbReader> Reader() const ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    RETURN_IF_ERROR(Failed());
    return RocksDbReader(o_);
  }

  // Why nothing can be read or written.
  absl::Status Failed() const ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    if (o_.db == nullptr) return closed_;
    if (const rocksdb::IOStatus synced = guard_->status(); !synced.ok() && !synced.IsNoSpace()) return Broken(synced);
    absl::MutexLock lock(&failed_mu_);
    return failed_;
  }

  const RocksDbStoreOptions options_;
  const std::unique_ptr<SyncGuard> guard_;
  absl::Mutex mu_;     // orders mutations; before db_mu_
  absl::Mutex db_mu_;  // written only to open the database anew
  OpenedDb o_ ABSL_GUARDED_BY(db_mu_);
  absl::Status closed_ ABSL_GUARDED_BY(db_mu_);  // why, while o_.db is null
  bool out_of_space_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t written_ ABSL_GUARDED_BY(mu_) = 0;  // sequence number before the write that found no space
  // Of sessions written lately. Nobody else writes the database.
  std::unordered_map<std::string, uint64_t> uids_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<LogName, Tail> tails_ ABSL_GUARDED_BY(mu_);
  mutable absl::Mutex failed_mu_;
  absl::Status failed_ ABSL_GUARDED_BY(failed_mu_);  // once not OK, for good
};

}  // namespace

absl::StatusOr<std::unique_ptr<SessionStore>> OpenRocksDbStore(RocksDbStoreOptions options) {
  auto guard = std::make_unique<SyncGuard>(options.env);
  options.env = guard->env();
  ASSIGN_OR_RETURN(OpenedDb opened, OpenDb(options));
  return std::make_unique<RocksDbStore>(std::move(options), std::move(guard), std::move(opened));
}

}  // namespace smt
