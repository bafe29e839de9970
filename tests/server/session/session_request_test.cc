// Requests by their id: replayed, interrupted, gone on with, superseded, forgotten.
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "server/base/status_details.h"
#include "tests/server/session/session_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

class SessionRequestTest : public SessionTest {};

TEST_F(SessionRequestTest, ARequestIdSeenBeforeIsReplayedNotRunAgain) {
  OpenRocks();
  Create("a");
  {
    auto turn = Begin(Spec("a", {1, 2}, "r"));
    EXPECT_EQ(manager_->GetRequest("a", "r")->state, RequestState::kRunning);
    EXPECT_THAT(manager_->BeginTurn(Spec("a", {1, 2}, "r")),
                StatusIs(StatusCode::kAborted, HasSubstr("still running")));
    TurnSpec other = Spec("a", {1, 2}, "r");
    other.semantic_hash = "other";
    EXPECT_THAT(manager_->BeginTurn(other), StatusIs(StatusCode::kInvalidArgument, HasSubstr("another meaning")));
    turn->Append(std::vector<int32_t>{3, 4});
    ASSERT_OK(FinishAndWait(*turn, "the outcome").status);
  }
  for (int restart = 0; restart < 2; ++restart) {
    const auto again = manager_->BeginTurn(Spec("a", {1, 2}, "r"));
    ASSERT_OK(again);
    EXPECT_EQ(again->turn, nullptr);
    ASSERT_TRUE(again->replay.has_value());
    EXPECT_EQ(again->replay->outcome, "the outcome");
    EXPECT_EQ(again->replay->params, "params");
    EXPECT_EQ(again->replay->start_position, 0);
    EXPECT_EQ(again->replay->prompt_tokens, 2);
    EXPECT_EQ(again->replay->end_position, 4);
    EXPECT_EQ(again->replay->seed, 7u);
    OpenRocks();
  }
  EXPECT_EQ(manager_->Get("a")->position, 4);
  clock_.Advance(absl::Hours(25));  // forgotten
  EXPECT_THAT(manager_->GetRequest("a", "r"), StatusIs(StatusCode::kNotFound, HasSubstr("'r'")));
  ASSERT_OK(manager_->Sweep());
  Say("a", {5}, {}, "r");
  EXPECT_EQ(manager_->Get("a")->position, 5);
}

TEST_F(SessionRequestTest, AWaitingRetryGetsTheReplayWhenTheFirstEnds) {
  OpenMemory();
  Create("a");
  auto turn = Begin(Spec("a", {1}, "r"));
  std::thread retry([&] {
    TurnSpec spec = Spec("a", {1}, "r");
    spec.wait = true;
    const auto again = manager_->BeginTurn(spec);
    ASSERT_OK(again);
    EXPECT_EQ(again->replay.value().end_position, 1);
  });
  absl::SleepFor(absl::Milliseconds(10));
  ASSERT_OK(FinishAndWait(*turn).status);
  retry.join();
}

TEST_F(SessionRequestTest, ExpiredRequestsAreSweptAndRunningOnesAreNot) {
  OpenMemory();
  Create("a");
  Create("b");
  for (int i = 0; i < 300; ++i) Say("a", {i}, {}, "r" + std::to_string(i));
  auto running = Begin(Spec("b", {1}, "running"));
  clock_.Advance(absl::Hours(24));
  ASSERT_OK(manager_->Sweep());
  std::string cursor;
  EXPECT_THAT(*memory_->ListRequests(&cursor, 1000), SizeIs(1));
}

TEST_F(SessionRequestTest, ATurnDroppedUnfinishedIsInterruptedAtTheEndOfItsLog) {
  OpenMemory();
  Create("a");
  auto turn = Begin(Spec("a", {1, 2}, "r"));
  turn->Append(std::vector<int32_t>{3});
  turn.reset();
  ASSERT_OK(manager_->Flush());
  EXPECT_EQ(manager_->Get("a")->position, 3);
  const auto record = manager_->GetRequest("a", "r");
  EXPECT_EQ(record->state, RequestState::kInterrupted);
  EXPECT_EQ(record->end_position, 3);
}

