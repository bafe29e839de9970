#include "server/store/rocksdb_references.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/store/record_format.h"
#include "server/store/rocksdb_reader.h"

namespace smt::store_internal {
namespace {

constexpr size_t kEdgeBytes = 1 + 8 + 1 + 8 + 8 + 8;
constexpr size_t kMaxSingleDeletes = 1024;  // beyond it a range tombstone is cheaper

std::string UidKey(char kind, uint64_t uid) { return std::string(1, kind) + UidPrefix(uid); }

std::string SharedPart(const StoreReference& r) {
  std::string key = UidKey('r', r.owner.uid);
  key.push_back(static_cast<char>(r.kind));
  AppendBigEndian(&key, static_cast<uint64_t>(r.branch));
  AppendBigEndian(&key, static_cast<uint64_t>(r.position));
  return key;
}
std::string EdgeKey(const StoreReference& r, uint64_t reader) { return SharedPart(r) + UidPrefix(reader); }

// Without the owner's id.
StoreReference ParseEdge(std::string_view key) {
  StoreReference r;
  r.owner.uid = ReadBigEndian(key.substr(1));
  r.kind = static_cast<StoreReference::Kind>(key[9]);
  r.branch = static_cast<int64_t>(ReadBigEndian(key.substr(10)));
  r.position = static_cast<int64_t>(ReadBigEndian(key.substr(18)));
  return r;
}

void Put(const OpenedDb& db, const std::string& key, std::string_view payload, rocksdb::WriteBatch* batch) {
  batch->Put(db.cf.references, key, SealRecord(RecordType::kReference, kRecordVersion, key, payload));
}

// The branch and the position that a NumberedKey names.
SnapshotName Numbers(std::string_view key) {
  return {static_cast<int64_t>(ReadBigEndian(key.substr(8))), static_cast<int64_t>(ReadBigEndian(key.substr(16)))};
}

}  // namespace

absl::StatusOr<std::vector<StoreReference>> RocksDbReferences::Of(uint64_t reader) const {
  std::vector<StoreReference> out;
  ASSIGN_OR_RETURN(const std::optional<std::string> payload,
                   RocksDbReader(db_).Find(db_.cf.references, RecordType::kReference, UidKey('m', reader)));
  if (!payload) return out;
  RecordReader r(*payload);
  const uint32_t count = r.U32();
  for (uint32_t i = 0; i < count && r.ok(); ++i) {
    StoreReference& reference = out.emplace_back();
    reference.kind = static_cast<StoreReference::Kind>(r.U8());
    reference.owner.id = r.Str();
    reference.owner.uid = r.U64();
    reference.branch = r.I64();
    reference.position = r.I64();
  }
  if (!r.done()) return absl::DataLossError("the references record's fields do not fit its length");
  return out;
}

absl::Status RocksDbReferences::Check(const StoreReference& r) const {
  const RocksDbReader reader(db_);
  if (r.kind == StoreReference::Kind::kSnapshot) {
    ASSIGN_OR_RETURN(
        const std::vector<std::string> keys,
        reader.Keys(db_.cf.references, SnapshotNameKey(NumberedKey(r.owner.uid, r.branch, r.position)), 1));
    if (!keys.empty()) return absl::OkStatus();
    return absl::NotFoundError(
        StrCat("session '", r.owner.id, "' has no snapshot at position ", r.position, " any more"));
  }
  ASSIGN_OR_RETURN(const std::optional<int64_t> end, reader.LogEnd(r.owner, r.branch));
  if (end && *end >= r.position) return absl::OkStatus();
  return absl::NotFoundError(StrCat("session '", r.owner.id, "' has no log up to position ", r.position, " any more"));
}

absl::Status RocksDbReferences::Replace(const SessionKey& reader, std::span<const StoreReference> references,
                                        rocksdb::WriteBatch* batch) const {
  for (const StoreReference& r : references) RETURN_IF_ERROR(Check(r));
  ASSIGN_OR_RETURN(const std::vector<StoreReference> before, Of(reader.uid));
  RecordWriter w;
  w.U32(static_cast<uint32_t>(references.size()));
  for (const StoreReference& r : references) {
    w.U8(static_cast<uint8_t>(r.kind));
    w.Str(r.owner.id);
    w.U64(r.owner.uid);
    w.I64(r.branch);
    w.I64(r.position);
    const std::string edge = EdgeKey(r, reader.uid);
    Put(db_, edge, "", batch);
  }
  const std::string list = UidKey('m', reader.uid);
  if (references.empty()) {
    batch->Delete(db_.cf.references, list);
  } else {
    Put(db_, list, w.Take(), batch);
  }
  std::vector<StoreReference> gone;
  for (const StoreReference& r : before) {
    if (std::find(references.begin(), references.end(), r) == references.end()) gone.push_back(r);
  }
  return Release(reader.uid, gone, batch);
}

absl::Status RocksDbReferences::Release(uint64_t reader, std::span<const StoreReference> gone,
                                        rocksdb::WriteBatch* batch) const {
  std::set<std::string> edges;
  std::set<uint64_t> owners;
  for (const StoreReference& r : gone) {
    edges.insert(EdgeKey(r, reader));
    owners.insert(r.owner.uid);
  }
  for (const std::string& edge : edges) batch->Delete(db_.cf.references, edge);
  for (const uint64_t owner : owners) {
    const std::string dead = UidKey('d', owner);
    ASSIGN_OR_RETURN(const std::vector<std::string> found, RocksDbReader(db_).Keys(db_.cf.references, dead, 1));
    if (found.empty()) continue;
    ASSIGN_OR_RETURN(const bool kept, RemoveUnreferenced(owner, edges, batch));
    if (!kept) batch->Delete(db_.cf.references, dead);
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> RocksDbReferences::RemoveUnreferenced(uint64_t owner, const std::set<std::string>& gone,
                                                           rocksdb::WriteBatch* batch) const {
  const RocksDbReader reader(db_);
  std::map<int64_t, int64_t> logs;  // branch, up to
  std::set<std::pair<int64_t, int64_t>> snapshots;
  ASSIGN_OR_RETURN(const std::vector<std::string> edges, reader.Keys(db_.cf.references, UidKey('r', owner), SIZE_MAX));
  for (const std::string& key : edges) {
    if (key.size() != kEdgeBytes || gone.count(key) > 0) continue;
    const StoreReference r = ParseEdge(key);
    if (r.kind == StoreReference::Kind::kLog) {
      int64_t& end = logs[r.branch];
      end = std::max(end, r.position);
    } else {
      snapshots.emplace(r.branch, r.position);
    }
  }
  const bool kept = !logs.empty() || !snapshots.empty();
  // Keys of `cf` that begin with `prefix`; remove(key) for each that is to go.
  const auto sweep = [&](rocksdb::ColumnFamilyHandle* cf, const std::string& prefix, auto remove) -> absl::Status {
    const auto keys = reader.Keys(cf, prefix, kept ? SIZE_MAX : kMaxSingleDeletes + 1);
    if (!kept && (!keys.ok() || keys->size() > kMaxSingleDeletes)) {  // also where they cannot be read
      batch->DeleteRange(cf, prefix, PrefixEnd(prefix));
      if (cf == db_.cf.references) batch->DeleteRange(db_.cf.snapshots, UidPrefix(owner), PrefixEnd(UidPrefix(owner)));
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(keys.status());
    for (const std::string& key : *keys) remove(key);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(sweep(db_.cf.log, UidPrefix(owner), [&](const std::string& key) {
    const SnapshotName segment = Numbers(key);
    const auto log = logs.find(segment.branch);
    if (log == logs.end() || segment.position >= log->second) batch->Delete(db_.cf.log, key);
  }));
  RETURN_IF_ERROR(sweep(db_.cf.references, SnapshotNameKey(UidPrefix(owner)), [&](const std::string& key) {
    const SnapshotName name = Numbers(std::string_view(key).substr(1));
    if (snapshots.count({name.branch, name.position}) > 0) return;
    batch->Delete(db_.cf.references, key);
    batch->Delete(db_.cf.snapshots, key.substr(1));
  }));
  return kept;
}

absl::Status RocksDbReferences::Remove(const SessionKey& key, rocksdb::WriteBatch* batch) const {
  ASSIGN_OR_RETURN(const bool kept, RemoveUnreferenced(key.uid, {}, batch));
  if (kept) Put(db_, UidKey('d', key.uid), key.id, batch);
  const auto own = Of(key.uid);
  // Damaged: what it refers to stays for good, which is better than a session that cannot be removed.
  if (absl::IsDataLoss(own.status())) return absl::OkStatus();
  RETURN_IF_ERROR(own.status());
  if (!own->empty()) batch->Delete(db_.cf.references, UidKey('m', key.uid));
  return Release(key.uid, *own, batch);
}

absl::Status RocksDbReferences::Trim(const SessionKey& key, const SessionWrite::KeptLogs& kept,
                                     rocksdb::WriteBatch* batch) const {
  const RocksDbReader reader(db_);
  std::map<int64_t, int64_t> logs = kept.logs;
  ASSIGN_OR_RETURN(const std::vector<std::string> edges,
                   reader.Keys(db_.cf.references, UidKey('r', key.uid), SIZE_MAX));
  for (const std::string& edge : edges) {
    if (edge.size() != kEdgeBytes) continue;
    const StoreReference r = ParseEdge(edge);
    if (r.kind != StoreReference::Kind::kLog) continue;
    int64_t& end = logs[r.branch];
    end = std::max(end, r.position);
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> segments, reader.Keys(db_.cf.log, UidPrefix(key.uid), SIZE_MAX));
  for (const std::string& segment : segments) {
    const SnapshotName start = Numbers(segment);
    if (start.branch >= kept.below) break;
    const auto log = logs.find(start.branch);
    if (log == logs.end() || start.position >= log->second) batch->Delete(db_.cf.log, segment);
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> RocksDbReferences::Holds(uint64_t owner, const SnapshotName& name) const {
  const StoreReference r{StoreReference::Kind::kSnapshot, {"", owner}, name.branch, name.position};
  ASSIGN_OR_RETURN(const std::vector<std::string> keys, RocksDbReader(db_).Keys(db_.cf.references, SharedPart(r), 1));
  return !keys.empty();
}

}  // namespace smt::store_internal
