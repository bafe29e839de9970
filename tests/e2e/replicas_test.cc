// Several servers, one Redis: a session is anybody's to go on with, one server at a time, whatever becomes of the
// others. Real processes throughout.
#include <signal.h>

#include <deque>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/e2e/server_process.h"
#include "tests/server/store/redis_testing.h"

namespace smt::testing {
namespace {

using ::testing::ElementsAreArray;

constexpr char kOpening[] = "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals";
constexpr absl::Duration kLease = absl::Seconds(2);
constexpr absl::Duration kPatience = absl::Seconds(60);  // of what must happen at last, on a busy machine

v1::GenerationSpec Request(const std::string& session, const std::string& request_id, int64_t tokens,
                           v1::Durability durability = v1::DURABILITY_TURN) {
  v1::GenerationSpec spec = Spec(session, kOpening, tokens);
  spec.set_request_id(request_id);
  spec.set_durability(durability);
  return spec;
}

// What Request gives where nothing happens; ids do not depend on how many are asked for.
const Outcome& Undisturbed() {
  static const Outcome* outcome = [] {
    ServerProcess server;
    EXPECT_TRUE(server.Start().ok()) << server.Stderr();
    return new Outcome(Generate(*server.NewClient(), Request("story", "r", 6000)));
  }();
  return *outcome;
}

// What a client has of a stream.
struct Read {
  std::vector<int32_t> ids;
  std::string text;
  int64_t position = 0;
  std::string digest;
  bool started = false, finished = false;
  absl::Time last;  // when the last id came

  void Take(const v1::GenerationEvent& event) {
    if (event.has_started() && !started) {
      started = true;
      position = event.started().start_position() + event.started().prompt_tokens();
      digest = event.started().digest();
    }
    if (event.has_chunk()) {
      const v1::GenerationChunk& chunk = event.chunk();
      position += chunk.token_ids_size();
      EXPECT_EQ(chunk.position(), position) << "a gap, or ids twice";
      ids.insert(ids.end(), chunk.token_ids().begin(), chunk.token_ids().end());
      text += chunk.text();
      digest = chunk.digest();
      last = absl::Now();
    }
    finished |= event.has_finished();
  }
};

// A stream that is read by a thread of its own.
class Stream {
 public:
  using Call = std::function<client::Error(const std::function<bool(const v1::GenerationEvent&)>& take,
                                           grpc::ClientContext* context)>;
  explicit Stream(Call call, Read have = {}) : read_(std::move(have)) {
    thread_ = std::thread([this, call = std::move(call)] {
      const auto take = [this](const v1::GenerationEvent& event) {
        absl::MutexLock lock(&mu_);
        read_.Take(event);
        return true;
      };
      client::Error error = call(take, &context_);
      absl::MutexLock lock(&mu_);
      error_ = std::move(error);
      ended_ = true;
    });
  }
  ~Stream() {
    context_.TryCancel();
    thread_.join();
  }
  static std::unique_ptr<Stream> Begin(client::Client& client, const v1::GenerationSpec& spec) {
    return std::make_unique<Stream>(
        [&client, spec](const auto& take, auto* context) { return client.StreamGenerate(spec, take, context); });
  }
  static std::unique_ptr<Stream> Resume(client::Client& client, const v1::GenerationSpec& spec, const Read& have) {
    v1::ResumeGenerateRequest request;
    request.set_session(spec.session());
    request.set_request_id(spec.request_id());
    request.set_after_position(have.position);
    request.set_after_digest(have.digest);
    return std::make_unique<Stream>(
        [&client, request](const auto& take, auto* context) { return client.ResumeGenerate(request, take, context); },
        have);
  }
  static std::unique_ptr<Stream> ThroughRestarts(client::Client& client, const v1::GenerationSpec& spec) {
    return std::make_unique<Stream>(
        [&client, spec](const auto& take, auto*) { return client.StreamThroughRestarts(spec, kPatience, take); });
  }

