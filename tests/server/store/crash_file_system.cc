#include "tests/server/store/crash_file_system.h"

#include <rocksdb/file_system.h>
#include <rocksdb/system_clock.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace smt {
namespace {

using rocksdb::FileOptions;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

std::string DirectoryOf(const std::string& path) { return path.substr(0, path.rfind('/')); }

// One spelling for each path.
std::string Clean(const std::string& path) {
  std::string out;
  for (const char c : path) {
    if (c != '/' || !out.ends_with('/')) out.push_back(c);
  }
  if (out.size() > 1 && out.ends_with('/')) out.pop_back();
  return out;
}

class Sequential final : public rocksdb::FSSequentialFile {
 public:
  Sequential(CrashDisk& disk, CrashDisk::FilePtr file) : disk_(disk), file_(std::move(file)) {}
  IOStatus Read(size_t n, const IOOptions&, Slice* result, char* scratch, IODebugContext*) override {
    const IOStatus s = disk_.Read(*file_, at_, n, result, scratch);
    if (s.ok()) at_ += result->size();
    return s;
  }
  IOStatus Skip(uint64_t n) override {
    at_ = std::min<uint64_t>(at_ + n, disk_.Size(*file_));
    return IOStatus::OK();
  }

 private:
  CrashDisk& disk_;
  const CrashDisk::FilePtr file_;
  uint64_t at_ = 0;
};

class RandomAccess final : public rocksdb::FSRandomAccessFile {
 public:
  RandomAccess(CrashDisk& disk, CrashDisk::FilePtr file) : disk_(disk), file_(std::move(file)) {}
  IOStatus Read(uint64_t at, size_t n, const IOOptions&, Slice* result, char* scratch, IODebugContext*) const override {
    return disk_.Read(*file_, at, n, result, scratch);
  }

 private:
  CrashDisk& disk_;
  const CrashDisk::FilePtr file_;
};

class Writable final : public rocksdb::FSWritableFile {
 public:
  Writable(CrashDisk& disk, CrashDisk::FilePtr file) : disk_(disk), file_(std::move(file)) {}
  using FSWritableFile::Append;
  IOStatus Append(const Slice& data, const IOOptions&, IODebugContext*) override {
    return disk_.Append(*file_, {data.data(), data.size()});
  }
  IOStatus Append(const Slice& data, const IOOptions& o, const rocksdb::DataVerificationInfo&,
                  IODebugContext* d) override {
    return Append(data, o, d);
  }
  IOStatus Truncate(uint64_t size, const IOOptions&, IODebugContext*) override { return disk_.Truncate(*file_, size); }
  IOStatus Close(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }
  IOStatus Flush(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }
  IOStatus Sync(const IOOptions&, IODebugContext*) override { return disk_.Sync(*file_); }
  bool IsSyncThreadSafe() const override { return true; }
  uint64_t GetFileSize(const IOOptions&, IODebugContext*) override { return disk_.Size(*file_); }

 private:
  CrashDisk& disk_;
  const CrashDisk::FilePtr file_;
};

class Directory final : public rocksdb::FSDirectory {
 public:
  Directory(CrashDisk& disk, std::string path) : disk_(disk), path_(std::move(path)) {}
  IOStatus Fsync(const IOOptions&, IODebugContext*) override { return disk_.SyncDirectory(path_); }
  IOStatus Close(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }

 private:
  CrashDisk& disk_;
  const std::string path_;
};

struct HeldLock final : rocksdb::FileLock {
  explicit HeldLock(std::string held) : path(std::move(held)) {}
  const std::string path;
};

struct NoLogger final : rocksdb::Logger {
  using Logger::Logv;
  void Logv(const char*, va_list) override {}
  size_t GetLogFileSize() const override { return 0; }
};

class CrashFileSystem final : public rocksdb::FileSystem {
 public:
  explicit CrashFileSystem(CrashDisk& disk) : disk_(disk) {}
  const char* Name() const override { return "CrashFileSystem"; }

