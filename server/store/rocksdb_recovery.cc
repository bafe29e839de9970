// Whether what a crash has left can be opened without leaving out anything that was synced.
//
// None of RocksDB's recovery modes does what is needed. kPointInTimeRecovery stops at the first record that does not
// read, whatever comes after it; kTolerateCorruptedTailRecords tells damage from a torn end, but goes on after one
// log's torn end with the next log, which leaves a hole. So logs that are not empty are read twice: here, read-only, by
// the second mode, which must find no damage; then by the first, which ends where the crash did.
//
// A file system may also have noted a file's new length before its bytes reached the disk: they then read as zeros.
// RocksDB takes that for damage where it begins in a record. No fdatasync had returned for those bytes, so they are
// cut.
#include <rocksdb/env.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/cleanup/cleanup.h"
#include "absl/synchronization/mutex.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/log.h"
#include "server/store/rocksdb_internal.h"
#include "server/store/rocksdb_wal.h"

namespace smt::store_internal {
namespace {

// Disks write no less at a time. Zeros that reach to the end of the file from where one of these begins are nothing
// that a record was synced with, but for one whose own last zeros cross that border.
constexpr size_t kSector = 512;

// RocksDB says here which file it finds damaged, and in its status only how.
class DamageLogger final : public rocksdb::Logger {
 public:
  using Logger::Logv;
  void Logv(const char* format, va_list arguments) override {
    char line[1024];
    std::vsnprintf(line, sizeof(line), format, arguments);
    const std::string_view text = line;
    if (text.find("dropping") == std::string_view::npos) return;
    absl::MutexLock lock(&mu_);
    if (said_.empty()) said_ = text;
  }
  std::string said() const {
    absl::MutexLock lock(&mu_);
    return said_;
  }

 private:
  mutable absl::Mutex mu_;
  std::string said_ ABSL_GUARDED_BY(mu_);
};

struct ZeroTail {
  std::string path;
  size_t size = 0, cut = 0;
};

class LogCheck {
 public:
  explicit LogCheck(const RocksDbStoreOptions& options)
      : options_(options),
        env_(options.env != nullptr ? options.env : rocksdb::Env::Default()),
        path_(options.dir + "/rocksdb") {}

  absl::Status Run() {
    ASSIGN_OR_RETURN(const std::vector<std::string> logs, Logs());
    if (logs.empty()) return absl::OkStatus();
    rocksdb::FileLock* lock = nullptr;  // a log that another server writes would look torn
    if (const rocksdb::Status s = env_->LockFile(path_ + "/LOCK", &lock); !s.ok()) return OpenError(options_.dir, s);
    const auto unlock = absl::MakeCleanup([&] { env_->UnlockFile(lock).PermitUncheckedError(); });

    std::vector<ZeroTail> cut;
    std::string damaged;
    absl::Status status = Read(&damaged);
    absl::Status first = status;
    while (absl::IsDataLoss(status)) {
      const auto log =
          std::ranges::find_if(logs, [&](const std::string& l) { return damaged.find(l) != damaged.npos; });
      std::string bytes;
      if (log == logs.end() || !rocksdb::ReadFileToString(env_, *log, &bytes).ok()) break;
      if (const std::string where = DescribeWalDamage(bytes); cut.empty() && !where.empty()) {
        first = Damaged(options_.dir, StrCat(*log, " does not read ", where, "; what was written after that is lost (",
                                             damaged, ")"));
      }
      const std::optional<ZeroTail> tail = FindZeroTail(*log, bytes);
      if (!tail) break;
      RETURN_IF_ERROR(Resize(tail->path, tail->cut));
      cut.push_back(*tail);
      status = Read(&damaged);
    }
    if (!status.ok()) {  // it was something else
      for (const ZeroTail& tail : cut) RETURN_IF_ERROR(Resize(tail.path, tail.size));
      return first;
    }
    for (const ZeroTail& tail : cut) {
      LogWarning("the write-ahead log ended in zeros, as a loss of power leaves them; they are cut off",
                 {{"file", tail.path}, {"bytes", tail.size - tail.cut}});
    }
    return absl::OkStatus();
  }