  // Waits until it has this many ids; false when it ends before, or does not get there.
  bool WaitFor(size_t ids) {
    const auto there = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return ended_ || read_.ids.size() >= ids; };
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&there), kPatience) && read_.ids.size() >= ids;
  }
  client::Error WaitForEnd(absl::Duration patience = kPatience) {
    absl::MutexLock lock(&mu_);
    EXPECT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&ended_), patience)) << "the stream does not end";
    return error_;
  }
  Read Have() const {
    absl::MutexLock lock(&mu_);
    return read_;
  }

 private:
  mutable absl::Mutex mu_;
  Read read_ ABSL_GUARDED_BY(mu_);
  client::Error error_ ABSL_GUARDED_BY(mu_);
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  grpc::ClientContext context_;
  std::thread thread_;
};

class ReplicasTest : public ::testing::Test {
 protected:
  void SetUp() override {
    SMT_SKIP_WITHOUT_REDIS();
    redis_ = RedisServer::Start({"--appendonly", "yes", "--appendfsync", "always"});
    ASSERT_NE(redis_, nullptr);
  }
  ServerProcess& StartServer(const RedisServer& redis) {
    servers_.push_back(std::make_unique<ServerProcess>(ServerProcess::Options{
        .store_url = redis.socket(),
        .flags = {absl::StrCat("--lease_ttl=", absl::FormatDuration(kLease)), "--store_timeout=1s"}}));
    const absl::Status started = servers_.back()->Start();
    EXPECT_TRUE(started.ok()) << started.ToString();
    return *servers_.back();
  }
  ServerProcess& StartServer() { return StartServer(*redis_); }
  // One that knows all servers and goes to the next when one is gone.
  std::unique_ptr<client::Client> ClientOfAll() const {
    std::string address = "ipv4:";
    for (const auto& server : servers_) absl::StrAppend(&address, address.size() > 5 ? "," : "", server->address());
    client::Client::Options options;
    options.address = address;
    options.stream_timeout = absl::Seconds(120);
    return std::make_unique<client::Client>(options);
  }
  static void ExpectUndisturbed(const Read& read, size_t tokens) {
    const std::vector<int32_t>& all = Undisturbed().ids;
    ASSERT_LE(tokens, all.size());
    ASSERT_EQ(read.ids.size(), tokens);
    EXPECT_TRUE(std::equal(read.ids.begin(), read.ids.end(), all.begin())) << "not what an undisturbed server says";
    EXPECT_EQ(Undisturbed().text.substr(0, read.text.size()), read.text);
  }
  static v1::Session SessionAt(const ServerProcess& server, const std::string& session) {
    v1::Session out;
    const client::Error error = server.NewClient()->GetSession(client::SessionName(session), &out);
    EXPECT_TRUE(error.ok()) << error.message;
    return out;
  }

  std::unique_ptr<RedisServer> redis_;
  std::vector<std::unique_ptr<ServerProcess>> servers_;
};

TEST_F(ReplicasTest, TurnsOfOneSessionAlternateBetweenServersAndGiveTheTextOfOne) {
  constexpr int kTurns = 9;
  const auto spec = [](int turn) {
    return Spec("story", absl::StrCat(turn == 0 ? kOpening : " Then,", " ", turn), 40, 100 + turn);
  };
  ServerProcess alone;
  ASSERT_TRUE(alone.Start().ok()) << alone.Stderr();
  for (int i = 0; i < 3; ++i) StartServer();
  for (int turn = 0; turn < kTurns; ++turn) {
    const Outcome want = Generate(*alone.NewClient(), spec(turn));
    const Outcome got = Generate(*servers_[turn % 3]->NewClient(), spec(turn));
    ASSERT_TRUE(got.error.ok()) << got.error.message;
    EXPECT_EQ(got.text, want.text) << "turn " << turn;
    EXPECT_THAT(got.ids, ElementsAreArray(want.ids));
    EXPECT_EQ(got.finished.position(), want.finished.position());
    EXPECT_EQ(got.finished.durable_position(), got.finished.position());
  }
}

class HandoverTest : public ReplicasTest, public ::testing::WithParamInterface<v1::Durability> {};

