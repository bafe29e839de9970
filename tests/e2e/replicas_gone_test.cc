// Several servers, one Redis: streams go on whatever becomes of a server, or of the Redis.
#include <signal.h>

#include <deque>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "tests/e2e/replicas_testing.h"

namespace smt::testing {
namespace {

TEST_F(ReplicasTest, StreamsGoOnByThemselvesWhenTheirServerIsKilled) {
  constexpr size_t kTokens = 3000;
  ServerProcess& a = StartServer();
  StartServer();
  StartServer();
  const auto client = ClientOfAll();
  std::deque<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < 4; ++i) {
    streams.push_back(Stream::ThroughRestarts(
        *client,
        Request(absl::StrCat("story-", i), "r", kTokens, i % 2 == 0 ? v1::DURABILITY_TURN : v1::DURABILITY_TOKEN)));
  }
  for (auto& stream : streams) ASSERT_TRUE(stream->WaitFor(50)) << stream->WaitForEnd().message;
  a.Kill();
  for (auto& stream : streams) {
    const client::Error error = stream->WaitForEnd(absl::Seconds(110));
    EXPECT_TRUE(error.ok()) << error.message;
    ExpectUndisturbed(stream->Have(), kTokens);
  }
}

// As scripts/replicas sets it up. A balancer breaks a stream off in its own way when its server dies.
TEST_F(ReplicasTest, StreamsGoOnByThemselvesThroughALoadBalancer) {
  const std::string nginx = FindProgram("nginx");
  if (nginx.empty()) GTEST_SKIP() << "nginx is not installed: run scripts/setup --replicas";
  constexpr size_t kTokens = 3000;
  for (int i = 0; i < 3; ++i) StartServer();
  const TempDir dir;
  const std::string address = absl::StrCat("127.0.0.1:", FreePort()), temp = dir.file("temp");
  std::string upstream;
  for (const auto& server : servers_) {
    absl::StrAppend(&upstream, "server ", server->address(), " max_fails=1 fail_timeout=1s; ");
  }
  std::string paths;
  for (const char* what : {"client_body", "proxy", "fastcgi", "uwsgi", "scgi"}) {
    absl::StrAppend(&paths, what, "_temp_path ", temp, "; ");
  }
  std::ofstream(dir.file("nginx.conf")) << "daemon off; pid " << dir.file("pid")
                                        << "; worker_processes 1; events { worker_connections 256; }\n"
                                        << "http { access_log off; " << paths << "upstream servers { least_conn; "
                                        << upstream << "}\nserver { listen " << address
                                        << " http2; location / { grpc_pass grpc://servers; grpc_read_timeout 1h; "
                                        << "grpc_next_upstream error timeout non_idempotent; } } }\n";
  auto balancer = Process::Start({.argv = {nginx, "-e", dir.file("log"), "-c", dir.file("nginx.conf")},
                                  .output_dir = dir.path(),
                                  .name = "nginx"});
  ASSERT_TRUE(balancer.ok()) << balancer.status().ToString();
  client::Client::Options options;
  options.address = address;
  options.stream_timeout = absl::Seconds(120);
  client::Client client(options);
  ASSERT_TRUE(client.WaitForConnection(absl::Seconds(20))) << ReadFileOrEmpty(dir.file("log"));
  std::deque<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < 6; ++i) {
    streams.push_back(Stream::ThroughRestarts(
        client,
        Request(absl::StrCat("story-", i), "r", kTokens, i % 2 == 0 ? v1::DURABILITY_TURN : v1::DURABILITY_TOKEN)));
  }
  for (auto& stream : streams) ASSERT_TRUE(stream->WaitFor(50)) << stream->WaitForEnd().message;
  servers_[0]->Kill();
  for (auto& stream : streams) ASSERT_TRUE(stream->WaitFor(600)) << stream->WaitForEnd().message;
  EXPECT_TRUE(servers_[1]->Terminate(absl::Seconds(10)).ok());
  for (auto& stream : streams) {
    const client::Error error = stream->WaitForEnd(absl::Seconds(110));
    EXPECT_TRUE(error.ok()) << error.message;
    ExpectUndisturbed(stream->Have(), kTokens);
  }
  balancer->Signal(SIGTERM);
  EXPECT_TRUE(balancer->Wait(absl::Seconds(10)).ok());
}

TEST_F(ReplicasTest, AServerThatIsToldToEndHandsItsStreamsOver) {
  constexpr size_t kTokens = 3000;
  ServerProcess& a = StartServer();
  StartServer();
  const auto client = ClientOfAll();
  std::deque<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < 4; ++i) {
    streams.push_back(Stream::ThroughRestarts(*client, Request(absl::StrCat("story-", i), "r", kTokens)));
  }
  for (auto& stream : streams) ASSERT_TRUE(stream->WaitFor(50)) << stream->WaitForEnd().message;
  const absl::Time asked = absl::Now();
  const auto exit_code = a.Terminate(absl::Seconds(10));
  ASSERT_TRUE(exit_code.ok()) << "still running after 10 s: " << a.Stderr();
  EXPECT_EQ(*exit_code, 0);
  RecordProperty("ended_ms", static_cast<int>((absl::Now() - asked) / absl::Milliseconds(1)));
  for (auto& stream : streams) {
    const client::Error error = stream->WaitForEnd(absl::Seconds(110));
    EXPECT_TRUE(error.ok()) << error.message;
    ExpectUndisturbed(stream->Have(), kTokens);
  }
}

