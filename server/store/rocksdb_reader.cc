#include "server/store/rocksdb_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "model/base/status_macros.h"
#include "model/base/strings.h"

namespace smt::store_internal {
namespace {

using rocksdb::Slice;

std::string_view View(const Slice& s) { return {s.data(), s.size()}; }

// "session 'a': <what>", keeping the code.
absl::Status About(const SessionKey& key, std::string_view what, const absl::Status& s) {
  return absl::Status(s.code(), StrCat("session '", key.id, "': ", what, ": ", std::string(s.message())));
}

rocksdb::ReadOptions Verified() {
  rocksdb::ReadOptions read;
  read.verify_checksums = true;
  return read;
}

absl::Status FromRocks(const rocksdb::Status& s, std::string_view what) {
  if (s.ok()) return absl::OkStatus();
  const std::string text = StrCat(what, ": ", s.ToString());
  if (s.IsCorruption()) return absl::DataLossError(text);
  if (s.IsNotFound()) return absl::NotFoundError(text);
  return absl::UnavailableError(text);
}

std::string BranchPrefix(uint64_t uid, int64_t branch) {
  std::string out = UidPrefix(uid);
  AppendBigEndian(&out, static_cast<uint64_t>(branch));
  return out;
}

absl::StatusOr<std::string> Payload(RecordType type, std::string_view key, std::string_view record) {
  ASSIGN_OR_RETURN(const OpenedRecord opened, OpenRecord(type, kRecordVersion, key, record));
  return std::string(opened.payload);
}

}  // namespace

RocksDbReader::Cursor RocksDbReader::ScanFrom(rocksdb::ColumnFamilyHandle* cf, const std::string& from,
                                              std::string end) const {
  Cursor out{std::make_unique<Cursor::Bound>(), nullptr};
  out.bound->end = std::move(end);
  out.bound->slice = Slice(out.bound->end);
  rocksdb::ReadOptions read = Verified();
  if (!out.bound->end.empty()) read.iterate_upper_bound = &out.bound->slice;
  out.it.reset(db_.db->NewIterator(read, cf));
  out.it->Seek(from);
  return out;
}

RocksDbReader::Cursor RocksDbReader::Scan(rocksdb::ColumnFamilyHandle* cf, const std::string& prefix) const {
  return ScanFrom(cf, prefix, PrefixEnd(prefix));
}

absl::StatusOr<std::string> RocksDbReader::Get(rocksdb::ColumnFamilyHandle* cf, RecordType type,
                                               const std::string& db_key, const SessionKey& key,
                                               const std::string& what) const {
  rocksdb::PinnableSlice value;
  const rocksdb::Status s = db_.db->Get(Verified(), cf, db_key, &value);
  if (s.IsNotFound()) return absl::NotFoundError(StrCat("session '", key.id, "' has no ", what));
  RETURN_IF_ERROR(FromRocks(s, StrCat("session '", key.id, "': ", what)));
  auto payload = Payload(type, db_key, View(value));
  if (!payload.ok()) return About(key, StrCat(what, " is damaged"), payload.status());
  return payload;
}

absl::StatusOr<std::optional<std::string>> RocksDbReader::Find(rocksdb::ColumnFamilyHandle* cf, RecordType type,
                                                               const std::string& db_key) const {
  rocksdb::PinnableSlice value;
  const rocksdb::Status s = db_.db->Get(Verified(), cf, db_key, &value);
  if (s.IsNotFound()) return std::optional<std::string>();
  RETURN_IF_ERROR(FromRocks(s, "reading a record"));
  ASSIGN_OR_RETURN(std::string payload, Payload(type, db_key, View(value)));
  return std::optional<std::string>(std::move(payload));
}

absl::StatusOr<StoredSession> RocksDbReader::Find(std::string_view id) const {
  auto it = Scan(db_.cf.sessions, std::string(id) + '\0');
  if (!it->Valid()) {
    RETURN_IF_ERROR(FromRocks(it->status(), StrCat("session '", id, "'")));
    return absl::NotFoundError(StrCat("session '", id, "' does not exist"));
  }
  return ReadSession(*it);
}

absl::StatusOr<std::vector<StoredSession>> RocksDbReader::List(std::string_view after, size_t limit) const {
  std::vector<StoredSession> out;
  std::string from = after.empty() ? "" : std::string(after) + '\x01';
  {
    auto it = ScanFrom(db_.cf.sessions, from, "");
    for (; it->Valid() && out.size() < limit; it->Next()) out.push_back(ReadSession(*it));
    if (!it->status().IsCorruption()) {
      RETURN_IF_ERROR(FromRocks(it->status(), "listing sessions"));
      return out;
    }
  }
  // A damaged block ends an iterator. Without RocksDB's checksums it goes on, and our own, which covers key and value,
  // says which session is damaged. What is read this way stays out of the cache.
  rocksdb::ReadOptions read;
  read.verify_checksums = false;
  read.fill_cache = false;
  std::unique_ptr<rocksdb::Iterator> it(db_.db->NewIterator(read, db_.cf.sessions));
  out.clear();
  for (it->Seek(from); it->Valid() && out.size() < limit; it->Next()) out.push_back(ReadSession(*it));
  RETURN_IF_ERROR(FromRocks(it->status(), "listing sessions"));
  return out;
}

absl::StatusOr<int64_t> RocksDbReader::Count() const {
  int64_t n = 0;
  auto it = ScanFrom(db_.cf.sessions, "", "");
  for (; it->Valid(); it->Next()) ++n;
  RETURN_IF_ERROR(FromRocks(it->status(), "counting sessions"));
  return n;
}

absl::StatusOr<std::optional<uint64_t>> RocksDbReader::Uid(const std::string& id) const {
  auto it = Scan(db_.cf.sessions, id + '\0');
  RETURN_IF_ERROR(FromRocks(it->status(), StrCat("session '", id, "'")));
  if (!it->Valid()) return std::optional<uint64_t>();
  return std::optional<uint64_t>(ReadSession(*it).key.uid);
}

StoredSession RocksDbReader::ReadSession(rocksdb::Iterator& it) {
  const std::string_view k = View(it.key());
  StoredSession out{{}, absl::DataLossError("a session's key is damaged")};
  const size_t nul = k.find('\0');
  if (nul == std::string_view::npos || k.size() != nul + 9) return out;
  out.key = {std::string(k.substr(0, nul)), ReadBigEndian(k.substr(nul + 1))};
  out.header = Payload(RecordType::kSession, k, View(it.value()));
  if (!out.header.ok()) out.header = About(out.key, "its header is damaged", out.header.status());
  return out;
}

absl::StatusOr<std::optional<int64_t>> RocksDbReader::LogEnd(const SessionKey& key, int64_t branch) const {
  const std::string prefix = BranchPrefix(key.uid, branch);
  rocksdb::ReadOptions read = Verified();
  const Slice lower(prefix);
  read.iterate_lower_bound = &lower;
  std::unique_ptr<rocksdb::Iterator> it(db_.db->NewIterator(read, db_.cf.log));
  it->SeekForPrev(NumberedKey(key.uid, branch, -1));
  RETURN_IF_ERROR(FromRocks(it->status(), StrCat("session '", key.id, "': log")));
  if (!it->Valid()) return std::optional<int64_t>();
  ASSIGN_OR_RETURN(const Segment segment, ReadSegment(key, *it));
  return std::optional<int64_t>(segment.end());
}

absl::StatusOr<std::vector<int32_t>> RocksDbReader::ReadLog(const SessionKey& key, int64_t branch, int64_t first,
                                                            int64_t last) const {
  absl::StatusOr<std::vector<int32_t>> ids = ReadLog(key, branch, first, last, Verified());
  if (!absl::IsDataLoss(ids.status())) return ids;
  // Finding a segment may look at the block behind it, and that may be the damaged one. Without RocksDB's checksums it
  // goes on; our own says of each segment that is taken whether it is whole.
  rocksdb::ReadOptions read;
  read.verify_checksums = false;
  read.fill_cache = false;
  absl::StatusOr<std::vector<int32_t>> again = ReadLog(key, branch, first, last, read);
  return again.ok() ? again : ids;
}

absl::StatusOr<std::vector<int32_t>> RocksDbReader::ReadLog(const SessionKey& key, int64_t branch, int64_t first,
                                                            int64_t last, rocksdb::ReadOptions read) const {
  std::vector<int32_t> out;
  if (first < 1 || last < first) return out;
  const std::string prefix = BranchPrefix(key.uid, branch);
  const std::string bound = PrefixEnd(prefix);
  const Slice upper(bound), lower(prefix);
  read.iterate_upper_bound = &upper;
  read.iterate_lower_bound = &lower;
  std::unique_ptr<rocksdb::Iterator> it(db_.db->NewIterator(read, db_.cf.log));
  out.reserve(static_cast<size_t>(last - first + 1));
  int64_t next = first;  // the position wanted next
  for (it->SeekForPrev(NumberedKey(key.uid, branch, first - 1)); it->Valid(); it->Next()) {
    ASSIGN_OR_RETURN(const Segment segment, ReadSegment(key, *it));
    if (segment.start + 1 > next || segment.end() < next) break;
    const int64_t skip = next - 1 - segment.start;
    const int64_t take = std::min(segment.end(), last) - next + 1;
    const size_t at = out.size();
    out.resize(at + static_cast<size_t>(take));
    std::memcpy(out.data() + at, segment.ids.data() + skip * 4, static_cast<size_t>(take) * 4);
    next += take;
    if (next > last) return out;  // not on to a block that is not needed
  }
  RETURN_IF_ERROR(FromRocks(it->status(), StrCat("session '", key.id, "': log at position ", next)));
  return absl::DataLossError(
      StrCat("session '", key.id, "': the log has no id at position ", next, ", which was asked for up to ", last));
}

absl::StatusOr<RocksDbReader::Segment> RocksDbReader::ReadSegment(const SessionKey& key, rocksdb::Iterator& it) {
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

absl::StatusOr<std::string> RocksDbReader::Request(const SessionKey& key, std::string_view request_id) const {
  const std::string db_key = RequestKey(key.uid, request_id);
  return Get(db_.cf.requests, RecordType::kRequest, db_key, key, StrCat("request '", request_id, "'"));
}

absl::StatusOr<std::vector<StoredRequest>> RocksDbReader::ListRequests(std::string* cursor, size_t limit) const {
  std::vector<StoredRequest> out;
  auto it = ScanFrom(db_.cf.requests, cursor->empty() ? "" : *cursor + '\0', "");
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

absl::StatusOr<std::vector<SnapshotName>> RocksDbReader::ListSnapshots(const SessionKey& key) const {
  std::vector<SnapshotName> out;
  auto it = Scan(db_.cf.references, SnapshotNameKey(UidPrefix(key.uid)));
  for (; it->Valid(); it->Next()) {
    const std::string_view k = View(it->key()).substr(1);
    if (k.size() != 24) continue;
    out.push_back(
        {static_cast<int64_t>(ReadBigEndian(k.substr(8))), static_cast<int64_t>(ReadBigEndian(k.substr(16)))});
  }
  RETURN_IF_ERROR(FromRocks(it->status(), StrCat("session '", key.id, "': listing snapshots")));
  std::reverse(out.begin(), out.end());
  return out;
}

absl::StatusOr<std::string> RocksDbReader::Snapshot(const SessionKey& key, const SnapshotName& name) const {
  return Get(db_.cf.snapshots, RecordType::kSnapshot, NumberedKey(key.uid, name.branch, name.position), key,
             StrCat("snapshot at position ", name.position));
}

absl::StatusOr<std::vector<std::string>> RocksDbReader::Keys(rocksdb::ColumnFamilyHandle* cf, const std::string& prefix,
                                                             size_t limit) const {
  std::vector<std::string> out;
  auto it = Scan(cf, prefix);
  for (; it->Valid() && out.size() < limit; it->Next()) out.push_back(it->key().ToString());
  RETURN_IF_ERROR(FromRocks(it->status(), "listing keys"));
  return out;
}

}  // namespace smt::store_internal
