// Sessions of several servers behave as one copy of each would, though servers freeze and wake up as zombies.
#include "tests/e2e/linearizability.h"

#include <signal.h>

#include <atomic>
#include <memory>
#include <random>
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

using ::testing::HasSubstr;
using Kind = Operation::Kind;
using Result = Operation::Result;

Operation Create(int64_t begin, int64_t end) { return {Kind::kCreate, 0, 0, Result::kOk, 0, begin, end}; }
Operation Turn(int64_t at, int64_t ids, int64_t begin, int64_t end, Result result = Result::kOk) {
  return {Kind::kTurn, at, ids, result, at + ids, begin, end};
}
Operation Get(int64_t position, int64_t begin, int64_t end) {
  return {Kind::kGet, 0, 0, Result::kOk, position, begin, end};
}

TEST(LinearizabilityTest, AcceptsWhatOneCopyExplains) {
  EXPECT_EQ(ExplainNonlinearizable({}), "");
  EXPECT_EQ(ExplainNonlinearizable({Create(0, 1), Turn(0, 3, 2, 9), Get(0, 3, 4), Get(3, 5, 6)}), "");
  // The outcome is not known, and it is seen later or not at all.
  EXPECT_EQ(ExplainNonlinearizable({Create(0, 1), Turn(0, 3, 2, 3, Result::kUnknown), Get(0, 4, 5), Get(3, 6, 7)}), "");
  EXPECT_EQ(ExplainNonlinearizable({Create(0, 1), Turn(0, 3, 2, 3, Result::kUnknown), Turn(0, 5, 4, 5), Get(5, 6, 7)}),
            "");
  EXPECT_EQ(ExplainNonlinearizable({Create(0, 1),
                                    Turn(0, 3, 2, 3),
                                    {Kind::kRollback, 0, 0, Result::kOk, 0, 4, 5},
                                    {Kind::kRollback, 0, 0, Result::kNoTurn, 0, 6, 7}}),
            "");
}

TEST(LinearizabilityTest, RefusesWhatNoCopyExplains) {
  const auto refused = HasSubstr("no order explains");
  EXPECT_THAT(ExplainNonlinearizable({Create(0, 1), Turn(0, 3, 2, 3), Get(0, 4, 5)}), refused) << "a stale read";
  EXPECT_THAT(ExplainNonlinearizable({Create(0, 1), Turn(0, 3, 2, 5), Turn(0, 4, 3, 6)}), refused) << "a lost update";
  EXPECT_THAT(ExplainNonlinearizable({Create(0, 1), Turn(0, 3, 2, 9), Get(3, 3, 4), Get(0, 5, 6)}), refused)
      << "a turn that was seen and is gone";
  EXPECT_THAT(ExplainNonlinearizable(
                  {Create(0, 1), Turn(0, 3, 2, 3, Result::kUnknown), Get(3, 4, 5), Get(0, 6, 7), Get(3, 8, 9)}),
              refused)
      << "a dirty read";
  EXPECT_THAT(ExplainNonlinearizable({Create(0, 1), {Kind::kDelete, 0, 0, Result::kOk, 0, 2, 3}, Get(0, 4, 5)}),
              refused)
      << "a session that came back";
  EXPECT_THAT(ExplainNonlinearizable({Create(0, 5), Create(1, 6)}), refused) << "made twice";
}

// Calls of several clients on a few sessions, each call on any of the servers.
class Clients {
 public:
  Clients(const std::vector<std::unique_ptr<ServerProcess>>& servers, int sessions) : history_(sessions) {
    for (const auto& server : servers) {
      client::Client::Options options;
      options.address = server->address();
      options.timeout = options.stream_timeout = absl::Seconds(8);
      clients_.push_back(std::make_unique<client::Client>(options));
    }
  }

  void Play(int client, absl::Time until) {
    std::mt19937 random(client);
    std::vector<int64_t> last(history_.size(), 0);  // where each stood when this client saw it last
    while (absl::Now() < until) {
      const size_t session = random() % history_.size();
      Operation op;
      op.client = client;
      const uint32_t what = random() % 100;
      op.kind = what < 8    ? Kind::kCreate
                : what < 45 ? Kind::kTurn
                : what < 55 ? Kind::kRollback
                : what < 59 ? Kind::kDelete
                            : Kind::kGet;
      op.expected = last[session];
      op.ids = 1 + random() % 9;
      op.begin = absl::GetCurrentTimeNanos() - began_;
      const bool said = Call(*clients_[random() % clients_.size()], absl::StrCat("s", session), &op);
      op.end = absl::GetCurrentTimeNanos() - began_;
      if (op.result == Result::kOk || op.result == Result::kMoved) last[session] = op.position;
      if (op.result == Result::kNotFound || op.kind == Kind::kDelete) last[session] = 0;
      absl::SleepFor(absl::Milliseconds(random() % 8));
      if (!said) continue;
      absl::MutexLock lock(&mu_);
      history_[session].push_back(op);
    }
  }
  const std::vector<std::vector<Operation>>& history() const { return history_; }

