#include "tests/testing/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace smt::testing {

absl::StatusOr<Process> Process::Start(const Options& options) {
  Process process;
  process.stdout_path_ = absl::StrCat(options.output_dir, "/", options.name, ".stdout");
  process.stderr_path_ = absl::StrCat(options.output_dir, "/", options.name, ".stderr");
  const std::string stdin_path = absl::StrCat(options.output_dir, "/", options.name, ".stdin");
  std::ofstream(stdin_path) << options.stdin_text;

  // Everything that allocates is done before the fork.
  std::vector<char*> argv, environment;
  for (const std::string& arg : options.argv) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  for (char** e = environ; *e != nullptr; ++e) environment.push_back(*e);
  for (const std::string& e : options.environment) environment.push_back(const_cast<char*>(e.c_str()));
  environment.push_back(nullptr);

  process.pid_ = fork();
  if (process.pid_ < 0) return absl::InternalError(absl::StrCat("fork: ", std::strerror(errno)));
  if (process.pid_ == 0) {
    const int in = open(stdin_path.c_str(), O_RDONLY);
    const int out = open(process.stdout_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    const int err = open(process.stderr_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    dup2(in, 0);
    dup2(out, 1);
    dup2(err, 2);
    execve(argv[0], argv.data(), environment.data());
    _exit(127);
  }
  return process;
}

Process::Process(Process&& other) noexcept { *this = std::move(other); }

Process& Process::operator=(Process&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(reaped_, other.reaped_);
  std::swap(exit_code_, other.exit_code_);
  std::swap(stdout_path_, other.stdout_path_);
  std::swap(stderr_path_, other.stderr_path_);
  return *this;
}

Process::~Process() {
  if (pid_ > 0 && !reaped_) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
}

void Process::Signal(int signal) const {
  if (pid_ > 0 && !reaped_) kill(pid_, signal);
}

bool Process::Running() { return !Wait(absl::ZeroDuration()).ok(); }

absl::StatusOr<int> Process::Wait(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!reaped_) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      reaped_ = true;
      exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      break;
    }
    if (absl::Now() >= deadline) return absl::DeadlineExceededError(absl::StrCat("pid ", pid_, " still runs"));
    absl::SleepFor(absl::Milliseconds(5));
  }
  return exit_code_;
}

std::string Process::Stdout() const { return ReadFileOrEmpty(stdout_path_); }
std::string Process::Stderr() const { return ReadFileOrEmpty(stderr_path_); }

TempDir::TempDir(const std::string& base) {
  const char* usual = std::getenv("TMPDIR");
  std::error_code ignored;
  if (!base.empty()) std::filesystem::create_directories(base, ignored);
  std::string name = absl::StrCat(!base.empty() ? base.c_str() : usual != nullptr ? usual : "/tmp", "/smt-test-XXXXXX");
  path_ = mkdtemp(name.data()) != nullptr ? name : "";
}

TempDir::~TempDir() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

std::string ReadFileOrEmpty(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

std::string BinDir() { return std::filesystem::read_symlink("/proc/self/exe").parent_path().string(); }

}  // namespace smt::testing
