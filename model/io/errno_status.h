// What a failed system call becomes: "PATH: cannot ACTION: No such file or directory".
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "model/base/strings.h"

namespace smt {

// `error` is the call's errno; the code is Abseil's for it (ENOENT: NOT_FOUND, EACCES: PERMISSION_DENIED,
// ENOSPC: RESOURCE_EXHAUSTED, …).
inline absl::Status ErrnoStatus(int error, std::string_view path, std::string_view action) {
  return absl::ErrnoToStatus(error, ToAbsl(StrCat(path, ": cannot ", action)));
}

}  // namespace smt
