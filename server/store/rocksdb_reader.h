// Reads of an open session database, each of one consistent view. Not for others than RocksDbStore, which locks.
#pragma once

#include <rocksdb/iterator.h>
#include <rocksdb/options.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/store/record_format.h"
#include "server/store/rocksdb_internal.h"
#include "server/store/session_store.h"

namespace smt::store_internal {

// Errors as SessionStore documents them. `db` must stay open while the reader is used.
class RocksDbReader {
 public:
  explicit RocksDbReader(const OpenedDb& db) : db_(db) {}

  absl::StatusOr<StoredSession> Find(std::string_view id) const;
  absl::StatusOr<std::vector<StoredSession>> List(std::string_view after, size_t limit) const;
  absl::StatusOr<int64_t> Count() const;
  // Of the session with this id, if there is one.
  absl::StatusOr<std::optional<uint64_t>> Uid(const std::string& id) const;

  // nullopt: the branch has no log.
  absl::StatusOr<std::optional<int64_t>> LogEnd(const SessionKey& key, int64_t branch) const;
  absl::StatusOr<std::vector<int32_t>> ReadLog(const SessionKey& key, int64_t branch, int64_t first,
                                               int64_t last) const;

  absl::StatusOr<std::string> Request(const SessionKey& key, std::string_view request_id) const;
  absl::StatusOr<std::vector<StoredRequest>> ListRequests(std::string* cursor, size_t limit) const;

  absl::StatusOr<std::vector<SnapshotName>> ListSnapshots(const SessionKey& key) const;
  absl::StatusOr<std::string> Snapshot(const SessionKey& key, const SnapshotName& name) const;

  // A record's payload; nullopt when there is none.
  absl::StatusOr<std::optional<std::string>> Find(rocksdb::ColumnFamilyHandle* cf, RecordType type,
                                                  const std::string& db_key) const;
  // Up to `limit` keys that begin with `prefix`.
  absl::StatusOr<std::vector<std::string>> Keys(rocksdb::ColumnFamilyHandle* cf, const std::string& prefix,
                                                size_t limit) const;

 private:
  struct Segment {
    int64_t start = 0;
    std::string_view ids;  // int32 little-endian
    int64_t end() const { return start + static_cast<int64_t>(ids.size() / 4); }
  };
  // An iterator and the bound it points to.
  struct Cursor {
    struct Bound {
      std::string end;
      rocksdb::Slice slice;
    };
    std::unique_ptr<Bound> bound;
    std::unique_ptr<rocksdb::Iterator> it;
    rocksdb::Iterator* operator->() const { return it.get(); }
    rocksdb::Iterator& operator*() const { return *it; }
  };

  // Keys from `from` up to before `end` (empty: to the last), standing on the first.
  Cursor ScanFrom(rocksdb::ColumnFamilyHandle* cf, const std::string& from, std::string end) const;
  Cursor Scan(rocksdb::ColumnFamilyHandle* cf, const std::string& prefix) const;
  absl::StatusOr<std::string> Get(rocksdb::ColumnFamilyHandle* cf, RecordType type, const std::string& db_key,
                                  const SessionKey& key, const std::string& what) const;
  absl::StatusOr<std::vector<int32_t>> ReadLog(const SessionKey& key, int64_t branch, int64_t first, int64_t last,
                                               rocksdb::ReadOptions read) const;
  static StoredSession ReadSession(rocksdb::Iterator& it);
  static absl::StatusOr<Segment> ReadSegment(const SessionKey& key, rocksdb::Iterator& it);

  const OpenedDb& db_;
};

}  // namespace smt::store_internal
