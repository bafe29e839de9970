#include "tests/server/store/rocksdb_testing.h"

#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <rocksdb/file_system.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

#include "absl/time/clock.h"

namespace smt {
namespace {

class FaultFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  FaultFile(std::unique_ptr<rocksdb::FSWritableFile> file, Faults* faults)
      : FSWritableFileOwnerWrapper(std::move(file)), faults_(faults), number_(++faults->logs) {}

  rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& o,
                           rocksdb::IODebugContext* d) override {
    if (faults_->fail_append) return rocksdb::IOStatus::NoSpace("injected");
    return FSWritableFileOwnerWrapper::Append(data, o, d);
  }
  rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& o,
                           const rocksdb::DataVerificationInfo& v, rocksdb::IODebugContext* d) override {
    if (faults_->fail_append) return rocksdb::IOStatus::NoSpace("injected");
    return FSWritableFileOwnerWrapper::Append(data, o, v, d);
  }
  rocksdb::IOStatus Sync(const rocksdb::IOOptions& o, rocksdb::IODebugContext* d) override {
    ++faults_->log_syncs;
    if (faults_->fail_sync) return rocksdb::IOStatus::IOError("injected");
    if (faults_->fail_closed_sync && number_ < faults_->logs) {
      absl::SleepFor(absl::Milliseconds(50));
      return rocksdb::IOStatus::IOError("injected");
    }
    return FSWritableFileOwnerWrapper::Sync(o, d);
  }

 private:
  Faults* const faults_;
  const int64_t number_;
};

class FaultFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  explicit FaultFileSystem(Faults* faults) : FileSystemWrapper(rocksdb::FileSystem::Default()), faults_(faults) {}
  const char* Name() const override { return "FaultFileSystem"; }
  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& o,
                                    std::unique_ptr<rocksdb::FSWritableFile>* out,
                                    rocksdb::IODebugContext* d) override {
    std::unique_ptr<rocksdb::FSWritableFile> file;
    const auto s = FileSystemWrapper::NewWritableFile(name, o, &file, d);
    if (!s.ok()) return s;
    *out = name.ends_with(".log") ? std::make_unique<FaultFile>(std::move(file), faults_) : std::move(file);
    return s;
  }
  rocksdb::IOStatus NewSequentialFile(const std::string& name, const rocksdb::FileOptions& o,
                                      std::unique_ptr<rocksdb::FSSequentialFile>* out,
                                      rocksdb::IODebugContext* d) override {
    if (faults_->fail_open) return rocksdb::IOStatus::IOError("injected", name);
    return FileSystemWrapper::NewSequentialFile(name, o, out, d);
  }

 private:
  Faults* const faults_;
};

struct RawDb {
  std::unique_ptr<rocksdb::DB> db;
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::ColumnFamilyHandle* cf = nullptr;

  RawDb(const std::string& store_dir, const std::string& column_family) {
    const std::string path = store_dir + "/rocksdb";
    std::vector<std::string> names;
    EXPECT_TRUE(rocksdb::DB::ListColumnFamilies(rocksdb::DBOptions(), path, &names).ok());
    std::vector<rocksdb::ColumnFamilyDescriptor> families;
    for (const auto& name : names) families.emplace_back(name, rocksdb::ColumnFamilyOptions());
    rocksdb::DB* raw = nullptr;
    const auto s = rocksdb::DB::Open(rocksdb::DBOptions(), path, families, &handles, &raw);
    EXPECT_TRUE(s.ok()) << s.ToString();
    db.reset(raw);
    for (size_t i = 0; i < names.size(); ++i) {
      if (names[i] == column_family) cf = handles[i];
    }
    EXPECT_NE(cf, nullptr);
  }
  ~RawDb() {
    for (auto* h : handles) db->DestroyColumnFamilyHandle(h);
  }
};

}  // namespace

TempDir::TempDir() {
  std::string pattern = testing::TempDir() + "/smt_store_XXXXXX";
  path_ = ::mkdtemp(pattern.data());
}
TempDir::~TempDir() {
  std::error_code ec;
  std::filesystem::remove_all(path_, ec);
}

int DamageRecords(const std::string& store_dir, const std::string& column_family,
                  const std::function<bool(std::string_view key)>& choose, int64_t at) {
  RawDb raw(store_dir, column_family);
  std::unique_ptr<rocksdb::Iterator> it(raw.db->NewIterator(rocksdb::ReadOptions(), raw.cf));
  int damaged = 0;
  for (it->SeekToFirst(); it->Valid(); it->Next()) {
    if (!choose({it->key().data(), it->key().size()})) continue;
    std::string value = it->value().ToString();
    value[at >= 0 ? static_cast<size_t>(at) : value.size() - static_cast<size_t>(-at)] ^= 0x10;
    EXPECT_TRUE(raw.db->Put(rocksdb::WriteOptions(), raw.cf, it->key(), value).ok());
    ++damaged;
  }
  return damaged;
}

int CountRecords(const std::string& store_dir, const std::string& column_family) {
  RawDb raw(store_dir, column_family);
  std::unique_ptr<rocksdb::Iterator> it(raw.db->NewIterator(rocksdb::ReadOptions(), raw.cf));
  int n = 0;
  for (it->SeekToFirst(); it->Valid(); it->Next()) ++n;
  return n;
}

std::unique_ptr<rocksdb::Env> NewFaultEnv(Faults* faults) {
  return rocksdb::NewCompositeEnv(std::make_shared<FaultFileSystem>(faults));
}

}  // namespace smt
