// What the files rocksdb_*.cc share. Not for others.
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

// Checks the directory, its format and its write-ahead logs, then opens the database.
absl::StatusOr<OpenedDb> OpenDb(const RocksDbStoreOptions& options);

// The parts of that. CheckFormat gives the version of what is there, and begins a new store where there is nothing.
absl::Status CheckDirectory(const std::string& dir);
absl::StatusOr<int> CheckFormat(const std::string& dir);
absl::Status WriteFormat(const std::string& dir);
// Whether opening leaves out nothing that was synced (rocksdb_recovery.cc).
absl::Status CheckLogs(const RocksDbStoreOptions& options);
// Takes writes after this sequence number off the write-ahead log of a database that is closed.
absl::Status CutLogAfter(const RocksDbStoreOptions& options, uint64_t sequence);
rocksdb::DBOptions DbOptions(const RocksDbStoreOptions& options);
std::vector<rocksdb::ColumnFamilyDescriptor> FamiliesOf(const RocksDbStoreOptions& options);
void SyncDirectory(const std::string& dir);

// A copy of an open database as a store of its own (rocksdb_backup.cc).
absl::Status BackupDb(const OpenedDb& opened, const std::string& dir);

absl::Status CannotUse(std::string_view dir, std::string_view why);  // FAILED_PRECONDITION
absl::Status Damaged(std::string_view dir, std::string_view what);   // DATA_LOSS, with what can be done
absl::Status OpenError(const std::string& dir, const rocksdb::Status& s);

// The names of snapshots, apart from their bytes: an iterator over those would read all of them. `snapshot_key` is the
// snapshot's NumberedKey, or its beginning.
std::string SnapshotNameKey(std::string_view snapshot_key);
void PutSnapshotName(const OpenedDb& db, std::string_view snapshot_key, rocksdb::WriteBatch* batch);

// Keys sort by id, then as numbers. A NUL ends the id, which cannot hold one.
std::string SessionDbKey(const SessionKey& key);
std::string NumberedKey(uint64_t uid, int64_t branch, int64_t position);
std::string RequestKey(uint64_t uid, std::string_view request_id);
// As a request of uid 0, which no session has.
std::string RemovalName(std::string_view id, std::string_view request_id);
std::string UidPrefix(uint64_t uid);
// The first key after all that begin with `prefix`; empty if there is none.
std::string PrefixEnd(std::string prefix);

}  // namespace smt::store_internal
