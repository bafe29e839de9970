// What rocksdb_open.cc, rocksdb_reader.cc and rocksdb_store.cc share. Not for others.
#pragma once

#include <rocksdb/db.h>
#include <rocksdb/write_batch.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/store/rocksdb_store.h"

namespace smt::store_internal {

inline constexpr uint16_t kRecordVersion = 1;

struct Families {
  rocksdb::ColumnFamilyHandle* sessions = nullptr;
  rocksdb::ColumnFamilyHandle* log = nullptr;
  rocksdb::ColumnFamilyHandle* requests = nullptr;
  rocksdb::ColumnFamilyHandle* snapshots = nullptr;
  rocksdb::ColumnFamilyHandle* references = nullptr;
};

struct OpenedDb {
  std::unique_ptr<rocksdb::DB> db;
  std::vector<rocksdb::ColumnFamilyHandle*> handles;  // to be destroyed before db
  Families cf;
};

// Checks the directory and its format, then opens the database.
absl::StatusOr<OpenedDb> OpenDb(const RocksDbStoreOptions& options);

// The names of snapshots, apart from their bytes: an iterator over those would read all of them. `snapshot_key` is the
// snapshot's NumberedKey, or its beginning.
std::string SnapshotNameKey(std::string_view snapshot_key);
void PutSnapshotName(const OpenedDb& db, std::string_view snapshot_key, rocksdb::WriteBatch* batch);

// Keys sort by id, then as numbers. A NUL ends the id, which cannot hold one.
std::string SessionDbKey(const SessionKey& key);
std::string NumberedKey(uint64_t uid, int64_t branch, int64_t position);
std::string RequestKey(uint64_t uid, std::string_view request_id);
std::string UidPrefix(uint64_t uid);
// The first key after all that begin with `prefix`; empty if there is none.
std::string PrefixEnd(std::string prefix);

}  // namespace smt::store_internal
