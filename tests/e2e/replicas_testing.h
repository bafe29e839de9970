// What the tests of servers that share a Redis have in common. Real processes throughout.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/e2e/server_process.h"
#include "tests/server/store/redis_testing.h"

namespace smt::testing {

inline constexpr char kOpening[] =
    "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals";
inline constexpr absl::Duration kLease = absl::Seconds(2);
inline constexpr absl::Duration kPatience = absl::Seconds(60);  // of what must happen at last, on a busy machine

inline v1::GenerationSpec Request(const std::string& session, const std::string& request_id, int64_t tokens,
                                  v1::Durability durability = v1::DURABILITY_TURN) {
  v1::GenerationSpec spec = Spec(session, kOpening, tokens);
  spec.set_request_id(request_id);
  spec.set_durability(durability);
  return spec;
}

// What Request gives where nothing happens; ids do not depend on how many are asked for.
inline const Outcome& Undisturbed() {
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

}  // namespace smt::testing
