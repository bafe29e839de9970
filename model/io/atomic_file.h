// A file that appears whole and durable under its name, or not at all.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace smt {

// Bytes go to a temporary neighbour (`path`.tmp.XXXXXX); Commit syncs it and renames it over `path`. Destroyed without
// a successful Commit, it removes the neighbour and leaves `path` as it was. Move-only, not thread-safe.
class AtomicFile {
 public:
  // An error names `path`: a missing folder is NOT_FOUND, an unwritable one PERMISSION_DENIED.
  static absl::StatusOr<AtomicFile> Create(const std::string& path);

  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  // After an error only destruction is useful. A full disk is RESOURCE_EXHAUSTED.
  absl::Status Append(std::string_view bytes);

  // fdatasync, rename, sync of the folder. Call at most once, and nothing after it.
  absl::Status Commit();

 private:
  AtomicFile(std::string path, std::string temporary, int fd)
      : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd) {}

  std::string path_;
  std::string temporary_;  // empty once renamed or moved from
  int fd_ = -1;
};

// The three calls in one.
absl::Status WriteFileAtomically(const std::string& path, std::string_view bytes);

}  // namespace smt
