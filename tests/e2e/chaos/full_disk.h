// A small file system in memory that can be filled and freed, where this process may mount one.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace smt::testing {

class FullDisk {
 public:
  ~FullDisk();

  // Gives the process mounts of its own, so that nothing stays mounted after it. While it has one thread only.
  static absl::Status PrivateMounts();
  // Mounts it on the folder, which is made. Not OK says why it is not possible here.
  absl::Status Mount(const std::string& path, int64_t bytes);
  const std::string& path() const { return path_; }

  // Leaves so many bytes free.
  void Fill(int64_t left);
  void Free();

 private:
  std::string path_;
  bool mounted_ = false;
};

}  // namespace smt::testing
