// Opening the store's directory: every way in which it may be unusable gets its own sentence, before RocksDB touches
// it.
#include <fcntl.h>
#include <rocksdb/cache.h>
#include <rocksdb/env.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/listener.h>
#include <rocksdb/sst_file_reader.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/store/record_format.h"
#include "server/store/rocksdb_internal.h"

namespace smt::store_internal {
namespace fs = std::filesystem;

absl::Status CannotUse(std::string_view dir, std::string_view why) {
  return absl::FailedPreconditionError(StrCat("store directory '", dir, "' cannot be used: ", why));
}

void SyncDirectory(const std::string& dir) {
  const int fd = ::open(dir.empty() ? "." : dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

namespace {

constexpr std::string_view kFormatPrefix = "smt-session-store ";

// With its parents. The name of a new directory is on disk once the one around it is synced.
std::error_code MakeDirectories(const fs::path& dir) {
  std::error_code ec;
  std::vector<fs::path> around;
  for (fs::path p = dir; !p.empty() && !fs::exists(p, ec); p = p.parent_path()) {
    around.push_back(p.parent_path());
  }
  fs::create_directories(dir, ec);
  for (const fs::path& parent : around) {
    if (!ec) SyncDirectory(parent.string());
  }
  return ec;
}

}  // namespace

absl::Status CheckDirectory(const std::string& dir) {
  if (dir.empty()) return absl::InvalidArgumentError("the store directory must be named, got an empty path");
  std::error_code ec;
  const fs::file_status st = fs::status(dir, ec);
  if (fs::exists(st) && !fs::is_directory(st)) return CannotUse(dir, "it is not a directory");
  ec = MakeDirectories(dir);
  if (ec) return CannotUse(dir, StrCat("it does not exist and cannot be made: ", ec.message()));
  if (::access(dir.c_str(), R_OK | W_OK | X_OK) != 0) {
    return CannotUse(dir, StrCat("it must be readable and writable by user ", ::geteuid(), ": ", std::strerror(errno)));
  }
  ec = MakeDirectories(fs::path(dir) / "rocksdb");
  if (ec) return CannotUse(dir, StrCat("rocksdb cannot be made in it: ", ec.message()));
  return absl::OkStatus();
}

// Written to a temporary name, synced and renamed: FORMAT is whole or absent.
absl::Status WriteFormat(const std::string& dir) {
  const std::string tmp = dir + "/FORMAT.tmp", path = dir + "/FORMAT";
  const std::string text = StrCat(kFormatPrefix, kStoreFormatVersion, "\n");
  const int fd = ::open(tmp.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
  bool ok = fd >= 0 && ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()) && ::fsync(fd) == 0;
  int error = errno;
  if (fd >= 0) ::close(fd);
  if (ok && ::rename(tmp.c_str(), path.c_str()) != 0) {
    ok = false;
    error = errno;
  }
  if (!ok) return CannotUse(dir, StrCat("writing FORMAT failed: ", std::strerror(error)));
  SyncDirectory(dir);
  return absl::OkStatus();
}

namespace {

bool HoldsTables(const fs::path& db) {
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(db, ec)) {
    const std::string ext = entry.path().extension().string();
    if (ext == ".sst" || ext == ".blob") return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<int> CheckFormat(const std::string& dir) {
  std::error_code ec;
  const fs::path db = fs::path(dir) / "rocksdb";
  const bool has_db = fs::exists(db / "CURRENT", ec);
  std::ifstream in(dir + "/FORMAT");
  if (!in) {
    if (has_db) return CannotUse(dir, "it holds a database but no FORMAT file, so this is not a session store");
    RETURN_IF_ERROR(WriteFormat(dir));
    return kStoreFormatVersion;
  }
  std::stringstream text;
  text << in.rdbuf();
  const std::string line = text.str();
  int version = 0;
  if (!line.starts_with(kFormatPrefix) || !absl::SimpleAtoi(line.substr(kFormatPrefix.size()), &version) ||
      version < 1) {
    return absl::DataLossError(
        StrCat("store directory '", dir, "': FORMAT must read \"", kFormatPrefix, "<number>\", it is damaged"));
  }
  if (version > kStoreFormatVersion) {
    return CannotUse(dir, StrCat("its format is version ", version, ", this server reads up to version ",
                                 kStoreFormatVersion, "; use the newer server"));
  }
  return version;
}

namespace {

// What the first version did not have: the names of snapshots apart from their bytes.
absl::Status Raise(const std::string& dir, const OpenedDb& opened) {
  rocksdb::WriteBatch batch;
  const std::unique_ptr<rocksdb::Iterator> it(opened.db->NewIterator(rocksdb::ReadOptions(), opened.cf.snapshots));
  for (it->SeekToFirst(); it->Valid(); it->Next()) PutSnapshotName(opened, it->key().ToString(), &batch);
  rocksdb::WriteOptions write;
  write.sync = true;
  rocksdb::Status s = it->status();
  if (s.ok()) s = opened.db->Write(write, &batch);
  if (!s.ok())
    return absl::DataLossError(
        StrCat("store directory '", dir, "' cannot be raised to version ", kStoreFormatVersion, ": ", s.ToString()));
  return WriteFormat(dir);
}

// RocksDB's own recovery from a full disk waits for room for every write buffer, hundreds of MiB. The store opens the
// database anew instead, at the next write that finds room.
class NoAutoRecovery final : public rocksdb::EventListener {
 public:
  const char* Name() const override { return "NoAutoRecovery"; }
  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason, rocksdb::Status, bool* auto_recovery) override {
    *auto_recovery = false;
  }
};

}  // namespace

rocksdb::DBOptions DbOptions(const RocksDbStoreOptions& options) {
  rocksdb::DBOptions db;
  if (options.env != nullptr) db.env = options.env;
  db.create_if_missing = true;
  db.create_missing_column_families = true;
  db.paranoid_checks = true;
  db.listeners.push_back(std::make_shared<NoAutoRecovery>());
  db.max_bgerror_resume_count = 0;  // a failed sync is never retried
  // Ends at a record that a crash tore. It would end at damage, too, and leave out what was acknowledged after it:
  // CheckLogs looks before. What was synced of a log that has a successor is in the manifest.
  db.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  db.track_and_verify_wals_in_manifest = true;
  db.max_total_wal_size = uint64_t{256} << 20;
  db.bytes_per_sync = 1 << 20;
  // Snapshots pass through the write-ahead log, and the next sync of ids would have to wait for all of their bytes.
  db.wal_bytes_per_sync = 1 << 20;
  db.max_background_jobs = std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / 2, 2, 8);
  db.max_open_files = 512;
  db.info_log_level = rocksdb::InfoLogLevel::WARN_LEVEL;  // its log is bounded: 4 files of 4 MiB
  db.max_log_file_size = 4 << 20;
  db.keep_log_file_num = 4;
  db.stats_dump_period_sec = 0;
  db.stats_persist_period_sec = 0;
  return db;
}

absl::Status Damaged(std::string_view dir, std::string_view what) {
  return absl::DataLossError(StrCat("store directory '", dir, "': its database is damaged: ", what,
                                    ". Restore a backup, or keep what can be read with \"smt_server --store_dir=", dir,
                                    " --repair_store\", which leaves the damaged files beside it"));
}

namespace {

// RocksDB's message names the manifest where a table that it lists cannot be opened.
std::string UnreadableTables(const std::string& dir) {
  std::string out;
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(fs::path(dir) / "rocksdb", ec)) {
    if (entry.path().extension() != ".sst") continue;
    rocksdb::SstFileReader table{rocksdb::Options()};
    if (!table.Open(entry.path().string()).ok()) {
      out += StrCat(out.empty() ? "; cannot be read: " : ", ", entry.path().filename().string());
    }
  }
  return out;
}

}  // namespace

absl::Status OpenError(const std::string& dir, const rocksdb::Status& s) {
  const std::string text = s.ToString();
  if (s.IsIOError() && text.find("LOCK") != std::string::npos) {
    return CannotUse(dir, StrCat("another server holds it (", text, ")"));
  }
  if (s.IsNoSpace()) return absl::ResourceExhaustedError(StrCat("store directory '", dir, "': ", text));
  return s.IsCorruption() ? Damaged(dir, text + UnreadableTables(dir)) : CannotUse(dir, text);
}

std::vector<rocksdb::ColumnFamilyDescriptor> FamiliesOf(const RocksDbStoreOptions& options) {
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(static_cast<size_t>(options.block_cache_bytes));
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  // A block is what a checksum covers: with one record in each, damage stays with the session it hits.
  table.block_size = 1;
  rocksdb::ColumnFamilyOptions small;
  small.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  small.write_buffer_size = 16 << 20;
  small.compression = rocksdb::kNoCompression;
  rocksdb::ColumnFamilyOptions blobs = small;
  blobs.enable_blob_files = true;
  blobs.min_blob_size = 4096;
  blobs.blob_file_size = uint64_t{64} << 20;
  blobs.enable_blob_garbage_collection =
      true;  // each session keeps its newest snapshots only: most of a file dies soon
  blobs.blob_garbage_collection_age_cutoff = 0.25;
  blobs.blob_garbage_collection_force_threshold = 0.5;
  // Small, so that resident memory does not grow with the snapshots taken since the last flush. A snapshot of some MB
  // fills one by itself, and many sessions take hundreds a second: ids must not wait until one of a few buffers is
  // flushed, nor until the small tables that flushes leave, the bytes being in blob files, are merged.
  blobs.write_buffer_size = 1 << 20;
  blobs.max_write_buffer_number = 8;
  blobs.level0_file_num_compaction_trigger = 8;
  blobs.level0_slowdown_writes_trigger = 200;
  blobs.level0_stop_writes_trigger = 400;

  return {{rocksdb::kDefaultColumnFamilyName, small},
          {"sessions", small},
          {"log", small},
          {"requests", small},
          {"snapshots", blobs},
          {"references", small}};
}

absl::StatusOr<OpenedDb> OpenDb(const RocksDbStoreOptions& options) {
  RETURN_IF_ERROR(CheckDirectory(options.dir));
  ASSIGN_OR_RETURN(const int version, CheckFormat(options.dir));
  const fs::path path = fs::path(options.dir) / "rocksdb";
  // RocksDB would begin an empty database and remove the files it does not know.
  if (std::error_code ec; !fs::exists(path / "CURRENT", ec) && HoldsTables(path)) {
    return Damaged(options.dir, "rocksdb/CURRENT is missing beside its tables");
  }
  RETURN_IF_ERROR(CheckLogs(options));

  OpenedDb out;
  rocksdb::DB* db = nullptr;
  const rocksdb::Status s =
      rocksdb::DB::Open(DbOptions(options), path.string(), FamiliesOf(options), &out.handles, &db);
  if (!s.ok()) return OpenError(options.dir, s);
  out.db.reset(db);
  out.cf = {out.handles[1], out.handles[2], out.handles[3], out.handles[4], out.handles[5]};
  if (version < kStoreFormatVersion) {
    if (const absl::Status raised = Raise(options.dir, out); !raised.ok()) {
      for (auto* handle : out.handles) out.db->DestroyColumnFamilyHandle(handle);
      return raised;
    }
  }
  return out;
}

std::string SnapshotNameKey(std::string_view snapshot_key) { return StrCat("n", snapshot_key); }

void PutSnapshotName(const OpenedDb& db, std::string_view snapshot_key, rocksdb::WriteBatch* batch) {
  const std::string key = SnapshotNameKey(snapshot_key);
  batch->Put(db.cf.references, key, SealRecord(RecordType::kReference, kRecordVersion, key, ""));
}

std::string SessionDbKey(const SessionKey& key) {
  std::string out = key.id;
  out.push_back('\0');
  AppendBigEndian(&out, key.uid);
  return out;
}

std::string UidPrefix(uint64_t uid) {
  std::string out;
  AppendBigEndian(&out, uid);
  return out;
}

std::string NumberedKey(uint64_t uid, int64_t branch, int64_t position) {
  std::string out = UidPrefix(uid);
  AppendBigEndian(&out, static_cast<uint64_t>(branch));
  AppendBigEndian(&out, static_cast<uint64_t>(position));
  return out;
}

std::string RequestKey(uint64_t uid, std::string_view request_id) { return UidPrefix(uid).append(request_id); }

std::string RemovalName(std::string_view id, std::string_view request_id) {
  return StrCat(id, std::string_view("\0", 1), request_id);
}

std::string PrefixEnd(std::string prefix) {
  while (!prefix.empty() && prefix.back() == '\xff') prefix.pop_back();
  if (!prefix.empty()) prefix.back() = static_cast<char>(static_cast<uint8_t>(prefix.back()) + 1);
  return prefix;
}

}  // namespace smt::store_internal
