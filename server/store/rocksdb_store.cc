// One mutex orders all mutations: check, then one WriteBatch for the group, then one sync. Reads run beside them:
// RocksDB gives each a consistent view, and only a session's one writer changes what its own reads depend on.
#include "server/store/rocksdb_store.h"

#include <rocksdb/env.h>
#include <rocksdb/write_batch.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <map>
#include <set>

#include "absl/base/thread_annotations.h"

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "model/base/status_macros.h"
#include "server/base/strings.h"
#include "server/store/record_format.h"
#include "server/store/rocksdb_internal.h"

namespace smt {
namespace {

using namespace store_internal;  // NOLINT: the other half of this class
using rocksdb::Slice;

constexpr uint16_t kRecordVersion = 1;
constexpr size_t kMaxSegmentIds = 4096;  // a reader decodes whole segments
constexpr int64_t kReopenBytes = int64_t{8} << 20;
constexpr size_t kMaxSingleDeletes = 1024;  // beyond it a range tombstone is cheaper

std::string_view View(const Slice& s) { return {s.data(), s.size()}; }

// "session 'a': <what>", keeping the code.
absl::Status About(const SessionKey& key, std::string_view what, const absl::Status& s) {
  return absl::Status(s.code(), StrCat("session '", key.id, "': ", what, ": ", std::string(s.message())));
}

class RocksDbStore final : public SessionStore {
 public:
  RocksDbStore(RocksDbStoreOptions options, OpenedDb opened) : options_(std::move(options)), o_(std::move(opened)) {}

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
    for (size_t i = 0; i < writes.size(); ++i) out[i] = Stage(writes[i], &group);
    const absl::Status written = Write(&group.batch, sync);
    if (!written.ok()) {
      for (auto& s : out) {
        if (s.ok()) s = written;
      }
    }
    return out;
  }

  absl::StatusOr<StoredSession> Find(std::string_view id) override {
    absl::ReaderMutexLock lock(&db_mu_);
    RETURN_IF_ERROR(Failed());
    auto it = Scan(o_.cf.sessions, std::string(id) + '\0');
    if (!it->Valid()) {
      RETURN_IF_ERROR(FromRocks(it->status(), StrCat("session '", id, "'")));
      return absl::NotFoundError(StrCat("session '", id, "' does not exist"));
    }
    return ReadSession(*it);
  }

  absl::StatusOr<std::vector<StoredSession>> List(std::string_view after, size_t limit) override {
    absl::ReaderMutexLock lock(&db_mu_);
    RETURN_IF_ERROR(Failed());
    std::vector<StoredSession> out;
    auto it = ScanFrom(o_.cf.sessions, after.empty() ? "" : std::string(after) + '\x01', "");
    for (; it->Valid() && out.size() < limit; it->Next()) out.push_back(ReadSession(*it));
    RETURN_IF_ERROR(FromRocks(it->status(), "listing sessions"));
    return out;
  }

  absl::StatusOr<int64_t> Count() override {
    absl::ReaderMutexLock lock(&db_mu_);
    RETURN_IF_ERROR(Failed());
    int64_t n = 0;
    auto it = ScanFrom(o_.cf.sessions, "", "");
    for (; it->Valid(); it->Next()) ++n;
    RETURN_IF_ERROR(FromRocks(it->status(), "counting sessions"));
    return n;
  }

  absl::StatusOr<int64_t> LogEnd(const SessionKey& key, int64_t branch) override {
    absl::ReaderMutexLock lock(&db_mu_);
    RETURN_IF_ERROR(Failed());
    ASSIGN_OR_RETURN(std::optional<int64_t> end, StoredLogEnd(key, branch));
    return end.value_or(0);
  }

