#include "tests/e2e/chaos/full_disk.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace smt::testing {
namespace {

absl::Status Failed(const std::string& what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

}  // namespace

absl::Status FullDisk::PrivateMounts() {
  const uid_t user = ::geteuid();
  const gid_t group = ::getegid();
  if (::unshare(CLONE_NEWNS) != 0) {
    // Without privileges: as root of a user namespace of its own.
    if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return Failed("mounts of its own are not permitted");
    std::ofstream("/proc/self/setgroups") << "deny";
    std::ofstream("/proc/self/uid_map") << absl::StrCat("0 ", user, " 1");
    std::ofstream("/proc/self/gid_map") << absl::StrCat("0 ", group, " 1");
  }
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return Failed("making mounts private");
  return absl::OkStatus();
}

absl::Status FullDisk::Mount(const std::string& path, int64_t bytes) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return absl::UnavailableError(absl::StrCat("making ", path, ": ", error.message()));
  if (::mount("tmpfs", path.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, absl::StrCat("size=", bytes).c_str()) != 0) {
    return Failed("mounting a tmpfs is not permitted");
  }
  path_ = path;
  mounted_ = true;
  return absl::OkStatus();
}

FullDisk::~FullDisk() {
  if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
}

void FullDisk::Fill(int64_t left) {
  struct statvfs fs {};
  if (::statvfs(path_.c_str(), &fs) != 0) return;
  const int64_t bytes = static_cast<int64_t>(fs.f_bavail) * static_cast<int64_t>(fs.f_bsize) - left;
  const int fd = ::open((path_ + "/filler").c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
  if (fd < 0) return;
  if (bytes > 0) ::posix_fallocate(fd, 0, bytes);
  ::close(fd);
}

void FullDisk::Free() { ::unlink((path_ + "/filler").c_str()); }

}  // namespace smt::testing
