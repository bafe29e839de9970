// Makes a failed sync of RocksDB's write-ahead log final without RocksDB noticing.
//
// RocksDB 7.8 syncs the log before the present one in the background, when a column family is flushed. Where that fails
// while a synced write waits, it syncs the same file again: against an assertion that ends the process, where there are
// assertions, and by the rules of fdatasync in vain, where there are none. No option turns that sync off where there
// are several column families. So here a log's sync that fails says OK to RocksDB, and from then on nothing is written
// to the log, and everything else that would change the files fails: no table and no manifest counts on what was not
// synced. The store looks at status() after each write, and before each read.
#pragma once

#include <rocksdb/env.h>
#include <rocksdb/io_status.h>

#include <memory>

namespace smt::store_internal {

class SyncGuard {
 public:
  explicit SyncGuard(rocksdb::Env* base);  // null: the default
  ~SyncGuard();
  SyncGuard(const SyncGuard&) = delete;
  SyncGuard& operator=(const SyncGuard&) = delete;

  rocksdb::Env* env() const;  // for the database; outlives it
  // How the first sync of a log failed. Thread-safe.
  rocksdb::IOStatus status() const;
  // For a database that is opened anew. Not while one is open.
  void Reset();

 private:
  struct State;
  class File;
  class Files;
  class GuardedEnv;

  const std::shared_ptr<State> state_;
  const std::unique_ptr<rocksdb::Env> env_;
};

}  // namespace smt::store_internal