  absl::StatusOr<std::vector<int32_t>> ReadLog(const SessionKey& key, int64_t branch, int64_t first,
                                               int64_t last) override {
    absl::ReaderMutexLock lock(&db_mu_);
    RETURN_IF_ERROR(Failed());
    std::vector<int32_t> out;
    if (first < 1 || last < first) return out;
    const std::string prefix = UidPrefix(key.uid);
    std::string branch_prefix = prefix;
    AppendBigEndian(&branch_prefix, static_cast<uint64_t>(branch));
    rocksdb::ReadOptions read = ReadOptions();
    const std::string bound = PrefixEnd(branch_prefix);
    const Slice upper(bound), lower(branch_prefix);
    read.iterate_upper_bound = &upper;
    read.iterate_lower_bound = &lower;
    std::unique_ptr<rocksdb::Iterator> it(o_.db->NewIterator(read, o_.cf.log));
    out.reserve(static_cast<size_t>(last - first + 1));
    int64_t next = first;  // the position wanted next
    for (it->SeekForPrev(NumberedKey(key.uid, branch, first - 1)); it->Valid() && next <= last; it->Next()) {
      ASSIGN_OR_RETURN(const Segment segment, ReadSegment(key, *it));
      if (segment.start + 1 > next || segment.end() < next) break;
      const int64_t skip = next - 1 - segment.start;
      const int64_t take = std::min(segment.end(), last) - next + 1;
      const size_t at = out.size();
      out.resize(at + static_cast<size_t>(take));
      std::memcpy(out.data() + at, segment.ids.data() + skip * 4, static_cast<size_t>(take) * 4);
      next += take;
    }
    RETURN_IF_ERROR(FromRocks(it->status(), StrCat("session '", key.id, "': log at position ", next)));
    if (next <= last) {
      return absl::DataLossError(
          StrCat("session '", key.id, "': the log has no id at position ", next, ", which was asked for up to ", last));
    }
    return out;
  }

  absl::StatusOr<std::string> GetRequest(const SessionKey& key, std::string_view request_id) override {
    absl::ReaderMutexLock lock(&db_mu_);
    return ReadRequest(key, request_id);
  }

  absl::StatusOr<std::vector<StoredRequest>> ListRequests(std::string* cursor, size_t limit) override {
    absl::ReaderMutexLock lock(&db_mu_);
    RETURN_IF_ERROR(Failed());
    std::vector<StoredRequest> out;
    auto it = ScanFrom(o_.cf.requests, cursor->empty() ? "" : *cursor + '\0', "");
    for (; it->Valid() && out.size() < limit; it->Next()) {
      const std::string_view key = View(it->key());
      *cursor = std::string(key);
      if (key.size() < 8) continue;
      out.push_back(
          {ReadBigEndian(key), std::string(key.substr(8)), Payload(RecordType::kRequest, key, View(it->value()))});
    }
    if (!it->Valid()) cursor->clear();
    RETURN_IF_ERROR(FromRocks(it->status(), "listing requests"));
    return out;
  }

  absl::Status RemoveRequests(std::span<const StoredRequest> requests) override {
    absl::MutexLock lock(&mu_);
    RETURN_IF_ERROR(ReopenIfNeeded());
    absl::ReaderMutexLock db_lock(&db_mu_);
    rocksdb::WriteBatch batch;
    for (const auto& r : requests) {
      const auto now = ReadRequest({"", r.uid}, r.request_id);
      if (now.ok() && r.record.ok() && *now == *r.record) batch.Delete(o_.cf.requests, RequestKey(r.uid, r.request_id));
    }
    return Write(&batch, false);
  }

  absl::Status PutSnapshot(const SessionKey& key, const SnapshotName& name, std::string_view bytes, int keep) override {
    absl::MutexLock lock(&mu_);
    RETURN_IF_ERROR(ReopenIfNeeded());
    absl::ReaderMutexLock db_lock(&db_mu_);
    RETURN_IF_ERROR(Failed());
    ASSIGN_OR_RETURN(const std::optional<uint64_t> uid, StoredUid(key.id));
    if (uid != key.uid) return Gone(key);
    ASSIGN_OR_RETURN(std::vector<SnapshotName> names, SnapshotNames(key));
    rocksdb::WriteBatch batch;
    int newer = 0, kept = 1;
    for (const auto& other : names) newer += other.branch == name.branch && other.position > name.position;
    if (newer >= keep) return absl::OkStatus();
    for (const auto& other : names) {  // newest first
      if (other == name) continue;
      if (other.branch == name.branch && kept++ < keep) continue;
      batch.Delete(o_.cf.snapshots, NumberedKey(key.uid, other.branch, other.position));
    }
    const std::string db_key = NumberedKey(key.uid, name.branch, name.position);
    batch.Put(o_.cf.snapshots, db_key, SealRecord(RecordType::kSnapshot, kRecordVersion, db_key, bytes));
    return Write(&batch, false);
  }

