// For tests of what is on disk: temporary directories, damage to stored records, and a file system that counts syncs
// and can fail them or run out of space.
#pragma once

#include <rocksdb/env.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace smt {

// A fresh directory, removed with everything in it.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Flips one bit in each value of the column family whose key `choose` accepts, in a store that nobody has open:
// byte `at` of the value, from its end when negative. Returns how many.
int DamageRecords(const std::string& store_dir, const std::string& column_family,
                  const std::function<bool(std::string_view key)>& choose, int64_t at);
// How many keys the column family holds.
int CountRecords(const std::string& store_dir, const std::string& column_family);

// What FaultEnv's files do; shared with the test.
struct Faults {
  std::atomic<int64_t> log_syncs{0};   // of the write-ahead log
  std::atomic<bool> fail_sync{false};  // of the write-ahead log, with an I/O error
  // Of a write-ahead log that has a successor, and slowly, so that a synced write waits for it.
  std::atomic<bool> fail_closed_sync{false};
  std::atomic<int64_t> logs{0};          // write-ahead logs so far
  std::atomic<bool> fail_append{false};  // to the write-ahead log, with "no space"
  std::atomic<bool> fail_open{false};    // of files to read, with an I/O error
};
std::unique_ptr<rocksdb::Env> NewFaultEnv(Faults* faults);

}  // namespace smt
