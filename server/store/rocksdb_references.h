// Who reads whose log and snapshots: keeps what is referred to when its session goes, and removes it with its last
// reader. Not for others than RocksDbStore, which orders all mutations.
//
//   'r' owner kind branch position reader   one for each reference, to look up who reads an owner
//   'm' reader                              all that a session refers to
//   'n' owner branch position               names a snapshot that is there (rocksdb_internal.h)
//   'd' owner                               the owner is deleted; what is left of it waits for its last reader
#pragma once

#include <rocksdb/write_batch.h>

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/store/rocksdb_internal.h"
#include "server/store/session_store.h"

namespace smt::store_internal {

// Sees what is written, not what `batch` holds so far.
class RocksDbReferences {
 public:
  explicit RocksDbReferences(const OpenedDb& db) : db_(db) {}

  // Replaces what `reader` refers to. NOT_FOUND naming the reference that leads nowhere.
  absl::Status Replace(const SessionKey& reader, std::span<const StoreReference> references,
                       rocksdb::WriteBatch* batch) const;
  // Removes the log, snapshots and references of a session, but for what others refer to.
  absl::Status Remove(const SessionKey& key, rocksdb::WriteBatch* batch) const;
  // Removes what is neither kept nor referred to.
  absl::Status Trim(const SessionKey& key, const SessionWrite::KeptLogs& kept, rocksdb::WriteBatch* batch) const;
  // Whether anyone refers to this snapshot.
  absl::StatusOr<bool> Holds(uint64_t owner, const SnapshotName& name) const;

 private:
  absl::StatusOr<std::vector<StoreReference>> Of(uint64_t reader) const;
  absl::Status Check(const StoreReference& reference) const;
  // Removes references and, where their owner is deleted, what nobody refers to any more.
  absl::Status Release(uint64_t reader, std::span<const StoreReference> gone, rocksdb::WriteBatch* batch) const;
  // Removes what no key but those of `gone` refers to. Gives whether anything is still referred to.
  absl::StatusOr<bool> RemoveUnreferenced(uint64_t owner, const std::set<std::string>& gone,
                                          rocksdb::WriteBatch* batch) const;

  const OpenedDb& db_;
};

}  // namespace smt::store_internal