  absl::StatusOr<std::vector<SnapshotName>> ListSnapshots(const SessionKey& key) override {
    absl::ReaderMutexLock lock(&db_mu_);
    return SnapshotNames(key);
  }

  absl::StatusOr<std::string> GetSnapshot(const SessionKey& key, const SnapshotName& name) override {
    absl::ReaderMutexLock lock(&db_mu_);
    return Get(o_.cf.snapshots, RecordType::kSnapshot, NumberedKey(key.uid, name.branch, name.position), key,
               StrCat("snapshot at position ", name.position));
  }

  absl::Status Health() override {
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
  struct Segment {
    int64_t start = 0;
    std::string_view ids;  // int32 little-endian
    int64_t end() const { return start + static_cast<int64_t>(ids.size() / 4); }
  };
  // What a group's earlier writes have changed, for the checks of its later ones.
  struct Group {
    rocksdb::WriteBatch batch;
    std::map<std::string, std::optional<uint64_t>> uids;
    std::map<std::pair<uint64_t, int64_t>, int64_t> ends;  // of logs, by uid and branch
    std::set<uint64_t> touched;                            // uids with writes in the batch
  };

  absl::StatusOr<std::vector<SnapshotName>> SnapshotNames(const SessionKey& key) ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    RETURN_IF_ERROR(Failed());
    std::vector<SnapshotName> out;
    auto it = Scan(o_.cf.snapshots, UidPrefix(key.uid));
    for (; it->Valid(); it->Next()) {
      const std::string_view k = View(it->key());
      if (k.size() != 24) continue;
      out.push_back(
          {static_cast<int64_t>(ReadBigEndian(k.substr(8))), static_cast<int64_t>(ReadBigEndian(k.substr(16)))});
    }
    RETURN_IF_ERROR(FromRocks(it->status(), StrCat("session '", key.id, "': listing snapshots")));
    std::reverse(out.begin(), out.end());
    return out;
  }

  absl::StatusOr<std::string> ReadRequest(const SessionKey& key, std::string_view request_id)
      ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    const std::string db_key = RequestKey(key.uid, request_id);
    return Get(o_.cf.requests, RecordType::kRequest, db_key, key, StrCat("request '", request_id, "'"));
  }

  static rocksdb::ReadOptions ReadOptions() {
    rocksdb::ReadOptions read;
    read.verify_checksums = true;
    return read;
  }

  static absl::Status Gone(const SessionKey& key) {
    return absl::NotFoundError(StrCat("session '", key.id, "' does not exist any more"));
  }

