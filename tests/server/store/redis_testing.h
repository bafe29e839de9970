// A redis-server of a test's own, on a Unix socket in a temporary directory: stopped, killed, started again, spoken to.
// It dies with the test program. Not thread-safe.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/store/redis_connection.h"
#include "server/store/redis_store.h"
#include "tests/server/store/rocksdb_testing.h"

namespace smt {

class RedisServer {
 public:
  // Null where redis-server is not installed. `arguments` are settings: {"--appendonly", "yes"}.
  static std::unique_ptr<RedisServer> Start(std::vector<std::string> arguments = {});
  // A Sentinel at 127.0.0.1:`port` that watches the master "sessions" at 127.0.0.1:`master_port`.
  static std::unique_ptr<RedisServer> StartSentinel(int port, int master_port);
  ~RedisServer();

  const std::string& dir() const { return dir_.path(); }
  std::string socket() const { return dir() + "/redis.sock"; }
  pid_t pid() const { return pid_; }
  RedisStoreOptions Options() const;  // of a store in it, with timeouts for tests

  void Kill();     // SIGKILL
  void Restart();  // after Kill: with what its files hold
  void Empty();    // removes its files; after Kill

  // On a connection of its own. Fails the test when it is not answered.
  store_internal::RedisReply Do(store_internal::RedisCommand command) const;
  // All keys that match, sorted.
  std::vector<std::string> Keys(const std::string& pattern = "*") const;

 private:
  RedisServer() = default;
  bool Answers() const;

  TempDir dir_;
  bool sentinel_ = false;
  std::vector<std::string> arguments_;
  pid_t pid_ = -1;
};

// Whether redis-server is installed.
bool HasRedisServer();
// A port of 127.0.0.1 that nobody uses now.
int FreePort();
// Path of an executable of PATH; empty when there is none.
std::string FindProgram(const std::string& name);

}  // namespace smt

#define SMT_SKIP_WITHOUT_REDIS() \
  if (!::smt::HasRedisServer()) GTEST_SKIP() << "redis-server is not installed: run scripts/setup"