TEST_F(SessionRequestTest, AnInterruptedRequestGoesOnWhereItsLogEnds) {
  OpenRocks();
  Create("a");
  Say("a", {9}, {8});
  auto turn = Begin(Spec("a", {1, 2}, "r"));
  EXPECT_THAT(manager_->ResumeTurn("a", "r"), StatusIs(StatusCode::kAborted, HasSubstr("still running")));
  EXPECT_EQ(manager_->GetRequest("a", "r")->end_position, 4) << "where it stands while it runs";
  turn->Append(Ids(70, 10));
  EXPECT_EQ(manager_->GetRequest("a", "r")->end_position, 74);
  turn.reset();
  ASSERT_OK(manager_->Flush());
  for (int broken = 0; broken < 3; ++broken) {
    if (broken == 1) OpenRocks();
    auto resumed = manager_->ResumeTurn("a", "r");
    ASSERT_OK(resumed);
    ASSERT_NE(resumed->turn, nullptr);
    EXPECT_EQ(resumed->turn->session().position, 74 + broken);
    EXPECT_EQ(resumed->turn->durable_position(), 74 + broken);
    EXPECT_EQ(resumed->record.start_position, 2);
    EXPECT_EQ(resumed->record.prompt_tokens, 2);
    EXPECT_EQ(resumed->record.params, "params");
    EXPECT_EQ(resumed->record.seed, 7u);
    EXPECT_EQ(manager_->GetRequest("a", "r")->state, RequestState::kRunning);
    EXPECT_EQ(manager_->GetRequest("a", "r")->end_position, 74 + broken);
    EXPECT_THAT(manager_->BeginTurn(Spec("a", {5})), StatusIs(StatusCode::kAborted, HasSubstr("another request")));
    resumed->turn->Append(std::vector<int32_t>{100 + broken});
    if (broken == 2) {
      ASSERT_OK(FinishAndWait(*resumed->turn, "over").status);
    }
    resumed->turn.reset();
    ASSERT_OK(manager_->Flush());
  }
  const auto ended = manager_->ResumeTurn("a", "r");
  ASSERT_OK(ended);
  EXPECT_EQ(ended->turn, nullptr);
  EXPECT_EQ(ended->record.state, RequestState::kFinished);
  EXPECT_EQ(ended->record.end_position, 77);
  EXPECT_EQ(ended->record.outcome, "over");
  EXPECT_THAT(*manager_->ReadLog("a", 74, 77), ElementsAre(79, 100, 101, 102));
  EXPECT_THAT(manager_->ResumeTurn("a", "other"), StatusIs(StatusCode::kNotFound, HasSubstr("'other'")));
  EXPECT_THAT(manager_->ResumeTurn("b", "r"), StatusIs(StatusCode::kNotFound, HasSubstr("'b'")));
}

TEST_F(SessionRequestTest, ASessionThatWentOnSupersedesWhatWasInterrupted) {
  OpenMemory();
  Create("a");
  Begin(Spec("a", {1, 2}, "r")).reset();
  ASSERT_OK(manager_->Flush());
  Say("a", {3}, {4});
  const auto superseded = manager_->ResumeTurn("a", "r");
  EXPECT_THAT(superseded, StatusIs(StatusCode::kFailedPrecondition, HasSubstr("position 4")));
  EXPECT_EQ(GetDetails(superseded.status()).reason, "SUPERSEDED");
  EXPECT_FALSE(manager_->Get("a")->active);
}

TEST_F(SessionRequestTest, AResumedTurnThatRanWhenTheServerDiedIsFoundInterruptedAgain) {
  const pid_t child = ::fork();
  if (child == 0) {
    OpenRocks();
    if (!manager_->Create("a", absl::InfiniteDuration(), {}).ok()) ::_exit(1);
    auto first = Begin(Spec("a", {1, 2}, "r"));
    first->Append(Ids(10));
    first.reset();
    if (!manager_->Flush().ok()) ::_exit(1);
    auto resumed = manager_->ResumeTurn("a", "r");
    if (!resumed.ok()) ::_exit(1);
    resumed->turn->Append(Ids(64));
    ::_exit(manager_->ReadLog("a", 13, 76).ok() ? 42 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_EQ(WEXITSTATUS(status), 42);
  OpenRocks();
  const auto resumed = manager_->ResumeTurn("a", "r");
  ASSERT_OK(resumed);
  ASSERT_NE(resumed->turn, nullptr);
  EXPECT_EQ(resumed->turn->session().position, 76);
}

}  // namespace
}  // namespace smt
