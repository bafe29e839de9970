// Turns that make the session they are of.
#include <thread>

#include "tests/server/session/session_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

class SessionMakingTest : public SessionTest {
 protected:
  static TurnSpec Making(const std::string& id, std::vector<int32_t> prompt,
                         Durability durability = Durability::kTurn) {
    TurnSpec spec = Spec(id, std::move(prompt), "", durability);
    spec.create = true;
    return spec;
  }
};

TEST_F(SessionMakingTest, TheSessionIsMadeByTheWriteThatOpensTheTurn) {
  OpenMemory();
  for (const Durability durability : {Durability::kNone, Durability::kTurn, Durability::kToken}) {
    const std::string id = "s" + std::to_string(static_cast<int>(durability));
    const int64_t commits = memory_->commits(), syncs = memory_->syncs();
    auto turn = Begin(Making(id, {1, 2}, durability));
    EXPECT_EQ(memory_->commits() - commits, 1);
    EXPECT_EQ(memory_->syncs() - syncs, 1) << "whatever the durability, the session stays";
    EXPECT_EQ(turn->session().id, id);
    EXPECT_EQ(turn->session().position, 0);
    EXPECT_EQ(turn->durable_position(), 2);
    turn->Append(std::vector<int32_t>{3});
    ASSERT_OK(FinishAndWait(*turn).status);
    EXPECT_EQ(manager_->Get(id)->position, 3);
    EXPECT_THAT(*manager_->ReadLog(id, 1, 3), ElementsAre(1, 2, 3));
  }
  EXPECT_EQ(manager_->counters().stored_sessions, 3);
}

TEST_F(SessionMakingTest, ASessionThatATurnMadeIsThereAfterARestart) {
  OpenRocks();
  Begin(Making("s", {1, 2}));  // interrupted at once
  OpenRocks();
  EXPECT_EQ(manager_->Get("s")->position, 2);
  auto turn = Begin(Making("s", {3}));
  EXPECT_EQ(turn->session().position, 2) << "it is not made again";
  ASSERT_OK(FinishAndWait(*turn).status);
  EXPECT_THAT(*manager_->ReadLog("s", 1, 3), ElementsAre(1, 2, 3));
}

TEST_F(SessionMakingTest, OfATurnThatDoesNotBeginNoSessionStays) {
  options_.max_sessions = 1;
  OpenMemory();
  memory_->FailCommits(1000, absl::ResourceExhaustedError("no space left"));
  for (int i = 0; i < 3; ++i) {
    auto begun = manager_->BeginTurn(Making("s", {1}));
    ASSERT_OK(begun);
    EXPECT_THAT(begun->turn->AwaitBegun(), StatusIs(StatusCode::kResourceExhausted, HasSubstr("no space left")));
    EXPECT_THAT(FinishAndWait(*begun->turn).status, StatusIs(StatusCode::kResourceExhausted, HasSubstr("no space")));
    EXPECT_THAT(manager_->Get("s"), StatusIs(StatusCode::kNotFound, HasSubstr("'s'")));
    EXPECT_EQ(manager_->counters().stored_sessions, 0);
  }
  memory_->FailCommits(0, absl::OkStatus());
  EXPECT_TRUE(manager_->List(0, "")->sessions.empty());
  ASSERT_OK(FinishAndWait(*Begin(Making("s", {1}))).status);
  EXPECT_THAT(manager_->BeginTurn(Making("t", {1})).status(), StatusIs(StatusCode::kResourceExhausted, HasSubstr("1")));
  EXPECT_OK(manager_->BeginTurn(Making("s", {1})));
}

TEST_F(SessionMakingTest, ARefusedTurnMakesNoSession) {
  OpenMemory();
  TurnSpec spec = Making("s", {1});
  spec.expected_position = 3;
  EXPECT_THAT(manager_->BeginTurn(spec).status(), StatusIs(StatusCode::kAborted, HasSubstr("expects 3")));
  EXPECT_THAT(manager_->Get("s"), StatusIs(StatusCode::kNotFound, HasSubstr("'s'")));
  spec.expected_position = 0;
  spec.session_id = "No";
  EXPECT_THAT(manager_->BeginTurn(spec).status(), StatusIs(StatusCode::kInvalidArgument, HasSubstr("No")));
  spec.session_id = "s";
  spec.create = false;
  EXPECT_THAT(manager_->BeginTurn(spec).status(), StatusIs(StatusCode::kNotFound, HasSubstr("'s'")));
  EXPECT_EQ(memory_->commits(), 0);
  spec.create = true;
  ASSERT_OK(FinishAndWait(*Begin(spec)).status);
  EXPECT_EQ(manager_->Get("s")->position, 1);
}

TEST_F(SessionMakingTest, AnIdThatIsNotGivenIsDrawn) {
  OpenMemory();
  auto one = Begin(Making("", {1})), other = Begin(Making("", {2}));
  EXPECT_NE(one->session().id, other->session().id);
  EXPECT_THAT(*manager_->ReadLog(other->session().id, 1, 1), ElementsAre(2));
}

TEST_F(SessionMakingTest, AnExpiredSessionIsMadeAnew) {
  OpenMemory();
  ASSERT_OK(manager_->Create("s", absl::Seconds(10), {{"a", "b"}}));
  Say("s", {1, 2, 3}, {4});
  const SessionInfo before = *manager_->Get("s");
  clock_.Advance(absl::Seconds(11));
  auto turn = Begin(Making("s", {7}));
  EXPECT_EQ(turn->session().position, 0);
  EXPECT_NE(turn->session().key, before.key);
  ASSERT_OK(FinishAndWait(*turn).status);
  EXPECT_THAT(*manager_->ReadLog("s", 1, 1), ElementsAre(7));
  EXPECT_EQ(manager_->Get("s")->ttl, absl::InfiniteDuration());
  EXPECT_EQ(manager_->counters().stored_sessions, 1);
  absl::MutexLock lock(&removed_mu_);
  EXPECT_THAT(removed_, ElementsAre(before.key));
}

TEST_F(SessionMakingTest, WhileOneMakesASessionAnotherIsRefusedOrWaits) {
  OpenMemory();
  memory_->Hold(true);
  auto first = manager_->BeginTurn(Making("s", {1}));
  ASSERT_OK(first);
  memory_->WaitUntilCommitWaits();
  EXPECT_THAT(manager_->BeginTurn(Making("s", {2})).status(), StatusIs(StatusCode::kAborted, HasSubstr("another")));
  EXPECT_THAT(manager_->Delete("s", std::nullopt), StatusIs(StatusCode::kAborted, HasSubstr("another")));
  memory_->Hold(false);
  std::vector<std::thread> others;
  for (int32_t i = 2; i < 6; ++i) {
    others.emplace_back([&, i] {
      TurnSpec spec = Making("s", {i});
      spec.wait = true;
      ASSERT_OK(FinishAndWait(*Begin(std::move(spec))).status);
    });
  }
  ASSERT_OK(FinishAndWait(*first->turn).status);
  for (std::thread& other : others) other.join();
  EXPECT_EQ(manager_->Get("s")->position, 5);
  EXPECT_EQ(manager_->counters().stored_sessions, 1);
}

}  // namespace
}  // namespace smt
