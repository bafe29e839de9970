// A Redis behind TLS and Sentinels, and failovers of it.
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "tests/server/store/redis_store_testing.h"

namespace smt {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

class RedisFailoverTest : public RedisStoreTest {};

TEST_F(RedisFailoverTest, TlsIsVerifiedBothWays) {
  if (FindProgram("openssl").empty()) GTEST_SKIP() << "openssl is not installed";
  TempDir dir;
  const std::string& d = dir.path();
  const std::string make =
      "cd " + d +
      " && exec >log 2>&1 && "
      "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.pem -days 2 "
      "-subj /CN=ca && cp ca.pem other.pem && "
      "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout x.key -out other.pem -days 2 "
      "-subj /CN=other && "
      "openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout s.key -out s.csr -subj /CN=s && "
      "printf 'subjectAltName=DNS:localhost,IP:127.0.0.1' >ext && "
      "openssl x509 -req -in s.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out s.pem";
  ASSERT_EQ(std::system(make.c_str()), 0);
  const std::string port = std::to_string(FreePort());
  Serve({"--tls-port", port, "--tls-cert-file", d + "/s.pem", "--tls-key-file", d + "/s.key", "--tls-ca-cert-file",
         d + "/ca.pem", "--tls-auth-clients", "yes"});
  auto options = server_->Options();
  options.address = "rediss://localhost:" + port;
  options.tls_ca = d + "/ca.pem";
  EXPECT_FALSE(OpenRedisStore(options).ok());  // it wants a certificate
  options.tls_cert = d + "/s.pem";
  options.tls_key = d + "/s.key";
  auto store = Open(options);
  const std::string big(3 << 20, 'x');
  ASSERT_OK(Commit(*store, Create("a", 1, std::vector<int32_t>(100000, 7))));
  ASSERT_OK(store->PutSnapshot({"a", 1}, {0, 2}, big, {}));
  EXPECT_EQ(*store->GetSnapshot({"a", 1}, {0, 2}), big);
  EXPECT_EQ(store->ReadLog({"a", 1}, 0, 1, 100000)->size(), 100000u);
  options.address = "127.0.0.1:" + port;  // TLS for its files' sake, its certificate names the address too
  EXPECT_OK(OpenRedisStore(options));
  options.address = "rediss://ip6-localhost:" + port;
  EXPECT_FALSE(OpenRedisStore(options).ok());
  options.address = "rediss://localhost:" + port;
  options.tls_ca = d + "/other.pem";
  EXPECT_THAT(OpenRedisStore(options), StatusIs(StatusCode::kUnavailable, HasSubstr("not trusted")));
  options.tls_ca = d + "/none.pem";
  EXPECT_THAT(OpenRedisStore(options), StatusIs(StatusCode::kInvalidArgument, HasSubstr("none.pem")));
}

TEST_F(RedisFailoverTest, SentinelsSayWhereTheMasterIs) {
  const int port = FreePort(), first = FreePort(), silent = FreePort();
  Serve({"--port", std::to_string(first)});
  const auto sentinel = RedisServer::StartSentinel(port, first);
  RedisStoreOptions options;
  options.address = "redis://127.0.0.1:" + std::to_string(silent) + ",127.0.0.1:" + std::to_string(port);
  options.sentinel_master = "sessions";
  auto store = Open(options);
  ASSERT_OK(Commit(*store, Create("a", 1)));
  EXPECT_FALSE(store->durable_sync());
  options.sentinel_master = "others";
  EXPECT_THAT(OpenRedisStore(options), StatusIs(StatusCode::kUnavailable, HasSubstr("'others'")));
  // Another master, which never had what the first one acknowledged.
  const int second = FreePort();
  const auto other = RedisServer::Start({"--port", std::to_string(second)});
  sentinel->Do({"SENTINEL", "REMOVE", "sessions"});
  sentinel->Do({"SENTINEL", "MONITOR", "sessions", "127.0.0.1", std::to_string(second), "1"});
  server_->Kill();
  EXPECT_THAT(Commit(*store, Append("a", 1, 0, {7})), IsReplaced());
}

TEST_F(RedisFailoverTest, AFailoverToAReplicaThatHasEverythingGoesOn) {
  const int port = FreePort(), second = FreePort();
  Serve({"--port", std::to_string(port), "--repl-diskless-sync-delay", "0"});
  auto store = Open();
  ASSERT_OK(Commit(*store, Create("a", 1, {5})));
  const auto replica = RedisServer::Start({"--port", std::to_string(second)});
  replica->Do({"REPLICAOF", "127.0.0.1", std::to_string(port)});
  const std::string counter = server_->Keys("smt:writer:*").at(0);
  for (int i = 0; i < 2000 && replica->Do({"GET", counter}).is_nil(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ASSERT_OK(Commit(*store, Append("a", 1, 1, {6})));
  // WAIT would answer for what its own connection has written. The counter changes with every commit.
  const std::string last = server_->Do({"GET", counter}).text;
  for (int i = 0; i < 2000 && replica->Do({"GET", counter}).text != last; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  server_->Kill();
  replica->Do({"REPLICAOF", "NO", "ONE"});
  fs::remove(server_->socket());
  fs::create_symlink(replica->socket(), server_->socket());
  ASSERT_OK(Commit(*store, Append("a", 1, 2, {7})));
  EXPECT_THAT(*store->ReadLog({"a", 1}, 0, 1, 3), ElementsAre(5, 6, 7));
}

TEST_F(RedisFailoverTest, AFailoverToAReplicaThatLacksWritesIsAnotherStore) {
  const int port = FreePort(), second = FreePort();
  Settings settings = kDurable;
  settings.insert(settings.end(), {"--port", std::to_string(port), "--repl-diskless-sync-delay", "0"});
  Serve(settings);
  auto store = Open(), other = Open();
  EXPECT_TRUE(store->durable_sync());
  ASSERT_OK(Commit(*store, Create("a", 1, {5})));
  ASSERT_OK(Commit(*other, Create("b", 2, {5})));
  const auto replica = RedisServer::Start({"--port", std::to_string(second)});
  replica->Do({"REPLICAOF", "127.0.0.1", std::to_string(port)});
  for (int i = 0; i < 2000 && replica->Keys() != server_->Keys(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_FALSE(Open()->durable_sync()) << "a replica could take over";
  replica->Do({"REPLICAOF", "NO", "ONE"});
  ASSERT_OK(Commit(*store, Append("a", 1, 1, {6})));  // acknowledged, and lost with the master
  server_->Kill();
  fs::remove(server_->socket());
  fs::create_symlink(replica->socket(), server_->socket());
  EXPECT_THAT(Commit(*store, Append("a", 1, 2, {7})), IsReplaced());
  EXPECT_THAT(*replica->Keys("smt:*:l:0:*").begin(), HasSubstr("0000000000000001"));
  // Nothing was lost of what this one had acknowledged, but of another's.
  EXPECT_THAT(Commit(*other, Append("b", 2, 1, {6})), IsReplaced());
  auto anew = Open();
  EXPECT_THAT(*anew->ReadLog({"a", 1}, 0, 1, 1), ElementsAre(5));
  EXPECT_EQ(*anew->LogEnd({"a", 1}, 0), 1) << "no id after the lost one";
}

}  // namespace
}  // namespace smt