TEST_P(HandoverTest, AResumeOnAnotherServerEndsTheStreamAndGoesOnWithIt) {
  constexpr size_t kTokens = 4000;
  ServerProcess &a = StartServer(), &b = StartServer();
  const auto client_a = a.NewClient(), client_b = b.NewClient();
  const v1::GenerationSpec spec = Request("story", "r", kTokens, GetParam());
  const auto first = Stream::Begin(*client_a, spec);
  ASSERT_TRUE(first->WaitFor(100)) << first->WaitForEnd().message;
  const Read have = first->Have();
  const absl::Time asked = absl::Now();
  const auto second = Stream::Resume(*client_b, spec, have);
  const client::Error ended = first->WaitForEnd();
  const absl::Time parked = absl::Now();
  EXPECT_EQ(ended.code, grpc::StatusCode::ABORTED) << ended.message;
  EXPECT_EQ(ended.reason, "TAKEN_OVER");
  ASSERT_TRUE(second->WaitFor(first->Have().ids.size() + 1)) << second->WaitForEnd().message;
  const absl::Time on = second->Have().last;
  const client::Error error = second->WaitForEnd();
  EXPECT_TRUE(error.ok()) << error.message;
  ExpectUndisturbed(second->Have(), kTokens);
  ExpectUndisturbed(first->Have(), first->Have().ids.size());
  EXPECT_LT(first->Have().ids.size(), kTokens) << "it was not taken over in the middle";
  EXPECT_LT(on - asked, kLease) << "asked for, not waited out";
  RecordProperty("parked_ms", static_cast<int>((parked - asked) / absl::Milliseconds(1)));
  RecordProperty("handover_ms", static_cast<int>((on - asked) / absl::Milliseconds(1)));
  RecordProperty("ids_sent_meanwhile", static_cast<int>(first->Have().ids.size() - have.ids.size()));
}

TEST_P(HandoverTest, WhatAKilledServerStreamedGoesOnElsewhereWithinTheLease) {
  constexpr size_t kTokens = 3000;
  ServerProcess &a = StartServer(), &b = StartServer();
  const auto client_a = a.NewClient(), client_b = b.NewClient();
  const v1::GenerationSpec spec = Request("story", "r", kTokens, GetParam());
  const auto first = Stream::Begin(*client_a, spec);
  ASSERT_TRUE(first->WaitFor(100)) << first->WaitForEnd().message;
  a.Kill();
  const absl::Time killed = absl::Now();
  EXPECT_EQ(first->WaitForEnd().code, grpc::StatusCode::UNAVAILABLE);
  const Read have = first->Have();
  ASSERT_LT(have.ids.size(), kTokens) << "killed too late";
  const auto second = Stream::Resume(*client_b, spec, have);
  ASSERT_TRUE(second->WaitFor(have.ids.size() + 1)) << second->WaitForEnd().message;
  EXPECT_LT(second->Have().last - killed, kLease + absl::Seconds(1));
  RecordProperty("resumed_ms", static_cast<int>((second->Have().last - killed) / absl::Milliseconds(1)));
  const client::Error error = second->WaitForEnd();
  EXPECT_TRUE(error.ok()) << error.message;
  ExpectUndisturbed(second->Have(), kTokens);
}

