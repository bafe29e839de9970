// A disk in memory that loses power. Killing a process cannot show a missing fdatasync, since the page cache survives
// it; here bytes written and bytes on disk are kept apart.
//
// On disk are a file's bytes up to its last Sync, and a directory's entries (creations, renames, deletions) as of its
// last Fsync. A file's contents reach the disk without its name, and its name without them. Entries of one directory
// reach the disk in order, as journals of file systems have it: RocksDB counts on that.
//
// Every operation that changes something has a number, from 1; at one of them the disk can stop dead, fail to sync or
// be full. Outside of this:
//   - what is not done through the Env: the store's FORMAT file and its looks at the directory before it opens the
//     database; directories themselves are on disk at once, and so are files that shrink;
//   - a length that reaches the disk before the bytes, which then read as zeros (rocksdb_recovery_test.cc).
#pragma once

#include <rocksdb/env.h>
#include <rocksdb/io_status.h>

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace smt {

// Thread-safe.
class CrashDisk {
 public:
  // What a power cut leaves of what is not on disk.
  enum class Left {
    kNothing,
    kPart,  // of each file, and of the entries, a random part from the front: ends in the middle of a record
    kAll,   // as a killed process does
  };
  enum class Fault { kNone, kStop, kFailSync, kFull };

  CrashDisk() = default;

  // Uses this disk; must not outlive it.
  std::unique_ptr<rocksdb::Env> NewEnv();

  int64_t operations() const;  // so far
  // From operation number `at` on: kStop fails all of them, reads too; kFailSync the next sync, once, with an I/O
  // error; kFull all that need room, with "no space", after writing the first half of what there was to write.
  void Inject(Fault fault, int64_t at);
  void Heal() { Inject(Fault::kNone, 0); }
  int64_t struck_at() const;  // the number of the first operation that failed; 0: none has

  // What one finds after a power cut now. With kAll the disk as it is.
  std::unique_ptr<CrashDisk> AfterPowerCut(Left left, uint64_t seed) const;

  // Whether there are tables but no CURRENT, which a store refuses to open.
  bool HoldsOrphanTables() const;

  // The rest is for the files of this disk.
  struct File {
    std::string bytes;
    size_t synced = 0;
  };
  using FilePtr = std::shared_ptr<File>;
  enum class Change { kEntry, kWrite, kSync };

  // Counts an operation and fails it where that was asked for. kFull comes back as NoSpace; a write is then to be cut.
  rocksdb::IOStatus Begin(Change change) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  rocksdb::IOStatus CheckAlive() const ABSL_SHARED_LOCKS_REQUIRED(mu_);

  rocksdb::IOStatus Open(const std::string& path, FilePtr* file);
  rocksdb::IOStatus Create(const std::string& path, FilePtr* file);
  rocksdb::IOStatus Append(File& file, std::string_view bytes);
  rocksdb::IOStatus Truncate(File& file, size_t size);
  rocksdb::IOStatus Sync(File& file);
  rocksdb::IOStatus Read(const File& file, uint64_t offset, size_t n, rocksdb::Slice* result, char* scratch);
  size_t Size(const File& file) const;
  rocksdb::IOStatus Rename(const std::string& from, const std::string& to);
  rocksdb::IOStatus Remove(const std::string& path);
  rocksdb::IOStatus SyncDirectory(const std::string& path);
  rocksdb::IOStatus MakeDirectory(const std::string& path, bool may_exist);
  rocksdb::IOStatus Exists(const std::string& path, bool* is_directory) const;
  rocksdb::IOStatus List(const std::string& path, std::vector<std::string>* names) const;
  rocksdb::IOStatus Lock(const std::string& path);
  void Unlock(const std::string& path);

 private:
  using Entries = std::map<std::string, FilePtr>;  // by path; null in a change: removed
  struct EntryChange {
    std::string directory;
    Entries entries;
  };

  void Enter(Entries entries) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable absl::Mutex mu_;
  Entries entries_ ABSL_GUARDED_BY(mu_);                   // as one sees them
  Entries on_disk_ ABSL_GUARDED_BY(mu_);                   // as of their directories' last Fsync
  std::vector<EntryChange> waiting_ ABSL_GUARDED_BY(mu_);  // what lies between
  std::set<std::string> directories_ ABSL_GUARDED_BY(mu_), locks_ ABSL_GUARDED_BY(mu_);
  int64_t operations_ ABSL_GUARDED_BY(mu_) = 0;
  Fault fault_ ABSL_GUARDED_BY(mu_) = Fault::kNone;
  int64_t fault_at_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t struck_at_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace smt
