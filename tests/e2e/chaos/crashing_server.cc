// smt_server as it is, but it ends at a chosen place as SIGKILL or a loss of power would end it. A program of its own,
// so that what is shipped has no way to do so.
//
//   --crash_at=PLACE:COUNT  at the COUNT-th passage of PLACE, one of server/base/crash_point.h's or
//                             before_sync, after_sync   around the fdatasync of a file, RocksDB's logs for one
//   --crash_after=DURATION  at that time after the start, ready or not
//   --power_cut             what no fdatasync had returned for is lost then: RocksDB's logs are cut where they were
//   last
//                           synced, and nobody is told of a sync that returned since. SIGUSR1 cuts the power too.
//   --dishonest_disk        fdatasync does nothing, so that a loss of power shows
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/numbers.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/base/crash_point.h"
#include "server/serve.h"

// Those of smt_server's flags that the tests give.
ABSL_FLAG(std::string, model_dir, "", "");
ABSL_FLAG(std::string, store_dir, "", "");
ABSL_FLAG(std::string, store_url, "", "");
ABSL_FLAG(absl::Duration, store_wait, absl::ZeroDuration(), "");
ABSL_FLAG(absl::Duration, lease_ttl, absl::Seconds(10), "");
ABSL_FLAG(std::string, listen_address, "", "");
ABSL_FLAG(std::string, metrics_address, "", "");
ABSL_FLAG(std::string, address_file, "", "");
ABSL_FLAG(std::string, device, "cpu", "");
ABSL_FLAG(absl::Duration, drain_delay, absl::ZeroDuration(), "");
ABSL_FLAG(int32_t, max_slots, 64, "");
ABSL_FLAG(int64_t, store_min_free_bytes, int64_t{64} << 20, "");
ABSL_FLAG(std::string, crash_at, "", "PLACE:COUNT.");
ABSL_FLAG(absl::Duration, crash_after, absl::InfiniteDuration(), "After the start.");
ABSL_FLAG(bool, power_cut, false, "Whether a crash loses what was not synced.");
ABSL_FLAG(bool, dishonest_disk, false, "Whether syncs are only pretended.");

namespace smt {
namespace {

// How far the store's write-ahead logs are known to be on disk.
class SyncedLogs {
 public:
  // Logs that a predecessor left are as durable as they will be: they are only read.
  void Watch(const std::string& store_dir) {
    absl::MutexLock lock(&mu_);
    dir_ = store_dir + "/rocksdb";
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(dir_, ignored)) old_.insert(entry.path().string());
  }

  // From now on syncs are pretended.
  void Pretend() {
    absl::MutexLock lock(&mu_);
    pretend_ = true;
  }

  int Sync(int fd) {
    {
      absl::MutexLock lock(&mu_);
      if (pretend_) return 0;
    }
    struct stat before {};
    const bool known = ::fstat(fd, &before) == 0;
    const int result = static_cast<int>(::syscall(SYS_fdatasync, fd));
    if (!known || result != 0) return result;
    std::error_code ignored;
    const std::string path = std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd), ignored).string();
    absl::MutexLock lock(&mu_);  // after the power went nobody gets out of here
    synced_[path] = before.st_size;
    return result;
  }

  // Takes the lock for good.
  void Cut() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    mu_.Lock();
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(dir_, ignored)) {
      const std::string path = entry.path().string();
      if (entry.path().extension() != ".log" || old_.count(path) > 0) continue;
      const auto synced = synced_.find(path);
      const int64_t keep = synced == synced_.end() ? 0 : synced->second;
      if (static_cast<int64_t>(entry.file_size(ignored)) > keep) std::filesystem::resize_file(path, keep, ignored);
    }
  }

 private:
  absl::Mutex mu_;
  bool pretend_ ABSL_GUARDED_BY(mu_) = false;
  std::string dir_ ABSL_GUARDED_BY(mu_);
  std::set<std::string> old_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, int64_t> synced_ ABSL_GUARDED_BY(mu_);
};

SyncedLogs& Logs() {
  static auto* logs = new SyncedLogs;
  return *logs;
}

std::string crash_place;  // const once the server starts
std::atomic<int64_t> passages_left = 0;
bool power_cut = false;  // likewise

[[noreturn]] void Crash(bool cut) {
  static std::atomic<bool> crashing = false;
  if (!crashing.exchange(true)) {
    if (cut) Logs().Cut();
    ::kill(::getpid(), SIGKILL);
  }
  for (;;) ::pause();
}

void OnPlace(const char* place) {
  if (crash_place == place && passages_left.fetch_sub(1) == 1) Crash(power_cut);
}

// INVALID as a whole is fine for a test's program: false.
bool ArmPlace(const std::string& text) {
  const size_t colon = text.find(':');
  int64_t count = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(text.substr(colon + 1), &count) || count < 1) return false;
  crash_place = text.substr(0, colon);
  passages_left = count;
  crash_hook = &OnPlace;
  return true;
}

}  // namespace
}  // namespace smt

// RocksDB's, in place of the C library's.
extern "C" int fdatasync(int fd) {
  smt::CrashPoint("before_sync");
  const int result = smt::Logs().Sync(fd);
  smt::CrashPoint("after_sync");
  return result;
}

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  smt::ServerOptions options;
  options.model_dir = absl::GetFlag(FLAGS_model_dir);
  options.store_dir = absl::GetFlag(FLAGS_store_dir);
  options.redis.address = absl::GetFlag(FLAGS_store_url);
  options.redis.wait_at_start = absl::GetFlag(FLAGS_store_wait);
  options.lease_ttl = absl::GetFlag(FLAGS_lease_ttl);
  options.listen_address = absl::GetFlag(FLAGS_listen_address);
  options.metrics_address = absl::GetFlag(FLAGS_metrics_address);
  options.address_file = absl::GetFlag(FLAGS_address_file);
  options.device = absl::GetFlag(FLAGS_device);
  options.drain_delay = absl::GetFlag(FLAGS_drain_delay);
  options.max_slots = absl::GetFlag(FLAGS_max_slots);
  options.store_min_free_bytes = absl::GetFlag(FLAGS_store_min_free_bytes);
  smt::power_cut = absl::GetFlag(FLAGS_power_cut);
  smt::Logs().Watch(options.store_dir);
  if (absl::GetFlag(FLAGS_dishonest_disk)) smt::Logs().Pretend();
  if (const std::string place = absl::GetFlag(FLAGS_crash_at); !place.empty() && !smt::ArmPlace(place)) return 1;

  sigset_t power;
  sigemptyset(&power);
  sigaddset(&power, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &power, nullptr);  // every other thread inherits it
  std::thread([power] {
    int signal = 0;
    if (sigwait(&power, &signal) == 0) smt::Crash(true);
  }).detach();
  if (const absl::Duration after = absl::GetFlag(FLAGS_crash_after); after < absl::InfiniteDuration()) {
    std::thread([after] {
      absl::SleepFor(after);
      smt::Crash(smt::power_cut);
    }).detach();
  }
  return smt::Serve(options);
}
