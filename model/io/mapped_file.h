// A file mapped read-only into memory: a model of any size opens at once and is read as it is used.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace smt {

// Move-only; const use is thread-safe. The file must not be truncated while it is mapped (the reader would get SIGBUS);
// replacing it by rename, as AtomicFile does, is safe.
class MappedFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED, or INVALID_ARGUMENT for what is not a regular file; messages begin with `path`.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  // The whole file, page-aligned; valid while this object (or what it was moved to) lives.
  std::string_view bytes() const { return {data_, size_}; }

 private:
  MappedFile(const char* data, size_t size) : data_(data), size_(size) {}

  const char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace smt
