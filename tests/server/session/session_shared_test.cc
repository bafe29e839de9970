// Two managers, as of two servers, over one Redis.
#include <gmock/gmock.h>

#include <atomic>
#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "model/base/status_macros.h"
#include "server/base/status_details.h"
#include "tests/server/session/session_testing.h"
#include "tests/server/store/redis_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using testing::AnyOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr absl::Duration kLease = absl::Seconds(1);

class SharedTest : public testing::Test {
 protected:
  void SetUp() override {
    SMT_SKIP_WITHOUT_REDIS();
    redis_ = RedisServer::Start({"--appendonly", "yes", "--appendfsync", "always"});
    a_ = Open(&a_store_);
    b_ = Open(&b_store_);
  }
  std::unique_ptr<SessionManager> Open(RedisStore** kept = nullptr) {
    SessionManager::Options options;
    options.model_fingerprint = "model-1";
    options.numerics_id = "cpu/test";
    options.state_bytes = kTestStateBytes;
    options.input_tokens = 8;
    options.sweep_interval = absl::InfiniteDuration();
    options.lease_ttl = kLease;
    options.on_store_replaced = [this] { ++replaced_; };
    auto store = *OpenRedisStore(redis_->Options());
    options.leases = store.get();
    if (kept != nullptr) *kept = store.get();
    return *SessionManager::Open(std::move(options), std::move(store));
  }
  static std::unique_ptr<Turn> Begin(SessionManager& manager, TurnSpec spec) {
    auto begun = manager.BeginTurn(std::move(spec));
    EXPECT_OK(begun);
    if (!begun.ok()) return nullptr;
    EXPECT_OK(begun->turn->AwaitBegun());
    return std::move(begun->turn);
  }
  static absl::Status Say(SessionManager& manager, const std::string& id, std::vector<int32_t> ids) {
    auto begun = manager.BeginTurn(Spec(id, std::move(ids)));
    RETURN_IF_ERROR(begun.status());
    return FinishAndWait(*begun->turn).status;
  }
  static std::vector<int32_t> Log(SessionManager& manager, const std::string& id) {
    const auto info = manager.Get(id);
    EXPECT_OK(info);
    const auto log = manager.ReadLog(id, 1, info->position);
    EXPECT_OK(log);
    return *log;
  }

  std::unique_ptr<RedisServer> redis_;
  std::atomic<int> replaced_{0};
  RedisStore *a_store_ = nullptr, *b_store_ = nullptr;
  std::unique_ptr<SessionManager> a_, b_;
};

TEST_F(SharedTest, TurnsOfTwoServersThatMakeOneSessionAreBothOfIt) {
  for (int i = 0; i < 30; ++i) {
    const std::string id = "s" + std::to_string(i);
    std::vector<std::thread> servers;
    for (SessionManager* manager : {a_.get(), b_.get()}) {
      servers.emplace_back([&, manager] {
        TurnSpec spec = Spec(id, {manager == a_.get() ? 1 : 2});
        spec.create = spec.wait = true;
        auto turn = Begin(*manager, std::move(spec));
        ASSERT_NE(turn, nullptr);
        ASSERT_OK(FinishAndWait(*turn).status);
      });
    }
    for (std::thread& server : servers) server.join();
    EXPECT_THAT(Log(*a_, id), testing::UnorderedElementsAre(1, 2));
  }
}

TEST_F(SharedTest, TurnsAlternateBetweenServers) {
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  std::vector<int32_t> expected;
  for (int i = 0; i < 10; ++i) {
    ASSERT_OK(Say(i % 2 == 0 ? *a_ : *b_, "s", {i, i + 100}));
    expected.insert(expected.end(), {i, i + 100});
  }
  EXPECT_EQ(Log(*a_, "s"), expected);
  EXPECT_EQ(Log(*b_, "s"), expected);
  EXPECT_EQ(a_->Get("s")->etag, b_->Get("s")->etag);
  EXPECT_EQ(a_->counters().leases_held, 0);
}

