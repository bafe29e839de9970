// SessionStore in one directory of this machine, in RocksDB.
//
//   DIR/FORMAT       "smt-session-store 2": checked before anything else is read or written
//   DIR/rocksdb/     column families sessions, log, requests, snapshots (as blob files),
//                    references; docs/formats.md
//
// One server at a time: RocksDB's LOCK is held while open.
//
// When the disk is full nothing is acknowledged and writes answer RESOURCE_EXHAUSTED until there is room. Any other
// failed write or sync closes the store for good: what the kernel then has on disk is unknown, so only opening it
// again, which reads the disk, tells.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/store/session_store.h"

namespace rocksdb {
class Env;
}

namespace smt {

inline constexpr int kStoreFormatVersion = 2;

struct RocksDbStoreOptions {
  std::string dir;                             // made if missing, with its parents
  int64_t min_free_bytes = int64_t{64} << 20;  // below it writes are refused, so that RocksDB keeps room to work
  int64_t block_cache_bytes = int64_t{64} << 20;
  std::function<void(absl::Duration)> on_sync;  // how long each synced commit took; any thread
  rocksdb::Env* env = nullptr;                  // for fault injection; null: the default
};

// FAILED_PRECONDITION: the directory is a file, cannot be written, is held by another server, or has a newer format.
// DATA_LOSS: RocksDB's own files are damaged.
absl::StatusOr<std::unique_ptr<SessionStore>> OpenRocksDbStore(RocksDbStoreOptions options);

}  // namespace smt