 private:
  // Those that hold something.
  absl::StatusOr<std::vector<std::string>> Logs() const {
    std::vector<std::string> logs;
    std::vector<rocksdb::Env::FileAttributes> files;
    if (env_->FileExists(path_ + "/CURRENT").IsNotFound()) return logs;  // a new store
    if (const rocksdb::Status s = env_->GetChildrenFileAttributes(path_, &files); !s.ok()) {
      return OpenError(options_.dir, s);
    }
    for (const auto& file : files) {
      if (file.size_bytes > 0 && file.name.ends_with(".log")) logs.push_back(StrCat(path_, "/", file.name));
    }
    return logs;
  }

  // DATA_LOSS: `damaged` names the log, where it is one.
  absl::Status Read(std::string* damaged) const {
    rocksdb::DBOptions options = DbOptions(options_);
    const auto logger = std::make_shared<DamageLogger>();
    options.info_log = logger;
    options.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
    std::vector<std::string> names;
    rocksdb::Status s = rocksdb::DB::ListColumnFamilies(options, path_, &names);
    if (!s.ok()) return OpenError(options_.dir, s);
    std::vector<rocksdb::ColumnFamilyDescriptor> families = FamiliesOf(options_);
    std::erase_if(families, [&](const auto& f) { return std::ranges::find(names, f.name) == names.end(); });
    std::vector<rocksdb::ColumnFamilyHandle*> handles;
    rocksdb::DB* db = nullptr;
    s = rocksdb::DB::OpenForReadOnly(options, path_, families, &handles, &db);
    const std::unique_ptr<rocksdb::DB> close(db);
    for (auto* handle : handles) db->DestroyColumnFamilyHandle(handle);
    if (!s.IsCorruption()) return s.ok() ? absl::OkStatus() : OpenError(options_.dir, s);
    *damaged = logger->said();
    return damaged->empty() ? OpenError(options_.dir, s) : Damaged(options_.dir, *damaged);
  }

  static std::optional<ZeroTail> FindZeroTail(const std::string& path, const std::string& bytes) {
    const size_t last = bytes.find_last_not_of('\0');
    const size_t written = last == std::string::npos ? 0 : last + 1;
    const size_t cut = (written + kSector - 1) / kSector * kSector;
    if (cut >= bytes.size()) return std::nullopt;
    return ZeroTail{path, bytes.size(), cut};
  }

  // To a larger size: with zeros. RocksDB's Env cannot do it.
  absl::Status Resize(const std::string& path, size_t size) const {
    std::error_code ec;
    std::filesystem::resize_file(path, size, ec);
    return ec ? CannotUse(options_.dir, StrCat(path, " cannot be cut: ", ec.message())) : absl::OkStatus();
  }

  const RocksDbStoreOptions& options_;
  rocksdb::Env* const env_;
  const std::string path_;
};

}  // namespace

absl::Status CheckLogs(const RocksDbStoreOptions& options) { return LogCheck(options).Run(); }

absl::Status CutLogAfter(const RocksDbStoreOptions& options, uint64_t sequence) {
  rocksdb::Env* const env = options.env != nullptr ? options.env : rocksdb::Env::Default();
  const std::string folder = options.dir + "/rocksdb";
  std::vector<std::string> names;
  if (const rocksdb::Status s = env->GetChildren(folder, &names); !s.ok()) return OpenError(options.dir, s);
  std::erase_if(names, [](const std::string& name) { return !name.ends_with(".log"); });
  if (names.empty()) return absl::OkStatus();
  // The last one: names are numbers of six digits and more.
  const std::string path = StrCat(folder, "/", *std::ranges::max_element(names, [](const auto& a, const auto& b) {
                                    return std::pair(a.size(), a) < std::pair(b.size(), b);
                                  }));
  std::string bytes;
  rocksdb::Status s = rocksdb::ReadFileToString(env, path, &bytes);
  if (!s.ok()) return OpenError(options.dir, s);
  const std::optional<size_t> end = FindWalGroupAfter(bytes, sequence);
  if (!end) return absl::OkStatus();
  std::unique_ptr<rocksdb::WritableFile> file;
  s = env->ReopenWritableFile(path, &file, rocksdb::EnvOptions());
  if (s.ok()) s = file->Truncate(*end);
  if (s.ok()) s = file->Sync();
  if (s.ok()) s = file->Close();
  return s.ok() ? absl::OkStatus() : OpenError(options.dir, s);
}

}  // namespace smt::store_internal
