// The way back for a store that does not open, for its files are damaged: keeps what can be read.
//
// The repaired database is made beside the damaged one, which stays as DIR/rocksdb.damaged, and takes its place in one
// step: broken off at any moment, DIR holds one of the two.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "server/store/rocksdb_store.h"

namespace smt {

struct StoreRepair {
  // Where only the end of the write-ahead log is lost, the store is as it was at one moment. Otherwise tables that
  // could not be read are left out, and all snapshots: a log that lacks a piece is DATA_LOSS when it is read.
  bool one_moment = false;
  int64_t sessions = 0;
  int64_t damaged = 0;       // of them: their header fails its checksum
  std::string damaged_path;  // where the files are as they were
};

// FAILED_PRECONDITION: no store, held by a server, of a newer format, or DIR/rocksdb.damaged is there already.
// DATA_LOSS: nothing can be made of it.
absl::StatusOr<StoreRepair> RepairRocksDbStore(const RocksDbStoreOptions& options);

}  // namespace smt