TEST_F(ReplicasTest, AServerWithManyStreamsParksThemAllBeforeItEnds) {
  constexpr int kStreams = 48;
  constexpr size_t kTokens = 500;
  ServerProcess& a = StartServer();
  StartServer();
  const auto client = ClientOfAll();
  std::deque<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < kStreams; ++i) {
    streams.push_back(Stream::ThroughRestarts(
        *client,
        Request(absl::StrCat("story-", i), "r", kTokens, i % 2 == 0 ? v1::DURABILITY_TURN : v1::DURABILITY_TOKEN)));
  }
  for (auto& stream : streams) ASSERT_TRUE(stream->WaitFor(10)) << stream->WaitForEnd().message;
  size_t running = 0;
  for (auto& stream : streams) running += !stream->Have().finished;
  EXPECT_EQ(running, static_cast<size_t>(kStreams)) << "ended too early to be parked";
  const auto exit_code = a.Terminate(absl::Seconds(10));
  ASSERT_TRUE(exit_code.ok()) << "still running after 10 s: " << a.Stderr();
  EXPECT_EQ(*exit_code, 0);
  for (auto& stream : streams) {
    const client::Error error = stream->WaitForEnd(absl::Seconds(110));
    EXPECT_TRUE(error.ok()) << error.message;
    ExpectUndisturbed(stream->Have(), kTokens);
  }
}

// Killed and back with its files, or silent for longer than a lease.
class RedisGoneTest : public ReplicasTest, public ::testing::WithParamInterface<bool> {};

TEST_P(RedisGoneTest, StreamsGoOnWhenItIsBack) {
  constexpr size_t kTokens = 5000;
  ServerProcess &a = StartServer(), &b = StartServer();
  const auto client_a = a.NewClient(), client_b = b.NewClient();
  const auto turn = Stream::ThroughRestarts(*client_a, Request("turn", "r", kTokens));
  const auto token = Stream::ThroughRestarts(*client_b, Request("token", "r", kTokens, v1::DURABILITY_TOKEN));
  ASSERT_TRUE(turn->WaitFor(50)) << turn->WaitForEnd().message;
  ASSERT_TRUE(token->WaitFor(50)) << token->WaitForEnd().message;
  const bool kill = GetParam();
  if (kill) {
    redis_->Kill();
  } else {
    ::kill(redis_->pid(), SIGSTOP);
  }
  client::Client::Options options;
  options.address = a.address();
  client::Client other(options);
  const client::Error refused = Generate(other, Spec("other", kOpening, 5)).error;
  EXPECT_EQ(refused.code, grpc::StatusCode::UNAVAILABLE) << refused.message;
  bool ready = true;
  for (const absl::Time limit = absl::Now() + absl::Seconds(5); ready && absl::Now() < limit;) {
    EXPECT_TRUE(other.Health("", &ready).ok());
    absl::SleepFor(absl::Milliseconds(50));
  }
  EXPECT_FALSE(ready) << "a server without its store says it is ready";
  absl::SleepFor(kLease);
  if (kill) {
    redis_->Restart();
  } else {
    ::kill(redis_->pid(), SIGCONT);
  }
  for (Stream* stream : {turn.get(), token.get()}) {
    const client::Error error = stream->WaitForEnd(absl::Seconds(110));
    EXPECT_TRUE(error.ok()) << error.reason << ": " << error.message;
    ExpectUndisturbed(stream->Have(), kTokens);
  }
  for (const absl::Time limit = absl::Now() + absl::Seconds(10); !ready && absl::Now() < limit;) {
    EXPECT_TRUE(other.Health("", &ready).ok());
    absl::SleepFor(absl::Milliseconds(50));
  }
  EXPECT_TRUE(ready);
}
INSTANTIATE_TEST_SUITE_P(Replicas, RedisGoneTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Killed" : "Frozen"; });

TEST_F(ReplicasTest, AStreamGoesOnWhenTheStoreHasRoomAgain) {
  constexpr size_t kTokens = 5000;
  const auto client = StartServer().NewClient();
  const auto stream = Stream::ThroughRestarts(*client, Request("story", "r", kTokens, v1::DURABILITY_TOKEN));
  ASSERT_TRUE(stream->WaitFor(50)) << stream->WaitForEnd().message;
  redis_->Do({"CONFIG", "SET", "maxmemory", "1mb"});
  // Whoever does not come back by itself is told.
  const client::Error refused = Generate(*client, Spec("other", kOpening, 5)).error;
  EXPECT_EQ(refused.code, grpc::StatusCode::RESOURCE_EXHAUSTED) << refused.message;
  absl::SleepFor(absl::Seconds(1));
  EXPECT_LT(stream->Have().ids.size(), kTokens) << "it ended before the store was full";
  redis_->Do({"CONFIG", "SET", "maxmemory", "0"});
  const client::Error error = stream->WaitForEnd(absl::Seconds(110));
  EXPECT_TRUE(error.ok()) << error.reason << ": " << error.message;
  ExpectUndisturbed(stream->Have(), kTokens);
}

}  // namespace
}  // namespace smt::testing