  IOStatus NewSequentialFile(const std::string& path, const FileOptions&,
                             std::unique_ptr<rocksdb::FSSequentialFile>* out, IODebugContext*) override {
    CrashDisk::FilePtr file;
    const IOStatus s = disk_.Open(Clean(path), &file);
    if (s.ok()) *out = std::make_unique<Sequential>(disk_, std::move(file));
    return s;
  }
  IOStatus NewRandomAccessFile(const std::string& path, const FileOptions&,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* out, IODebugContext*) override {
    CrashDisk::FilePtr file;
    const IOStatus s = disk_.Open(Clean(path), &file);
    if (s.ok()) *out = std::make_unique<RandomAccess>(disk_, std::move(file));
    return s;
  }
  IOStatus NewWritableFile(const std::string& path, const FileOptions&, std::unique_ptr<rocksdb::FSWritableFile>* out,
                           IODebugContext*) override {
    CrashDisk::FilePtr file;
    const IOStatus s = disk_.Create(Clean(path), &file);
    if (s.ok()) *out = std::make_unique<Writable>(disk_, std::move(file));
    return s;
  }
  IOStatus ReopenWritableFile(const std::string& path, const FileOptions&,
                              std::unique_ptr<rocksdb::FSWritableFile>* out, IODebugContext*) override {
    CrashDisk::FilePtr file;
    const IOStatus s = disk_.Open(Clean(path), &file);
    if (s.ok()) *out = std::make_unique<Writable>(disk_, std::move(file));
    return s;
  }
  IOStatus NewDirectory(const std::string& path, const IOOptions&, std::unique_ptr<rocksdb::FSDirectory>* out,
                        IODebugContext*) override {
    *out = std::make_unique<Directory>(disk_, Clean(path));
    return IOStatus::OK();
  }
  IOStatus FileExists(const std::string& path, const IOOptions&, IODebugContext*) override {
    bool is_directory = false;
    return disk_.Exists(Clean(path), &is_directory);
  }
  IOStatus IsDirectory(const std::string& path, const IOOptions&, bool* is_directory, IODebugContext*) override {
    return disk_.Exists(Clean(path), is_directory);
  }
  IOStatus GetChildren(const std::string& path, const IOOptions&, std::vector<std::string>* names,
                       IODebugContext*) override {
    return disk_.List(Clean(path), names);
  }
  IOStatus DeleteFile(const std::string& path, const IOOptions&, IODebugContext*) override {
    return disk_.Remove(Clean(path));
  }
  IOStatus CreateDir(const std::string& path, const IOOptions&, IODebugContext*) override {
    return disk_.MakeDirectory(Clean(path), false);
  }
  IOStatus CreateDirIfMissing(const std::string& path, const IOOptions&, IODebugContext*) override {
    return disk_.MakeDirectory(Clean(path), true);
  }
  IOStatus DeleteDir(const std::string& path, const IOOptions&, IODebugContext*) override {
    return IOStatus::NotSupported("DeleteDir", path);
  }
  IOStatus GetFileSize(const std::string& path, const IOOptions&, uint64_t* size, IODebugContext*) override {
    CrashDisk::FilePtr file;
    const IOStatus s = disk_.Open(Clean(path), &file);
    if (s.ok()) *size = disk_.Size(*file);
    return s;
  }
  IOStatus GetFileModificationTime(const std::string&, const IOOptions&, uint64_t* time, IODebugContext*) override {
    *time = 0;
    return IOStatus::OK();
  }
  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions&, IODebugContext*) override {
    return disk_.Rename(Clean(from), Clean(to));
  }
  IOStatus LockFile(const std::string& path, const IOOptions&, rocksdb::FileLock** lock, IODebugContext*) override {
    const IOStatus s = disk_.Lock(Clean(path));
    if (s.ok()) *lock = new HeldLock(Clean(path));
    return s;
  }
  IOStatus UnlockFile(rocksdb::FileLock* lock, const IOOptions&, IODebugContext*) override {
    disk_.Unlock(static_cast<HeldLock*>(lock)->path);
    delete lock;
    return IOStatus::OK();
  }
  IOStatus GetTestDirectory(const IOOptions&, std::string* path, IODebugContext*) override {
    *path = "/test";
    return IOStatus::OK();
  }
  IOStatus NewLogger(const std::string&, const IOOptions&, std::shared_ptr<rocksdb::Logger>* out,
                     IODebugContext*) override {
    *out = std::make_shared<NoLogger>();
    return IOStatus::OK();
  }
  IOStatus GetAbsolutePath(const std::string& path, const IOOptions&, std::string* out, IODebugContext*) override {
    *out = path;
    return IOStatus::OK();
  }

 private:
  CrashDisk& disk_;
};

// RocksDB sleeps for a second after a failed flush.
class Sleepless final : public rocksdb::SystemClockWrapper {
 public:
  Sleepless() : SystemClockWrapper(rocksdb::SystemClock::Default()) {}
  const char* Name() const override { return "Sleepless"; }
  void SleepForMicroseconds(int) override {}
};

