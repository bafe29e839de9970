#include "server/store/rocksdb_repair.h"

#include <fcntl.h>
#include <rocksdb/env.h>
#include <rocksdb/write_batch.h>
#include <stdio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/cleanup/cleanup.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/store/rocksdb_internal.h"
#include "server/store/rocksdb_reader.h"

namespace smt {
namespace {

using namespace store_internal;  // NOLINT: one library
namespace fs = std::filesystem;

constexpr size_t kPage = 1024;

class Repair {
 public:
  explicit Repair(const RocksDbStoreOptions& options)
      : options_(options),
        present_(fs::path(options.dir) / "rocksdb"),
        work_(fs::path(options.dir) / "rocksdb.repaired"),
        damaged_(fs::path(options.dir) / "rocksdb.damaged") {}

  absl::StatusOr<StoreRepair> Run() {
    std::error_code ec;
    if (!fs::is_directory(present_, ec)) return CannotUse(options_.dir, "there is no store in it");
    if (fs::exists(damaged_, ec)) {
      return CannotUse(options_.dir,
                       StrCat(damaged_.string(), " is there already, of an earlier repair; move it away"));
    }
    RETURN_IF_ERROR(CheckDirectory(options_.dir));
    RETURN_IF_ERROR(CheckFormat(options_.dir).status());
    rocksdb::Env* const env = rocksdb::Env::Default();
    rocksdb::FileLock* lock = nullptr;
    if (const rocksdb::Status s = env->LockFile((present_ / "LOCK").string(), &lock); !s.ok()) {
      return OpenError(options_.dir, s);
    }
    const auto unlock = absl::MakeCleanup([&] { env->UnlockFile(lock).PermitUncheckedError(); });

    RETURN_IF_ERROR(Copy());
    StoreRepair out;
    out.one_moment = OpenCopy(&out).ok();
    if (!out.one_moment) {
      RETURN_IF_ERROR(Copy());
      const rocksdb::Status s = rocksdb::RepairDB(work_.string(), DbOptions(options_), FamiliesOf(options_));
      if (!s.ok()) return absl::DataLossError(StrCat("store directory '", options_.dir, "': ", s.ToString()));
      drop_snapshots_ = true;
      RETURN_IF_ERROR(OpenCopy(&out));
    }
    RETURN_IF_ERROR(Exchange());
    out.damaged_path = damaged_.string();
    return out;
  }

 private:
  absl::Status Failed(std::string_view what, const std::error_code& ec) const {
    return CannotUse(options_.dir, StrCat(what, ": ", ec.message()));
  }

  // Tables and blobs are never written again: links will do.
  absl::Status Copy() const {
    std::error_code ec;
    fs::remove_all(work_, ec);
    if (!ec) fs::create_directory(work_, ec);
    if (ec) return Failed(work_.string(), ec);
    for (const auto& file : fs::directory_iterator(present_, ec)) {
      const std::string name = file.path().filename().string(), extension = file.path().extension().string();
      if (!file.is_regular_file() || name == "LOCK" || name.starts_with("LOG")) continue;
      std::error_code error;
      if (extension == ".sst" || extension == ".blob") fs::create_hard_link(file.path(), work_ / name, error);
      if (error || !fs::exists(work_ / name)) fs::copy_file(file.path(), work_ / name, error);
      if (error) return Failed(StrCat(name, " cannot be copied"), error);
    }
    return ec ? Failed(present_.string(), ec) : absl::OkStatus();
  }

  // Opens the copy, mends what hangs on what was lost, and looks at what there is.
  absl::Status OpenCopy(StoreRepair* out) const {
    OpenedDb opened;
    rocksdb::DB* db = nullptr;
    rocksdb::DBOptions options = DbOptions(options_);
    options.create_if_missing = false;
    rocksdb::Status s = rocksdb::DB::Open(options, work_.string(), FamiliesOf(options_), &opened.handles, &db);
    if (!s.ok()) return OpenError(options_.dir, s);
    opened.db.reset(db);
    const auto close = absl::MakeCleanup([&] {
      for (auto* handle : opened.handles) opened.db->DestroyColumnFamilyHandle(handle);
      opened.db->Close().PermitUncheckedError();
    });
    opened.cf = {opened.handles[1], opened.handles[2], opened.handles[3], opened.handles[4], opened.handles[5]};
    if (drop_snapshots_) RETURN_IF_ERROR(DropSnapshots(opened));
    out->sessions = out->damaged = 0;
    const RocksDbReader reader(opened);
    for (std::string after;;) {
      ASSIGN_OR_RETURN(const std::vector<StoredSession> page, reader.List(after, kPage));
      for (const StoredSession& session : page) {
        ++out->sessions;
        out->damaged += !session.header.ok();
      }
      if (page.size() < kPage) break;
      after = page.back().key.id;
    }
    s = opened.db->Flush(rocksdb::FlushOptions(), {opened.handles.begin(), opened.handles.end()});
    return s.ok() ? absl::OkStatus() : OpenError(options_.dir, s);
  }

  // RocksDB's repair forgets blob files, where the snapshots' bytes are. The logs make them anew.
  static absl::Status DropSnapshots(const OpenedDb& db) {
    rocksdb::WriteBatch batch;
    batch.DeleteRange(db.cf.snapshots, "", std::string(64, '\xff'));
    batch.DeleteRange(db.cf.references, SnapshotNameKey(""), PrefixEnd(SnapshotNameKey("")));
    rocksdb::WriteOptions write;
    write.sync = true;
    const rocksdb::Status s = db.db->Write(write, &batch);
    return s.ok() ? absl::OkStatus() : absl::DataLossError(s.ToString());
  }

  absl::Status Exchange() const {
    SyncDirectory(work_.string());
    if (::renameat2(AT_FDCWD, work_.c_str(), AT_FDCWD, present_.c_str(), RENAME_EXCHANGE) != 0) {
      return Failed("the repaired database cannot take the damaged one's place", {errno, std::generic_category()});
    }
    std::error_code ec;
    fs::rename(work_, damaged_, ec);
    SyncDirectory(options_.dir);
    return ec ? Failed(damaged_.string(), ec) : absl::OkStatus();
  }

  const RocksDbStoreOptions& options_;
  const fs::path present_, work_, damaged_;
  bool drop_snapshots_ = false;
};

}  // namespace

absl::StatusOr<StoreRepair> RepairRocksDbStore(const RocksDbStoreOptions& options) { return Repair(options).Run(); }

}  // namespace smt
