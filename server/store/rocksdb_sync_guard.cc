#include "server/store/rocksdb_sync_guard.h"

#include <rocksdb/file_system.h>

#include <atomic>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace smt::store_internal {

using rocksdb::FileOptions;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

struct SyncGuard::State {
  std::atomic<bool> failed{false};
  mutable absl::Mutex mu;
  IOStatus first ABSL_GUARDED_BY(mu);

  IOStatus Get() const {
    if (!failed.load(std::memory_order_acquire)) return IOStatus::OK();
    absl::MutexLock lock(&mu);
    return first;
  }
  void Fail(const IOStatus& status) {
    absl::MutexLock lock(&mu);
    if (first.ok()) first = status;
    failed.store(true, std::memory_order_release);
  }
};

class SyncGuard::File final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  File(std::unique_ptr<rocksdb::FSWritableFile> file, bool is_log, std::shared_ptr<State> state)
      : FSWritableFileOwnerWrapper(std::move(file)), is_log_(is_log), state_(std::move(state)) {}

  IOStatus Append(const Slice& data, const IOOptions& o, IODebugContext* d) override {
    return state_->failed ? Refuse() : FSWritableFileOwnerWrapper::Append(data, o, d);
  }
  IOStatus Append(const Slice& data, const IOOptions& o, const rocksdb::DataVerificationInfo& v,
                  IODebugContext* d) override {
    return state_->failed ? Refuse() : FSWritableFileOwnerWrapper::Append(data, o, v, d);
  }
  IOStatus Sync(const IOOptions& o, IODebugContext* d) override {
    return state_->failed ? Refuse() : Note(FSWritableFileOwnerWrapper::Sync(o, d));
  }
  IOStatus Fsync(const IOOptions& o, IODebugContext* d) override {
    return state_->failed ? Refuse() : Note(FSWritableFileOwnerWrapper::Fsync(o, d));
  }

 private:
  IOStatus Refuse() const { return is_log_ ? IOStatus::OK() : state_->Get(); }
  IOStatus Note(const IOStatus& synced) {
    if (synced.ok() || !is_log_) return synced;
    state_->Fail(synced);
    return IOStatus::OK();
  }

  const bool is_log_;
  const std::shared_ptr<State> state_;
};

class SyncGuard::Files final : public rocksdb::FileSystemWrapper {
 public:
  Files(const std::shared_ptr<rocksdb::FileSystem>& base, std::shared_ptr<State> state)
      : FileSystemWrapper(base), state_(std::move(state)) {}
  const char* Name() const override { return "SyncGuard"; }

  IOStatus NewWritableFile(const std::string& name, const FileOptions& o, std::unique_ptr<rocksdb::FSWritableFile>* out,
                           IODebugContext* d) override {
    if (IOStatus s = state_->Get(); !s.ok()) return s;
    std::unique_ptr<rocksdb::FSWritableFile> file;
    IOStatus s = FileSystemWrapper::NewWritableFile(name, o, &file, d);
    if (s.ok()) *out = std::make_unique<File>(std::move(file), name.ends_with(".log"), state_);
    return s;
  }
  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions& o, IODebugContext* d) override {
    const IOStatus s = state_->Get();
    return s.ok() ? FileSystemWrapper::RenameFile(from, to, o, d) : s;
  }
  IOStatus DeleteFile(const std::string& name, const IOOptions& o, IODebugContext* d) override {
    const IOStatus s = state_->Get();
    return s.ok() ? FileSystemWrapper::DeleteFile(name, o, d) : s;
  }

 private:
  const std::shared_ptr<State> state_;
};

class SyncGuard::GuardedEnv final : public rocksdb::EnvWrapper {
 public:
  GuardedEnv(rocksdb::Env* base, std::shared_ptr<State> state) : EnvWrapper(base) {
    file_system_ = std::make_shared<Files>(base->GetFileSystem(), std::move(state));
    system_clock_ = base->GetSystemClock();
  }
};

SyncGuard::SyncGuard(rocksdb::Env* base)
    : state_(std::make_shared<State>()),
      env_(std::make_unique<GuardedEnv>(base != nullptr ? base : rocksdb::Env::Default(), state_)) {}
SyncGuard::~SyncGuard() = default;

rocksdb::Env* SyncGuard::env() const { return env_.get(); }

IOStatus SyncGuard::status() const { return state_->Get(); }

void SyncGuard::Reset() {
  absl::MutexLock lock(&state_->mu);
  state_->first = IOStatus::OK();
  state_->failed = false;
}

}  // namespace smt::store_internal