 private:
  // False where the answer says nothing.
  static bool Call(client::Client& client, const std::string& session, Operation* op) {
    const std::string name = client::SessionName(session);
    v1::Session answer;
    client::Error error;
    switch (op->kind) {
      case Kind::kCreate: {
        v1::CreateSessionRequest request;
        request.set_session_id(session);
        error = client.CreateSession(request, &answer);
        break;
      }
      case Kind::kTurn: {  // that reads and generates nothing
        v1::GenerationSpec spec;
        spec.set_session(name);
        for (int64_t i = 0; i < op->ids; ++i) spec.mutable_token_ids()->add_ids(100 + static_cast<int32_t>(i));
        spec.set_expected_position(op->expected);
        spec.mutable_stopping()->set_max_tokens(0);
        const Outcome outcome = Generate(client, spec);
        error = outcome.error;
        answer.set_position(outcome.finished.position());
        break;
      }
      case Kind::kRollback: {
        v1::RollbackSessionRequest request;
        request.set_name(name);
        request.set_turns(1);
        error = client.RollbackSession(request, &answer);
        break;
      }
      case Kind::kDelete: {
        v1::DeleteSessionRequest request;
        request.set_name(name);
        error = client.DeleteSession(request);
        break;
      }
      case Kind::kGet:
        error = client.GetSession(name, &answer);
        break;
    }
    op->position = answer.position();
    if (error.ok()) {
      op->result = Result::kOk;
    } else if (error.reason == "SESSION_NOT_FOUND") {
      op->result = Result::kNotFound;
    } else if (error.reason == "SESSION_EXISTS") {
      op->result = Result::kExists;
    } else if (error.reason == "CHECKPOINT_NOT_FOUND") {
      op->result = Result::kNoTurn;
    } else if (error.reason == "POSITION_MISMATCH") {
      op->result = Result::kMoved;
      op->position = PositionOf(error);
    } else if (error.code == grpc::StatusCode::ABORTED || error.message.starts_with("failed to connect")) {
      return false;
    } else {
      EXPECT_TRUE(error.code == grpc::StatusCode::UNAVAILABLE || error.code == grpc::StatusCode::DEADLINE_EXCEEDED)
          << op->ToString() << ": " << error.code << " " << error.reason << ": " << error.message;
      return op->kind != Kind::kGet;  // whether it was done is not known
    }
    return true;
  }

  const int64_t began_ = absl::GetCurrentTimeNanos();
  std::vector<std::unique_ptr<client::Client>> clients_;
  absl::Mutex mu_;
  std::vector<std::vector<Operation>> history_;
};

TEST(ReplicasLinearizabilityTest, SessionsOfTwoServersAreAsOneCopyThroughFreezes) {
  SMT_SKIP_WITHOUT_REDIS();
  constexpr absl::Duration kLease = absl::Seconds(1);
  constexpr int kClients = 5, kSessions = 4;
  const auto redis = RedisServer::Start({"--appendonly", "yes", "--appendfsync", "always"});
  ASSERT_NE(redis, nullptr);
  std::vector<std::unique_ptr<ServerProcess>> servers;
  for (int i = 0; i < 2; ++i) {
    servers.push_back(std::make_unique<ServerProcess>(ServerProcess::Options{
        .store_url = redis->socket(), .flags = {"--lease_ttl=" + absl::FormatDuration(kLease)}, .same_address = true}));
    ASSERT_TRUE(servers.back()->Start().ok()) << servers.back()->Stderr();
  }
  Clients clients(servers, kSessions);
  const absl::Time until = absl::Now() + absl::Seconds(14);
  std::vector<std::thread> threads;
  for (int i = 0; i < kClients; ++i) threads.emplace_back([&, i] { clients.Play(i, until); });
  std::mt19937 random(1);
  for (int round = 0; absl::Now() < until - 2 * kLease; ++round) {
    absl::SleepFor(absl::Milliseconds(300 + random() % 500));
    ServerProcess& server = *servers[round % 2];
    if (round == 3) {
      server.Kill();
      absl::SleepFor(absl::Milliseconds(300));
      EXPECT_TRUE(server.Start().ok()) << server.Stderr();
      continue;
    }
    server.Signal(SIGSTOP);
    absl::SleepFor(round % 3 == 2 ? 0.3 * kLease : 1.6 * kLease);
    server.Signal(SIGCONT);
  }
  for (std::thread& thread : threads) thread.join();
  size_t calls = 0, unknown = 0;
  for (const std::vector<Operation>& history : clients.history()) {
    calls += history.size();
    unknown += std::count_if(history.begin(), history.end(),
                             [](const Operation& op) { return op.result == Result::kUnknown; });
    EXPECT_EQ(ExplainNonlinearizable(history), "");
  }
  RecordProperty("calls", static_cast<int>(calls));
  RecordProperty("unknown", static_cast<int>(unknown));
  EXPECT_GT(calls, 500U);
}

}  // namespace
}  // namespace smt::testing
