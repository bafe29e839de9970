// Runs one server and does to it whatever a machine may: kills it, cuts its power, freezes it, fills its disk, breaks
// connections. Its choices depend on the seed alone; when they strike depends on the machine.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "tests/e2e/chaos/dice.h"
#include "tests/e2e/chaos/findings.h"
#include "tests/e2e/chaos/full_disk.h"
#include "tests/e2e/proxy.h"
#include "tests/e2e/server_process.h"

namespace smt::testing {

class Adversary {
 public:
  struct Options {
    int number = 0;
    uint64_t seed = 1;
    std::string dir;                              // of the server's store and output
    std::string store_url;                        // Redis that all servers share, instead of a store of its own
    FullDisk* disk = nullptr;                     // that the store lies on, where it can be filled; outlives this
    absl::Duration mean_life = absl::Seconds(2);  // of a server
    int ports = 1;                                // of the proxy
    bool dishonest_disk = false;                  // syncs are pretended: what a loss of power takes must be found
  };
  Adversary(Options options, Findings* findings);

  // Until `enough`, then leaves a server running and undisturbed. Not OK: the server does not start any more.
  absl::Status Run(const std::function<bool()>& enough);
  // Ends the server that Run left; it must end well.
  void Stop();
  const Proxy& proxy() const { return proxy_; }

 private:
  enum class Ending { kKill, kCrashPoint, kPowerCut, kCrashAtStart, kTerminate };
  // A server's life from its start to its end.
  absl::Status Live();
  void Annoy();
  bool EndsByItself(absl::Time until);
  void CountDeath(Ending ending, const std::string& how);
  std::vector<std::string> Flags();

  const Options options_;
  Findings* const findings_;
  Dice dice_;
  Proxy proxy_;
  ServerProcess server_;
};

}  // namespace smt::testing
