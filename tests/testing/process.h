// A child process with captured output, for tests that start real servers and clients. The child is killed when the
// object goes. Not thread-safe.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace smt::testing {

class Process {
 public:
  struct Options {
    std::vector<std::string> argv;         // argv[0] is a path
    std::vector<std::string> environment;  // "NAME=value", added to this process's
    std::string stdin_text;                // given to the child through a file
    std::string output_dir;                // where stdout and stderr are captured; must exist
    std::string name = "child";            // names the captured files
  };

  static absl::StatusOr<Process> Start(const Options& options);
  Process(Process&& other) noexcept;
  Process& operator=(Process&& other) noexcept;
  ~Process();

  pid_t pid() const { return pid_; }
  void Signal(int signal) const;
  // Exit code, or 128 + the signal that ended it. DEADLINE_EXCEEDED when it still runs after `timeout`.
  absl::StatusOr<int> Wait(absl::Duration timeout);
  bool Running();

  std::string Stdout() const;
  std::string Stderr() const;

 private:
  Process() = default;
  pid_t pid_ = -1;
  bool reaped_ = false;
  int exit_code_ = 0;
  std::string stdout_path_, stderr_path_;
};

// A temporary directory, removed with what is in it.
class TempDir {
 public:
  // In `base`, which is made where it is missing; empty: $TMPDIR, or /tmp.
  explicit TempDir(const std::string& base = "");
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }  // empty: it could not be made
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

std::string ReadFileOrEmpty(const std::string& path);
// The folder that this program and the others of its build are in.
std::string BinDir();

}  // namespace smt::testing