TEST_F(SharedTest, WhileOneWritesOthersAreRefusedOrWait) {
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  auto turn = Begin(*a_, Spec("s", {1}));
  ASSERT_NE(turn, nullptr);
  EXPECT_THAT(b_->BeginTurn(Spec("s", {2})), StatusIs(StatusCode::kAborted, HasSubstr("another server")));
  EXPECT_THAT(b_->Delete("s", std::nullopt), StatusIs(StatusCode::kAborted, HasSubstr("another server")));
  RollbackSpec back;
  back.session_id = "s";
  back.turns = 1;
  EXPECT_THAT(b_->Rollback(back), StatusIs(StatusCode::kAborted, HasSubstr("another server")));
  ForkSpec fork;
  fork.session_id = "s";
  EXPECT_THAT(b_->Fork(fork), StatusIs(StatusCode::kAborted, HasSubstr("another request")));
  EXPECT_GT(b_->counters().lease_conflicts, 0);
  std::thread waiting([&] {
    TurnSpec spec = Spec("s", {2});
    spec.wait = true;
    auto waited = Begin(*b_, std::move(spec));
    ASSERT_NE(waited, nullptr);
    EXPECT_EQ(waited->session().position, 2);
    FinishAndWait(*waited);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  turn->Append(std::vector<int32_t>{7});
  FinishAndWait(*turn);
  waiting.join();
  EXPECT_THAT(Log(*a_, "s"), ElementsAre(1, 7, 2));
}

TEST_F(SharedTest, ALeaseIsRenewedWhileATurnRuns) {
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  auto turn = Begin(*a_, Spec("s", {1}, "r"));
  std::this_thread::sleep_for(absl::ToChronoMilliseconds(2.5 * kLease));
  EXPECT_THAT(b_->BeginTurn(Spec("s", {2})), StatusIs(StatusCode::kAborted, HasSubstr("")));
  turn->Append(std::vector<int32_t>{3});
  EXPECT_OK(FinishAndWait(*turn).status);
  EXPECT_THAT(Log(*b_, "s"), ElementsAre(1, 3));
}

TEST_F(SharedTest, AResumeElsewhereEndsTheTurnThatRuns) {
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  auto turn = Begin(*a_, Spec("s", {1}, "r"));
  turn->Append(std::vector<int32_t>{2, 3});
  std::atomic<bool> asked{false};
  turn->Watch([&, t = turn.get()] {
    if (t->asked_to_end()) asked = true;
  });
  std::thread holder([&] {
    while (!asked) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    FinishAndWait(*turn, "", RequestState::kInterrupted);
  });
  const absl::Time began = absl::Now();
  auto resumed = b_->ResumeTurn("s", "r");
  holder.join();
  ASSERT_OK(resumed);
  EXPECT_LT(absl::Now() - began, kLease / 2) << "asked for, not waited out";
  ASSERT_NE(resumed->turn, nullptr);
  EXPECT_EQ(resumed->turn->session().position, 3);
  resumed->turn->Append(std::vector<int32_t>{4});
  EXPECT_OK(FinishAndWait(*resumed->turn).status);
  EXPECT_THAT(Log(*a_, "s"), ElementsAre(1, 2, 3, 4));
}

TEST_F(SharedTest, ARequestThatRunsElsewhereIsNeitherReplayedNorRunAgain) {
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  TurnSpec spec = Spec("s", {1, 2}, "r");
  spec.durability = Durability::kToken;
  auto turn = Begin(*a_, spec);
  turn->Append(std::vector<int32_t>{3});
  ASSERT_OK(a_->Flush());
  const auto again = b_->BeginTurn(spec);
  EXPECT_EQ(GetDetails(again.status()).reason, "REQUEST_RUNNING") << again.status();
  const auto record = b_->GetRequest("s", "r");
  ASSERT_OK(record);
  EXPECT_EQ(record->state, RequestState::kRunning);
  EXPECT_EQ(record->end_position, 3);
  // Its server dies: once the lease is free, it is one that was broken off.
  redis_->Do({"DEL", redis_->Keys("*:o").at(0)});
  const auto left = b_->BeginTurn(spec);
  ASSERT_OK(left);
  ASSERT_TRUE(left->replay.has_value());
  EXPECT_EQ(left->replay->state, RequestState::kInterrupted);
  EXPECT_EQ(left->replay->end_position, 3);
}

TEST_F(SharedTest, ACancellationElsewhereEndsTheTurnThatRuns) {
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  auto turn = Begin(*a_, Spec("s", {1}, "r"));
  turn->Append(std::vector<int32_t>{2, 3});
  std::thread holder([&] {
    while (!turn->asked_to_cancel()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_FALSE(turn->asked_to_end());
    FinishAndWait(*turn, "outcome", RequestState::kCancelled);
  });
  // One that waits for the session does not stand in the way.
  std::thread waiting([&] {
    TurnSpec spec = Spec("s", {9});
    spec.wait = true;
    auto waited = Begin(*b_, std::move(spec));
    ASSERT_NE(waited, nullptr);
    FinishAndWait(*waited);
  });
  const absl::Time began = absl::Now();
  EXPECT_THAT(b_->CancelElsewhere("s", "none", absl::InfiniteFuture()),
              StatusIs(StatusCode::kNotFound, HasSubstr("none")));
  EXPECT_OK(b_->CancelElsewhere("s", "r", absl::Now() + 3 * kLease));
  EXPECT_EQ(b_->GetRequest("s", "r")->state, RequestState::kCancelled);
  EXPECT_LT(absl::Now() - began, kLease / 2) << "asked for, not waited out";
  holder.join();
  waiting.join();
  EXPECT_EQ(b_->GetRequest("s", "r")->end_position, 3);
  EXPECT_OK(b_->CancelElsewhere("s", "r", absl::InfiniteFuture())) << "it has ended";
  EXPECT_THAT(Log(*a_, "s"), ElementsAre(1, 2, 3, 9));
}

TEST_F(SharedTest, ACancellationOfWhatADeadServerRanFindsItInterrupted) {
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  auto turn = Begin(*a_, Spec("s", {1, 2}, "r"));
  EXPECT_THAT(b_->CancelElsewhere("s", "r", absl::Now() + kLease / 5),
              StatusIs(StatusCode::kAborted, HasSubstr("another server")));
  redis_->Do({"DEL", redis_->Keys("*:o").at(0)});  // as when it has run out
  EXPECT_OK(b_->CancelElsewhere("s", "r", absl::Now() + 3 * kLease));
  EXPECT_EQ(b_->GetRequest("s", "r")->state, RequestState::kInterrupted);
  EXPECT_EQ(b_->counters().leases_held, 0);
}

// Whoever still wants the end of an earlier request does not break off the one that runs now.
TEST_F(SharedTest, AResumeOfAnEarlierRequestLeavesTheOneThatRunsAlone) {
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  {
    auto left = Begin(*a_, Spec("s", {1}, "old"));
    left->Append(std::vector<int32_t>{2});
    FinishAndWait(*left, "", RequestState::kInterrupted);
  }
  auto turn = Begin(*a_, Spec("s", {3}, "new"));
  const auto refused = b_->ResumeTurn("s", "old", absl::Now() + kLease / 2);
  EXPECT_THAT(refused.status(), AnyOf(StatusIs(StatusCode::kFailedPrecondition, HasSubstr("gone on")),
                                      StatusIs(StatusCode::kAborted, HasSubstr("another server"))));
  std::this_thread::sleep_for(absl::ToChronoMilliseconds(kLease / 5));
  EXPECT_FALSE(turn->asked_to_end());
  turn->Append(std::vector<int32_t>{4});
  EXPECT_OK(FinishAndWait(*turn).status);
  EXPECT_THAT(Log(*b_, "s"), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(b_->ResumeTurn("s", "old"), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("gone on")));
}

// Two requests of one server, and a resume elsewhere of the one that gave way to the other.
TEST_F(SharedTest, ARequestThatFollowsTheOneThatWasAskedToEndIsNotAskedToo) {
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  auto turn = Begin(*a_, Spec("s", {1}, "old"));
  std::thread holder([&] {
    while (!turn->asked_to_end()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    FinishAndWait(*turn, "", RequestState::kInterrupted);
    auto begun = a_->BeginTurn(Spec("s", {2}, "new"));  // before the other server looks again, mostly
    turn = begun.ok() ? std::move(begun->turn) : nullptr;
  });
  const auto resumed = b_->ResumeTurn("s", "old", absl::Now() + 3 * kLease);
  holder.join();
  if (turn == nullptr) GTEST_SKIP() << "the resume was faster";
  EXPECT_THAT(resumed.status(), AnyOf(StatusIs(StatusCode::kFailedPrecondition, HasSubstr("gone on")),
                                      StatusIs(StatusCode::kAborted, HasSubstr("another server"))));
  std::this_thread::sleep_for(absl::ToChronoMilliseconds(kLease / 5));
  EXPECT_FALSE(turn->asked_to_end());
  EXPECT_OK(FinishAndWait(*turn).status);
}

// A server that stands still for longer than its lease and does not know.
TEST_F(SharedTest, AZombieWritesNothing) {
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  auto turn = Begin(*a_, Spec("s", {1}, "r"));
  turn->Append(std::vector<int32_t>(64, 2));  // handed over
  ASSERT_OK(a_->Flush());
  // The lease ends behind its back.
  const auto keys = redis_->Keys("*:o");
  ASSERT_EQ(keys.size(), 1u);
  redis_->Do({"DEL", keys[0]});
  auto resumed = b_->ResumeTurn("s", "r");
  ASSERT_OK(resumed);
  ASSERT_NE(resumed->turn, nullptr);
  EXPECT_EQ(resumed->turn->session().position, 65);
  turn->Append(std::vector<int32_t>(64, 9));
  turn->Snapshot(129, State(129));
  const auto finished = FinishAndWait(*turn, "", RequestState::kFinished);
  EXPECT_TRUE(absl::IsUnavailable(finished.status)) << finished.status;
  EXPECT_EQ(GetDetails(finished.status).reason, kLeaseLost);
  resumed->turn->Append(std::vector<int32_t>{5});
  EXPECT_OK(FinishAndWait(*resumed->turn).status);
  std::vector<int32_t> expected(65, 2);
  expected[0] = 1;
  expected.push_back(5);
  EXPECT_EQ(Log(*a_, "s"), expected);
  EXPECT_EQ(b_->GetRequest("s", "r")->state, RequestState::kFinished);
  ASSERT_OK(Say(*a_, "s", {6}));
}

TEST_F(SharedTest, ATurnLearnsThatItsLeaseIsLost) {
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  auto turn = Begin(*a_, Spec("s", {1}, "r"));
  redis_->Do({"DEL", redis_->Keys("*:o").at(0)});
  const absl::Time began = absl::Now();
  while (turn->status().ok() && absl::Now() < began + 2 * kLease) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(GetDetails(turn->status()).reason, kLeaseLost);
  EXPECT_LE(absl::Now() - began, kLease);
}

TEST_F(SharedTest, OneOfTwoServersMakesASessionAndTheOtherSaysWhy) {
  std::atomic<int> made{0}, again{0};
  for (int i = 0; i < 40; ++i) {
    const auto create = [&, id = "s" + std::to_string(i)](SessionManager& manager, const std::string& request_id) {
      const absl::Status status = manager.Create(id, absl::InfiniteDuration(), {}, request_id).status();
      made += status.ok();
      EXPECT_TRUE(status.ok() || GetDetails(status).reason == "SESSION_EXISTS") << status;
      again += status.ok() && !request_id.empty();
    };
    const std::string request_id = i % 2 == 0 ? "" : "make";  // the same: both are told of the one session
    std::thread other([&] { create(*b_, request_id); });
    create(*a_, request_id);
    other.join();
  }
  EXPECT_EQ(again, 40);
  EXPECT_EQ(made, 60);
}

TEST_F(SharedTest, WhatADeadServerLeftInMidTurnCanBeForked) {
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  auto turn = Begin(*a_, Spec("s", {1, 2}, "r"));
  ForkSpec fork;
  fork.session_id = "s";
  fork.new_id = "f";
  EXPECT_THAT(b_->Fork(fork), StatusIs(StatusCode::kAborted, HasSubstr("another")));
  redis_->Do({"DEL", redis_->Keys("*:o").at(0)});  // as when it has run out
  ASSERT_OK(b_->Fork(fork));
  EXPECT_THAT(Log(*b_, "f"), ElementsAre(1, 2));
}

TEST_F(SharedTest, AServerWithoutItsLeaseDoesNotSayWhereTheSessionStands) {
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  auto turn = Begin(*a_, Spec("s", {1}, "r"));
  EXPECT_EQ(a_->Get("s")->position, 1);
  redis_->Do({"DEL", redis_->Keys("*:o").at(0)});
  ASSERT_OK(Say(*b_, "s", {2, 3}));
  for (const absl::Time limit = absl::Now() + 2 * kLease; turn->status().ok() && absl::Now() < limit;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(GetDetails(a_->Get("s").status()).reason, kLeaseLost);
  EXPECT_EQ(GetDetails(a_->ReadLog("s", 1, 1).status()).reason, kLeaseLost);
  EXPECT_EQ(GetDetails(a_->ReadState("s", nullptr).status()).reason, kLeaseLost);
  EXPECT_EQ(GetDetails(a_->GetRequest("s", "r").status()).reason, kLeaseLost);
  EXPECT_EQ(GetDetails(a_->ListCheckpoints("s", 10, "").status()).reason, kLeaseLost);
  ASSERT_EQ(a_->List(10, "")->sessions.size(), 1u);
  EXPECT_EQ(a_->List(10, "")->sessions[0].position, 3) << "the store knows";
  EXPECT_FALSE(FinishAndWait(*turn).status.ok());
  EXPECT_EQ(a_->Get("s")->position, 3);
}

TEST_F(SharedTest, WhatADeadServerHeldIsFreeAfterItsLease) {
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  // The holder is a process that is gone.
  const SessionKey key{"s", [&] {
                         const auto found = b_store_->Find("s");
                         return found->key.uid;
                       }()};
  ASSERT_TRUE(b_store_->Acquire(key, "gone", kLease)->acquired);
  const absl::Time began = absl::Now();
  EXPECT_THAT(a_->BeginTurn(Spec("s", {1})), StatusIs(StatusCode::kAborted, HasSubstr("another server")));
  TurnSpec spec = Spec("s", {1});
  spec.wait = true;
  spec.deadline = absl::Now() + 3 * kLease;
  auto turn = Begin(*a_, std::move(spec));
  ASSERT_NE(turn, nullptr);
  EXPECT_LE(absl::Now() - began, kLease + absl::Seconds(1));
}

TEST_F(SharedTest, ForksRollbacksAndSnapshotsAreSeenByBoth) {
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  {
    auto turn = Begin(*a_, Spec("s", Ids(5000)));
    turn->Snapshot(5000, State(5000));
    FinishAndWait(*turn);
    ASSERT_OK(a_->Flush());
  }
  ForkSpec fork;
  fork.session_id = "s";
  fork.new_id = "f";
  ASSERT_OK(b_->Fork(fork));
  ASSERT_OK(a_->Delete("s", std::nullopt));
  const auto state = a_->ReadState("f", nullptr);
  ASSERT_OK(state);
  EXPECT_EQ(state->position, 5000);
  ASSERT_OK(Say(*a_, "f", {1}));
  RollbackSpec back;
  back.session_id = "f";
  back.turns = 1;
  ASSERT_OK(b_->Rollback(back));
  EXPECT_EQ(Log(*a_, "f"), Ids(5000));
  EXPECT_EQ(a_->Get("f")->branch, 1);
}

TEST_F(SharedTest, AnEmptiedStoreIsNotFilledWithWhatServersRemember) {
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  ASSERT_OK(Say(*a_, "s", {1, 2}));
  auto turn = Begin(*a_, Spec("s", {3}));
  redis_->Do({"FLUSHALL"});
  turn->Append(std::vector<int32_t>{4});
  EXPECT_FALSE(FinishAndWait(*turn).status.ok());
  const absl::Time limit = absl::Now() + absl::Seconds(10);
  absl::Status made;
  do {
    made = a_->Create("s", absl::InfiniteDuration(), {}).status();
    if (!made.ok()) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  } while (!made.ok() && absl::Now() < limit);
  ASSERT_OK(made);
  EXPECT_GE(replaced_, 1);
  EXPECT_EQ(a_->Get("s")->position, 0);
  ASSERT_OK(Say(*a_, "s", {9}));
  EXPECT_THAT(Log(*a_, "s"), ElementsAre(9));
}

// Whoever writes, the log is what the turns that were acknowledged appended, in some order, each whole.
TEST_F(SharedTest, ConcurrentTurnsOfManyServersAreOneAfterTheOther) {
  auto c = Open();
  ASSERT_OK(a_->Create("s", absl::InfiniteDuration(), {}));
  std::atomic<int> acknowledged{0}, refused{0};
  std::vector<std::thread> writers;
  for (int w = 0; w < 6; ++w) {
    writers.emplace_back([&, w] {
      SessionManager& manager = w % 3 == 0 ? *a_ : w % 3 == 1 ? *b_ : *c;
      for (int i = 0; i < 15; ++i) {
        TurnSpec spec = Spec("s", {w, i});
        spec.wait = i % 2 == 0;
        spec.deadline = absl::Now() + absl::Seconds(30);
        auto begun = manager.BeginTurn(std::move(spec));
        if (!begun.ok()) {
          ASSERT_TRUE(absl::IsAborted(begun.status())) << begun.status();
          ++refused;
          continue;
        }
        begun->turn->Append(std::vector<int32_t>{w, i});
        ASSERT_OK(FinishAndWait(*begun->turn).status);
        ++acknowledged;
      }
    });
  }
  for (auto& t : writers) t.join();
  const std::vector<int32_t> log = Log(*c, "s");
  ASSERT_EQ(log.size(), 4u * static_cast<size_t>(acknowledged));
  std::vector<int> next(6, 0);
  for (size_t i = 0; i < log.size(); i += 4) {
    EXPECT_EQ(log[i], log[i + 2]);
    EXPECT_EQ(log[i + 1], log[i + 3]);
    EXPECT_GE(log[i + 1], next[static_cast<size_t>(log[i])]);
    next[static_cast<size_t>(log[i])] = log[i + 1] + 1;
  }
  EXPECT_GT(acknowledged, 40);
}

}  // namespace
}  // namespace smt