TEST_P(HandoverTest, ARequestThatRunsElsewhereIsSeenAndCancelled) {
  ServerProcess &a = StartServer(), &b = StartServer();
  const auto client_a = a.NewClient(), client_b = b.NewClient();
  const v1::GenerationSpec spec = Request("story", "r", 100'000, GetParam());
  const auto stream = Stream::Begin(*client_a, spec);
  ASSERT_TRUE(stream->WaitFor(200)) << stream->WaitForEnd().message;
  v1::Generation seen;
  client::Error error = client_b->GetGeneration("sessions/story", "r", &seen);
  ASSERT_TRUE(error.ok()) << error.message;
  EXPECT_EQ(seen.state(), v1::GENERATION_STATE_RUNNING);
  EXPECT_GT(seen.position(), seen.start_position() + seen.prompt_tokens());
  const absl::Time asked = absl::Now();
  v1::Generation cancelled;
  error = client_b->CancelGeneration("sessions/story", "r", &cancelled);
  ASSERT_TRUE(error.ok()) << error.message;
  EXPECT_LT(absl::Now() - asked, kLease) << "asked for, not waited out";
  EXPECT_EQ(cancelled.state(), v1::GENERATION_STATE_CANCELLED);
  EXPECT_EQ(cancelled.finished().reason(), v1::FINISH_REASON_CANCELLED);
  const client::Error ended = stream->WaitForEnd();
  EXPECT_TRUE(ended.ok()) << ended.message;
  EXPECT_TRUE(stream->Have().finished);
  EXPECT_EQ(stream->Have().position, cancelled.position());
  ExpectUndisturbed(stream->Have(), stream->Have().ids.size());
  EXPECT_EQ(SessionAt(b, "story").position(), cancelled.position());
  EXPECT_FALSE(SessionAt(b, "story").active());
}

// Frozen for longer than its lease, it wakes up and believes for a moment that the session is its own.
TEST_P(HandoverTest, AServerThatWasFrozenBeyondItsLeaseWritesNothing) {
  constexpr size_t kTokens = 3000;
  ServerProcess &a = StartServer(), &b = StartServer();
  const auto client_a = a.NewClient(), client_b = b.NewClient();
  const v1::GenerationSpec spec = Request("story", "r", kTokens, GetParam());
  const auto first = Stream::Begin(*client_a, spec);
  ASSERT_TRUE(first->WaitFor(100)) << first->WaitForEnd().message;
  a.Signal(SIGSTOP);
  const absl::Time frozen = absl::Now();
  const Read have = first->Have();
  ASSERT_LT(have.ids.size(), kTokens) << "frozen too late";
  const auto second = Stream::Resume(*client_b, spec, have);
  ASSERT_TRUE(second->WaitFor(have.ids.size() + 200)) << second->WaitForEnd().message;
  EXPECT_LT(absl::Now() - frozen, kLease + absl::Seconds(3));
  a.Signal(SIGCONT);
  const client::Error told = first->WaitForEnd();
  EXPECT_TRUE((told.code == grpc::StatusCode::UNAVAILABLE && told.reason == "LEASE_LOST") ||
              (told.code == grpc::StatusCode::ABORTED && told.reason == "TAKEN_OVER"))
      << told.code << " " << told.reason << ": " << told.message;
  RecordProperty("told", told.reason);
  const client::Error error = second->WaitForEnd();
  EXPECT_TRUE(error.ok()) << error.message;
  ExpectUndisturbed(second->Have(), kTokens);
  ExpectUndisturbed(first->Have(), first->Have().ids.size());
  // The zombie has taken nothing along, and serves the session as B left it.
  const v1::Session at_a = SessionAt(a, "story"), at_b = SessionAt(b, "story");
  EXPECT_EQ(at_b.position(), second->Have().position);
  EXPECT_EQ(at_a.etag(), at_b.etag());
  const Outcome next = Generate(*client_a, Spec("story", " And so", 20));
  EXPECT_TRUE(next.error.ok()) << next.error.message;
  EXPECT_EQ(next.started.start_position(), at_b.position());
}
INSTANTIATE_TEST_SUITE_P(Replicas, HandoverTest, ::testing::Values(v1::DURABILITY_TURN, v1::DURABILITY_TOKEN),
                         [](const auto& info) { return v1::Durability_Name(info.param).substr(11); });

// Nobody asked the frozen server to let go: another request has the session once the lease has run out.
TEST_F(ReplicasTest, AFrozenServersClientIsToldThatTheLeaseIsLost) {
  ServerProcess &a = StartServer(), &b = StartServer();
  const auto client_a = a.NewClient(), client_b = b.NewClient();
  const auto first = Stream::Begin(*client_a, Request("story", "r", 100'000));
  ASSERT_TRUE(first->WaitFor(50)) << first->WaitForEnd().message;
  a.Signal(SIGSTOP);
  absl::SleepFor(absl::Milliseconds(200));
  v1::GenerationSpec next = Spec("story", " And so", 400);
  next.set_wait_for_session(true);
  const Outcome other = Generate(*client_b, next);
  ASSERT_TRUE(other.error.ok()) << other.error.message;
  const auto reader = a.NewClient();
  a.Signal(SIGCONT);
  // It says nothing of what it believes from before, not even in its first moments.
  std::vector<v1::Session> listed;
  std::string next_page;
  const client::Error list = reader->ListSessions(10, "", &listed, &next_page);
  ASSERT_TRUE(list.ok()) << list.message;
  ASSERT_EQ(listed.size(), 1U);
  EXPECT_EQ(listed[0].position(), other.finished.position());
  const client::Error told = first->WaitForEnd();
  EXPECT_EQ(told.code, grpc::StatusCode::UNAVAILABLE) << told.message;
  EXPECT_EQ(told.reason, "LEASE_LOST");
  EXPECT_EQ(SessionAt(a, "story").position(), other.finished.position());
  EXPECT_EQ(SessionAt(b, "story").position(), other.finished.position());
}

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

TEST_F(ReplicasTest, TokenDurabilityIsRefusedWhereRedisAcknowledgesBeforeItHasWritten) {
  const auto lax = RedisServer::Start({"--appendonly", "yes", "--appendfsync", "everysec"});
  ASSERT_NE(lax, nullptr);
  const auto client = StartServer(*lax).NewClient();
  const client::Error refused = Generate(*client, Request("story", "r", 5, v1::DURABILITY_TOKEN)).error;
  EXPECT_EQ(refused.code, grpc::StatusCode::FAILED_PRECONDITION) << refused.message;
  EXPECT_EQ(refused.reason, "STORE_NOT_DURABLE");
  const Outcome turn = Generate(*client, Request("story", "s", 5));
  EXPECT_TRUE(turn.error.ok()) << turn.error.message;
}

TEST_F(ReplicasTest, ForksRollbacksCheckpointsAndFilesPassFromServerToServer) {
  ServerProcess &a = StartServer(), &b = StartServer();
  const auto client_a = a.NewClient(), client_b = b.NewClient();
  const Outcome first = Generate(*client_a, Spec("story", kOpening, 60));
  ASSERT_TRUE(first.error.ok()) << first.error.message;
  const Outcome second = Generate(*client_b, Spec("story", " And so", 60));
  ASSERT_TRUE(second.error.ok()) << second.error.message;

  v1::ForkSessionRequest fork;
  fork.set_name("sessions/story");
  fork.set_session_id("fork");
  v1::Session session;
  client::Error error = client_a->ForkSession(fork, &session);
  ASSERT_TRUE(error.ok()) << error.message;
  EXPECT_EQ(session.position(), second.finished.position());

  v1::RollbackSessionRequest back;
  back.set_name("sessions/story");
  back.set_turns(1);
  error = client_b->RollbackSession(back, &session);
  ASSERT_TRUE(error.ok()) << error.message;
  EXPECT_EQ(session.position(), first.finished.position());
  const Outcome again = Generate(*client_a, Spec("story", " And so", 60));
  EXPECT_THAT(again.ids, ElementsAreArray(second.ids)) << "undo and the same again";

  v1::CreateCheckpointRequest mark;
  mark.set_parent("sessions/fork");
  mark.set_checkpoint_id("here");
  v1::Checkpoint checkpoint;
  error = client_a->CreateCheckpoint(mark, &checkpoint);
  ASSERT_TRUE(error.ok()) << error.message;
  const Outcome third = Generate(*client_a, Spec("fork", " Later", 60));
  ASSERT_TRUE(third.error.ok()) << third.error.message;

  v1::ExportSessionRequest from;
  from.set_name("sessions/fork");
  from.set_checkpoint(client::CheckpointName("fork", "here"));
  std::string file;
  error = client_b->ExportSession(from, [&](const std::string& data, int64_t) {
    file += data;
    return true;
  });
  ASSERT_TRUE(error.ok()) << error.message;
  v1::ImportSessionRequest to;
  to.set_session_id("copy");
  size_t sent = 0;
  error = client_a->ImportSession(
      to,
      [&] {
        const std::string piece = file.substr(sent, 64 << 10);
        sent += piece.size();
        return piece;
      },
      &session);
  ASSERT_TRUE(error.ok()) << error.message;
  EXPECT_EQ(session.position(), checkpoint.position());
  const Outcome copied = Generate(*client_b, Spec("copy", " Later", 60));
  EXPECT_THAT(copied.ids, ElementsAreArray(third.ids));
  for (const auto* client : {&client_a, &client_b}) {
    std::vector<v1::Session> all;
    std::string next;
    ASSERT_TRUE((*client)->ListSessions(10, "", &all, &next).ok());
    EXPECT_EQ(all.size(), 3U);
  }
}

}  // namespace
}  // namespace smt::testing