class CrashEnv final : public rocksdb::EnvWrapper {
 public:
  explicit CrashEnv(CrashDisk& disk) : EnvWrapper(rocksdb::NewCompositeEnv(std::make_shared<CrashFileSystem>(disk))) {
    system_clock_ = std::make_shared<Sleepless>();
  }
};

}  // namespace

std::unique_ptr<rocksdb::Env> CrashDisk::NewEnv() { return std::make_unique<CrashEnv>(*this); }

int64_t CrashDisk::operations() const {
  absl::MutexLock lock(&mu_);
  return operations_;
}

void CrashDisk::Inject(Fault fault, int64_t at) {
  absl::MutexLock lock(&mu_);
  fault_ = fault;
  fault_at_ = at;
  struck_at_ = 0;
}

int64_t CrashDisk::struck_at() const {
  absl::MutexLock lock(&mu_);
  return struck_at_;
}

IOStatus CrashDisk::CheckAlive() const {
  return fault_ == Fault::kStop && struck_at_ > 0 ? IOStatus::IOError("the disk has stopped") : IOStatus::OK();
}

IOStatus CrashDisk::Begin(Change change) {
  ++operations_;
  if (fault_ == Fault::kNone || operations_ < fault_at_) return IOStatus::OK();
  if (fault_ == Fault::kFailSync && (struck_at_ > 0 || change != Change::kSync)) return IOStatus::OK();
  if (struck_at_ == 0) struck_at_ = operations_;
  switch (fault_) {
    case Fault::kStop:
      return IOStatus::IOError("the disk has stopped");
    case Fault::kFailSync:
      return IOStatus::IOError("injected");
    default:
      return IOStatus::NoSpace("injected");
  }
}

void CrashDisk::Enter(Entries entries) {
  for (const auto& [path, file] : entries) {
    if (file == nullptr) {
      entries_.erase(path);
    } else {
      entries_[path] = file;
    }
  }
  const std::string directory = DirectoryOf(entries.begin()->first);
  waiting_.push_back({directory, std::move(entries)});
}

IOStatus CrashDisk::Open(const std::string& path, FilePtr* file) {
  absl::MutexLock lock(&mu_);
  if (IOStatus s = CheckAlive(); !s.ok()) return s;
  const auto found = entries_.find(path);
  if (found == entries_.end()) return IOStatus::PathNotFound(path);
  *file = found->second;
  return IOStatus::OK();
}

IOStatus CrashDisk::Create(const std::string& path, FilePtr* file) {
  absl::MutexLock lock(&mu_);
  if (IOStatus s = Begin(Change::kEntry); !s.ok()) return s;
  *file = std::make_shared<File>();
  Enter({{path, *file}});
  return IOStatus::OK();
}

IOStatus CrashDisk::Append(File& file, std::string_view bytes) {
  absl::MutexLock lock(&mu_);
  const IOStatus s = Begin(Change::kWrite);
  // What was under way when the disk stopped may have arrived, in whole or in part.
  if (s.ok() || (fault_ == Fault::kStop && operations_ == fault_at_)) file.bytes.append(bytes);
  if (s.IsNoSpace()) file.bytes.append(bytes.substr(0, bytes.size() / 2));
  return s;
}

IOStatus CrashDisk::Truncate(File& file, size_t size) {
  absl::MutexLock lock(&mu_);
  if (IOStatus s = CheckAlive(); !s.ok()) return s;
  file.bytes.resize(size);
  file.synced = std::min(file.synced, size);
  return IOStatus::OK();
}

IOStatus CrashDisk::Sync(File& file) {
  absl::MutexLock lock(&mu_);
  const IOStatus s = Begin(Change::kSync);
  if (s.ok()) file.synced = file.bytes.size();
  return s;
}

IOStatus CrashDisk::Read(const File& file, uint64_t offset, size_t n, Slice* result, char* scratch) {
  absl::MutexLock lock(&mu_);
  if (IOStatus s = CheckAlive(); !s.ok()) return s;
  const size_t at = std::min<size_t>(offset, file.bytes.size());
  n = std::min(n, file.bytes.size() - at);
  std::memcpy(scratch, file.bytes.data() + at, n);
  *result = Slice(scratch, n);
  return IOStatus::OK();
}

size_t CrashDisk::Size(const File& file) const {
  absl::MutexLock lock(&mu_);
  return file.bytes.size();
}

