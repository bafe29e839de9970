#include "server/serve.h"

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "absl/synchronization/mutex.h"
#include "model/io/atomic_file.h"
#include "server/base/flag_sources.h"
#include "server/base/log.h"
#include "server/store/rocksdb_repair.h"

namespace smt {

int RefuseToStart(Server::ExitCode exit_code, const absl::Status& status) {
  LogError("cannot start", {{"reason", std::string(status.message())},
                            {"code", absl::StatusCodeToString(status.code())},
                            {"exit_status", exit_code}});
  return exit_code;
}

int Serve(const ServerOptions& options, const Server::ExecutorFactory& new_executor) {
  // Signals are taken by this thread alone; threads made from here on inherit the mask.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  // Debian's Abseil looks for lock cycles: each lock of any mutex would pass through one graph under one spinlock.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);

  Server::ExitCode exit_code = Server::kOk;
  auto server = Server::Start(options, &exit_code, new_executor);
  if (exit_code == Server::kDeviceFault) _exit(RefuseToStart(exit_code, server.status()));  // see below
  if (!server.ok()) return RefuseToStart(exit_code, server.status());
  const std::string line = (*server)->Announcement() + "\n";
  if (!options.address_file.empty()) {
    if (absl::Status status = WriteFileAtomically(options.address_file, line); !status.ok()) {
      return RefuseToStart(Server::kBadFlags, absl::InvalidArgumentError(FlagError("address_file", options.address_file,
                                                                                   std::string(status.message()))));
    }
  }
  std::fputs(line.c_str(), stdout);
  std::fflush(stdout);

  const timespec second = {.tv_sec = 1, .tv_nsec = 0};
  int signal_number = -1;
  while ((*server)->fault().ok() && (signal_number = sigtimedwait(&signals, nullptr, &second)) < 0) {
    (*server)->CheckHealth();
  }
  if (signal_number > 0) {
    LogInfo("going down", {{"signal", signal_number}});
  } else {
    LogError("going down", {{"reason", (*server)->fault()}});
  }
  // A second signal ends the process at once: what is durable stays so.
  signal(SIGTERM, SIG_DFL);
  signal(SIGINT, SIG_DFL);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  (*server)->Stop();
  if (!(*server)->fault().ok()) {
    LogError("stopped", {{"exit_status", Server::kDeviceFault}});
    // What is durable is on disk. Taking a failed device apart could hang, or fail once more.
    _exit(Server::kDeviceFault);
  }
  LogInfo("stopped");
  return Server::kOk;
}

int RepairStore(const std::string& store_dir) {
  RocksDbStoreOptions options;
  options.dir = store_dir;
  const absl::StatusOr<StoreRepair> repair = RepairRocksDbStore(options);
  if (!repair.ok()) return RefuseToStart(Server::kStore, repair.status());
  LogWarning("store repaired", {{"lost", repair->one_moment ? "what was written after the damage in the write-ahead log"
                                                            : "tables that cannot be read, and all snapshots"},
                                {"sessions", repair->sessions},
                                {"damaged_sessions", repair->damaged},
                                {"damaged_files", repair->damaged_path}});
  return Server::kOk;
}

}  // namespace smt
