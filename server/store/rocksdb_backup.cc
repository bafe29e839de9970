// A backup is made under another name and gets its own when it is whole and on disk.
#include <rocksdb/utilities/checkpoint.h>

#include <filesystem>
#include <memory>
#include <system_error>

#include "absl/cleanup/cleanup.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/store/rocksdb_internal.h"

namespace smt::store_internal {
namespace fs = std::filesystem;
namespace {

absl::Status Failed(const fs::path& dir, std::string_view why) {
  return absl::UnavailableError(StrCat("the backup '", dir.string(), "' cannot be made: ", why));
}

}  // namespace

absl::Status BackupDb(const OpenedDb& opened, const std::string& dir) {
  const fs::path target(dir), work(dir + ".partial");
  std::error_code ec;
  if (fs::exists(target, ec)) return absl::AlreadyExistsError(StrCat("there is a backup '", dir, "' already"));
  fs::create_directories(target.parent_path(), ec);
  // Whoever makes the folder makes the backup; one that a crash left is in the way until somebody looks at it.
  if (!ec && !fs::create_directory(work, ec) && !ec) {
    return absl::AlreadyExistsError(
        StrCat("'", work.string(), "' is there: a backup of this name is being made, or was broken off"));
  }
  if (ec) return Failed(target, ec.message());
  absl::Cleanup remove = [&] { fs::remove_all(work, ec); };

  rocksdb::Checkpoint* made = nullptr;
  rocksdb::Status s = rocksdb::Checkpoint::Create(opened.db.get(), &made);
  const std::unique_ptr<rocksdb::Checkpoint> checkpoint(made);
  // Flushes first, so that the backup does not rest on a write-ahead log.
  if (s.ok()) s = checkpoint->CreateCheckpoint((work / "rocksdb").string());
  if (s.IsNoSpace())
    return absl::ResourceExhaustedError(StrCat("no space left for the backup '", dir, "': ", s.ToString()));
  if (!s.ok()) return Failed(target, s.ToString());
  RETURN_IF_ERROR(WriteFormat(work.string()));
  SyncDirectory(work.string());
  fs::rename(work, target, ec);
  if (ec) return Failed(target, ec.message());
  std::move(remove).Cancel();
  SyncDirectory(target.parent_path().string());
  return absl::OkStatus();
}

}  // namespace smt::store_internal