IOStatus CrashDisk::Rename(const std::string& from, const std::string& to) {
  absl::MutexLock lock(&mu_);
  if (IOStatus s = Begin(Change::kEntry); !s.ok()) return s;
  const auto found = entries_.find(from);
  if (found == entries_.end()) return IOStatus::PathNotFound(from);
  const FilePtr file = found->second;
  Enter({{from, nullptr}, {to, file}});
  return IOStatus::OK();
}

IOStatus CrashDisk::Remove(const std::string& path) {
  absl::MutexLock lock(&mu_);
  if (fault_ != Fault::kFull) {  // which needs no room
    if (IOStatus s = Begin(Change::kEntry); !s.ok()) return s;
  }
  if (entries_.count(path) == 0) return IOStatus::PathNotFound(path);
  Enter({{path, nullptr}});
  return IOStatus::OK();
}

IOStatus CrashDisk::SyncDirectory(const std::string& path) {
  absl::MutexLock lock(&mu_);
  if (IOStatus s = Begin(Change::kSync); !s.ok()) return s;
  // The analysis does not see into closures; the mutex is held.
  std::erase_if(waiting_, [&](const EntryChange& change) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (change.directory != path) return false;
    for (const auto& [name, file] : change.entries) {
      if (file == nullptr) {
        on_disk_.erase(name);
      } else {
        on_disk_[name] = file;
      }
    }
    return true;
  });
  return IOStatus::OK();
}

IOStatus CrashDisk::MakeDirectory(const std::string& path, bool may_exist) {
  absl::MutexLock lock(&mu_);
  if (IOStatus s = Begin(Change::kEntry); !s.ok()) return s;
  if (!directories_.insert(path).second && !may_exist) return IOStatus::IOError("exists already", path);
  return IOStatus::OK();
}

IOStatus CrashDisk::Exists(const std::string& path, bool* is_directory) const {
  absl::MutexLock lock(&mu_);
  if (IOStatus s = CheckAlive(); !s.ok()) return s;
  *is_directory = directories_.count(path) > 0;
  return *is_directory || entries_.count(path) > 0 ? IOStatus::OK() : IOStatus::NotFound(path);
}

IOStatus CrashDisk::List(const std::string& path, std::vector<std::string>* names) const {
  absl::MutexLock lock(&mu_);
  if (IOStatus s = CheckAlive(); !s.ok()) return s;
  names->clear();
  for (const auto& [name, file] : entries_) {
    if (DirectoryOf(name) == path) names->push_back(name.substr(path.size() + 1));
  }
  return IOStatus::OK();
}

IOStatus CrashDisk::Lock(const std::string& path) {
  absl::MutexLock lock(&mu_);
  if (IOStatus s = CheckAlive(); !s.ok()) return s;
  return locks_.insert(path).second ? IOStatus::OK() : IOStatus::IOError("lock held", path);
}

void CrashDisk::Unlock(const std::string& path) {
  absl::MutexLock lock(&mu_);
  locks_.erase(path);
}

bool CrashDisk::HoldsOrphanTables() const {
  absl::MutexLock lock(&mu_);
  bool tables = false;
  for (const auto& [path, file] : entries_) {
    if (path.ends_with("/CURRENT")) return false;
    tables |= path.ends_with(".sst") || path.ends_with(".blob");
  }
  return tables;
}

std::unique_ptr<CrashDisk> CrashDisk::AfterPowerCut(Left left, uint64_t seed) const {
  std::mt19937_64 random(seed);
  const auto up_to = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n)(random); };
  auto out = std::make_unique<CrashDisk>();
  absl::MutexLock lock(&mu_), out_lock(&out->mu_);
  Entries entries = left == Left::kAll ? entries_ : on_disk_;
  if (left == Left::kPart) {
    const size_t arrived = up_to(waiting_.size());
    for (size_t i = 0; i < arrived; ++i) {
      for (const auto& [path, file] : waiting_[i].entries) {
        if (file == nullptr) {
          entries.erase(path);
        } else {
          entries[path] = file;
        }
      }
    }
  }
  for (const auto& [path, file] : entries) {
    auto copy = std::make_shared<File>();
    size_t size = file->bytes.size();
    if (left == Left::kNothing) size = file->synced;
    if (left == Left::kPart) size = file->synced + up_to(size - file->synced);
    copy->bytes = file->bytes.substr(0, size);
    copy->synced = copy->bytes.size();
    out->entries_[path] = std::move(copy);
  }
  out->on_disk_ = out->entries_;
  out->directories_ = directories_;
  return out;
}

}  // namespace smt