  // An iterator and the bound it points to.
  struct Cursor {
    struct Bound {
      std::string end;
      Slice slice;
    };
    std::unique_ptr<Bound> bound;
    std::unique_ptr<rocksdb::Iterator> it;
    rocksdb::Iterator* operator->() const { return it.get(); }
    rocksdb::Iterator& operator*() const { return *it; }
  };
  // Keys from `from` up to before `end` (empty: to the last), standing on the first.
  Cursor ScanFrom(rocksdb::ColumnFamilyHandle* cf, const std::string& from, std::string end)
      ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    Cursor out{std::make_unique<Cursor::Bound>(), nullptr};
    out.bound->end = std::move(end);
    out.bound->slice = Slice(out.bound->end);
    rocksdb::ReadOptions read = ReadOptions();
    if (!out.bound->end.empty()) read.iterate_upper_bound = &out.bound->slice;
    out.it.reset(o_.db->NewIterator(read, cf));
    out.it->Seek(from);
    return out;
  }
  Cursor Scan(rocksdb::ColumnFamilyHandle* cf, const std::string& prefix) ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    return ScanFrom(cf, prefix, PrefixEnd(prefix));
  }

  absl::Status FromRocks(const rocksdb::Status& s, std::string_view what) {
    if (s.ok()) return absl::OkStatus();
    const std::string text = StrCat(what, ": ", s.ToString());
    if (s.IsCorruption()) return absl::DataLossError(text);
    if (s.IsNotFound()) return absl::NotFoundError(text);
    return absl::UnavailableError(text);
  }

  static absl::StatusOr<std::string> Payload(RecordType type, std::string_view key, std::string_view record) {
    ASSIGN_OR_RETURN(const OpenedRecord opened, OpenRecord(type, kRecordVersion, key, record));
    return std::string(opened.payload);
  }

  StoredSession ReadSession(rocksdb::Iterator& it) {
    const std::string_view k = View(it.key());
    StoredSession out{{}, absl::DataLossError("a session's key is damaged")};
    const size_t nul = k.find('\0');
    if (nul == std::string_view::npos || k.size() != nul + 9) return out;
    out.key = {std::string(k.substr(0, nul)), ReadBigEndian(k.substr(nul + 1))};
    out.header = Payload(RecordType::kSession, k, View(it.value()));
    if (!out.header.ok()) out.header = About(out.key, "its header is damaged", out.header.status());
    return out;
  }

  absl::StatusOr<Segment> ReadSegment(const SessionKey& key, rocksdb::Iterator& it) {
    const std::string_view k = View(it.key());
    Segment out;
    out.start = static_cast<int64_t>(ReadBigEndian(k.substr(16)));
    auto opened = OpenRecord(RecordType::kLog, kRecordVersion, k, View(it.value()));
    if (!opened.ok()) {
      return About(key, StrCat("the log after position ", out.start, " is damaged"), opened.status());
    }
    out.ids = opened->payload;
    return out;
  }

  absl::StatusOr<std::string> Get(rocksdb::ColumnFamilyHandle* cf, RecordType type, const std::string& db_key,
                                  const SessionKey& key, const std::string& what) ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    RETURN_IF_ERROR(Failed());
    rocksdb::PinnableSlice value;
    const rocksdb::Status s = o_.db->Get(ReadOptions(), cf, db_key, &value);
    if (s.IsNotFound()) return absl::NotFoundError(StrCat("session '", key.id, "' has no ", what));
    RETURN_IF_ERROR(FromRocks(s, StrCat("session '", key.id, "': ", what)));
    auto payload = Payload(type, db_key, View(value));
    if (!payload.ok()) return About(key, StrCat(what, " is damaged"), payload.status());
    return payload;
  }

  absl::StatusOr<std::optional<uint64_t>> StoredUid(const std::string& id) ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    auto it = Scan(o_.cf.sessions, id + '\0');
    RETURN_IF_ERROR(FromRocks(it->status(), StrCat("session '", id, "'")));
    if (!it->Valid()) return std::optional<uint64_t>();
    return std::optional<uint64_t>(ReadSession(*it).key.uid);
  }

  absl::StatusOr<std::optional<int64_t>> StoredLogEnd(const SessionKey& key, int64_t branch)
      ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    std::string prefix = UidPrefix(key.uid);
    AppendBigEndian(&prefix, static_cast<uint64_t>(branch));
    rocksdb::ReadOptions read = ReadOptions();
    const Slice lower(prefix);
    read.iterate_lower_bound = &lower;
    std::unique_ptr<rocksdb::Iterator> it(o_.db->NewIterator(read, o_.cf.log));
    it->SeekForPrev(NumberedKey(key.uid, branch, -1));
    RETURN_IF_ERROR(FromRocks(it->status(), StrCat("session '", key.id, "': log")));
    if (!it->Valid()) return std::optional<int64_t>();
    ASSIGN_OR_RETURN(const Segment segment, ReadSegment(key, *it));
    return std::optional<int64_t>(segment.end());
  }

  // Checks a write and adds it to the group; adds nothing when it fails.
  absl::Status Stage(const SessionWrite& w, Group* g) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_)
      ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    RETURN_IF_ERROR(Failed());
    auto found = g->uids.find(w.key.id);
    if (found == g->uids.end()) {
      ASSIGN_OR_RETURN(const std::optional<uint64_t> uid, StoredUid(w.key.id));
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
      found->second.reset();
      return absl::OkStatus();
    }
    if (w.position) RETURN_IF_ERROR(StageAppend(w, g));
    found->second = w.key.uid;
    g->touched.insert(w.key.uid);
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
    auto end = g->ends.find({w.key.uid, w.branch});
    if (end == g->ends.end()) {
      ASSIGN_OR_RETURN(const std::optional<int64_t> stored, StoredLogEnd(w.key, w.branch));
      end =
          g->ends.emplace(std::make_pair(w.key.uid, w.branch), stored.value_or(w.branch == 0 ? 0 : *w.position)).first;
    }
    if (end->second != *w.position) {
      return absl::AbortedError(StrCat("session '", w.key.id, "': the log ends at position ", end->second,
                                       ", the writer expects ", *w.position));
    }
    for (size_t at = 0; at < w.ids.size(); at += kMaxSegmentIds) {
      const size_t n = std::min(kMaxSegmentIds, w.ids.size() - at);
      const std::string k = NumberedKey(w.key.uid, w.branch, *w.position + static_cast<int64_t>(at));
      const std::string_view ids(reinterpret_cast<const char*>(w.ids.data() + at), n * 4);
      g->batch.Put(o_.cf.log, k, SealRecord(RecordType::kLog, kRecordVersion, k, ids));
    }
    end->second += static_cast<int64_t>(w.ids.size());
    return absl::OkStatus();
  }

  absl::Status StageRemove(const SessionKey& key, Group* g) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_)
      ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    const std::string prefix = UidPrefix(key.uid), end = PrefixEnd(prefix);
    for (auto* cf : {o_.cf.log, o_.cf.requests, o_.cf.snapshots}) {
      std::vector<std::string> keys;
      // Earlier writes of this group are not in the database yet: a range covers them too.
      bool range = g->touched.count(key.uid) > 0;
      if (!range) {
        auto it = Scan(cf, prefix);
        for (; it->Valid() && keys.size() <= kMaxSingleDeletes; it->Next()) keys.push_back(it->key().ToString());
        range = !it->status().ok() || keys.size() > kMaxSingleDeletes;
      }
      if (range) {
        g->batch.DeleteRange(cf, prefix, end);
      } else {
        for (const auto& k : keys) g->batch.Delete(cf, k);
      }
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
    rocksdb::WriteOptions write;
    write.sync = sync;
    const absl::Time begin = absl::Now();
    const rocksdb::Status s = o_.db->Write(write, batch);
    if (s.ok()) {
      if (sync && options_.on_sync) options_.on_sync(absl::Now() - begin);
      return absl::OkStatus();
    }
    if (s.IsNoSpace()) {
      out_of_space_ = true;
      return NoSpace(s.ToString());
    }
    absl::MutexLock lock(&failed_mu_);
    failed_ = absl::UnavailableError(StrCat("the store in '", options_.dir, "' has failed and is closed (",
                                            s.ToString(), "); what was acknowledged is on disk, restart the server"));
    return failed_;
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
    auto opened = OpenDb(options_);
    if (!opened.ok()) return NoSpace(std::string(opened.status().message()));
    o_ = *std::move(opened);
    out_of_space_ = false;
    return absl::OkStatus();
  }

  void Close() ABSL_EXCLUSIVE_LOCKS_REQUIRED(db_mu_) {
    if (o_.db == nullptr) return;
    for (auto* handle : o_.handles) o_.db->DestroyColumnFamilyHandle(handle);
    o_.db->Close().PermitUncheckedError();
    o_ = {};
  }

  // Why nothing can be read or written.
  absl::Status Failed() const ABSL_SHARED_LOCKS_REQUIRED(db_mu_) {
    if (o_.db == nullptr) return NoSpace("closed until there is room");
    absl::MutexLock lock(&failed_mu_);
    return failed_;
  }

  const RocksDbStoreOptions options_;
  absl::Mutex mu_;     // orders mutations; before db_mu_
  absl::Mutex db_mu_;  // written only to open the database anew
  OpenedDb o_ ABSL_GUARDED_BY(db_mu_);
  bool out_of_space_ ABSL_GUARDED_BY(mu_) = false;
  mutable absl::Mutex failed_mu_;
  absl::Status failed_ ABSL_GUARDED_BY(failed_mu_);  // once not OK, for good
};

}  // namespace

absl::StatusOr<std::unique_ptr<SessionStore>> OpenRocksDbStore(RocksDbStoreOptions options) {
  ASSIGN_OR_RETURN(OpenedDb opened, OpenDb(options));
  return std::make_unique<RocksDbStore>(std::move(options), std::move(opened));
}

}  // namespace smt
