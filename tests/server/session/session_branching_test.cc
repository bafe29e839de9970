// Forks, checkpoints, rollback.
#include <map>

#include "tests/server/session/session_branching_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST_F(BranchingTest, AForkGoesItsOwnWay) {
  Create("a");
  Say("a", {1, 2, 3}, {4, 5});
  const auto fork = Fork("a", "b");
  ASSERT_OK(fork);
  EXPECT_EQ(fork->id, "b");
  EXPECT_EQ(fork->position, 5);
  Say("b", {6}, {7});
  Say("a", {8}, {9, 10});
  EXPECT_THAT(Log("b"), ElementsAre(1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(Log("a"), ElementsAre(1, 2, 3, 4, 5, 8, 9, 10));
  OpenRocks();
  EXPECT_THAT(Log("b"), ElementsAre(1, 2, 3, 4, 5, 6, 7));
  auto turn = Begin(Spec("b", {11}));
  EXPECT_THAT(turn->recent(), ElementsAre(1, 2, 3, 4, 5, 6, 7));
}

TEST_F(BranchingTest, AForkCanUndoItsParentsTurns) {
  Create("a");
  SayAndSave("a", Ids(5000));
  Say("a", {1}, {2}, "r2");
  ASSERT_OK(Mark("a", "here"));
  Say("a", {3}, {4}, "r3");
  ASSERT_OK(Fork("a", "b"));
  ASSERT_OK(Fork("a", "c", "here"));
  Say("b", {5}, {6}, "r4");
  EXPECT_THAT(Checkpoints("b"), ElementsAre("turn-0-0", "turn-0-5000", "turn-0-5002", "turn-0-5004"));
  EXPECT_THAT(Checkpoints("c"), ElementsAre("turn-0-0", "turn-0-5000")) << "those that lie before it";
  ASSERT_OK(manager_->Delete("a", std::nullopt));
  EXPECT_EQ(Undo("b", 3)->position, 5000);
  EXPECT_EQ(Log("b"), Ids(5000));
  const auto state = manager_->ReadState("b", nullptr);
  ASSERT_OK(state);
  EXPECT_EQ(state->position, 5000) << "the state that its parent kept there";
  Say("b", {7}, {8}, "r5");
  EXPECT_THAT(Checkpoints("b"), ElementsAre("turn-0-0", "turn-1-5000"));
  EXPECT_EQ(Undo("c", 1)->position, 5000);
  OpenRocks();
  EXPECT_EQ(Log("c"), Ids(5000));
  EXPECT_EQ(Undo("c", 1)->position, 0);
}

TEST_F(BranchingTest, ALongForkSharesTheLogAndOutlivesItsParent) {
  Create("a");
  SayAndSave("a", Ids(9000));
  Say("a", Ids(100, 9000), {});
  ASSERT_OK(Fork("a", "b"));
  ASSERT_OK(Fork("b", "c"));
  Say("c", {1}, {});
  ASSERT_OK(manager_->Delete("a", std::nullopt));
  ASSERT_OK(manager_->Delete("b", std::nullopt));
  OpenRocks();
  std::vector<int32_t> expected = Ids(9100);
  expected.push_back(1);
  EXPECT_EQ(Log("c"), expected);
  auto turn = Begin(Spec("c", {2}));
  const auto state = turn->Restore();
  ASSERT_OK(state);
  EXPECT_EQ(state->position, 9000) << "the parent's snapshot, not the log from its beginning";
  EXPECT_TRUE(Same(*state->state, *StateOf(Ids(9000))));
  EXPECT_EQ(state->tail.size(), 101u);
}

TEST_F(BranchingTest, WhereAForkBeginsIsKeptWhileItsParentMovesOn) {
  Create("a");
  SayAndSave("a", Ids(10));
  ASSERT_OK(Fork("a", "b"));
  for (int i = 1; i <= 5; ++i) SayAndSave("a", Ids(10, 10 * i));
  auto turn = Begin(Spec("b", {1}));
  const auto state = turn->Restore();
  ASSERT_OK(state);
  EXPECT_EQ(state->position, 10);
  EXPECT_THAT(state->tail, IsEmpty());
}

TEST_F(BranchingTest, ForksAreRefusedWithTheReason) {
  EXPECT_THAT(Fork("a", "b"), StatusIs(StatusCode::kNotFound, HasSubstr("'a'")));
  Create("a");
  Create("b");
  EXPECT_THAT(Fork("a", "b"), StatusIs(StatusCode::kAlreadyExists, HasSubstr("'b'")));
  EXPECT_THAT(Fork("a", "c", "nowhere"), StatusIs(StatusCode::kNotFound, HasSubstr("nowhere")));
  EXPECT_THAT(Fork("a", "C"), StatusIs(StatusCode::kInvalidArgument, HasSubstr("\"C\"")));
  ForkSpec spec;
  spec.session_id = "a";
  spec.new_id = "c";
  spec.expected_position = 1;
  EXPECT_THAT(manager_->Fork(spec), StatusIs(StatusCode::kAborted, HasSubstr("position 0")));
  Say("a", {1, 2}, {});
  ASSERT_OK(Mark("a", "here"));
  auto turn = Begin(Spec("a", {3}));
  EXPECT_THAT(Fork("a", "c"), StatusIs(StatusCode::kAborted, HasSubstr("another request")));
  ASSERT_OK(Fork("a", "c", "here"));
  EXPECT_THAT(Log("c"), ElementsAre(1, 2));
}

TEST_F(BranchingTest, RollbackUndoesTurns) {
  Create("a");
  Say("a", {1}, {2}, "r1");
  Say("a", {3}, {4}, "r2");
  Say("a", {5}, {6}, "r3");
  EXPECT_THAT(Checkpoints("a"), ElementsAre("turn-0-0", "turn-0-2", "turn-0-4"));
  const auto back = Undo("a", 2);
  ASSERT_OK(back);
  EXPECT_EQ(back->position, 2);
  EXPECT_EQ(back->branch, 1);
  EXPECT_THAT(Log("a"), ElementsAre(1, 2));
  EXPECT_THAT(Checkpoints("a"), ElementsAre("turn-0-0"));
  {
    absl::MutexLock lock(&removed_mu_);
    ASSERT_EQ(removed_.size(), 1u);
    EXPECT_THAT(removed_[0], HasSubstr("/0"));
  }
  Say("a", {7}, {8}, "r4");
  EXPECT_THAT(Log("a"), ElementsAre(1, 2, 7, 8));
  // What was undone is still what those requests said.
  EXPECT_EQ(manager_->GetRequest("a", "r3")->branch, 0);
  EXPECT_THAT(*manager_->ReadRequestLog("a", 0, 5, 6), ElementsAre(5, 6));
  EXPECT_THAT(Undo("a", 3), StatusIs(StatusCode::kNotFound, HasSubstr("start of 2 turns")));
  ASSERT_OK(Undo("a", 2));
  EXPECT_THAT(Log("a"), IsEmpty());
  OpenRocks();
  EXPECT_THAT(Log("a"), IsEmpty());
  EXPECT_EQ(manager_->Get("a")->branch, 2);
  Say("a", {9}, {});
  EXPECT_THAT(Log("a"), ElementsAre(9));
}

TEST_F(BranchingTest, ARequestOfBeforeARollbackIsSuperseded) {
  Create("a");
  Say("a", {1}, {2}, "first");
  {
    auto turn = Begin(Spec("a", {3}, "parked"));
    turn->Append(std::vector<int32_t>{4});
    FinishAndWait(*turn, "", RequestState::kInterrupted);
  }
  ASSERT_OK(Undo("a", 1));
  EXPECT_THAT(manager_->ResumeTurn("a", "parked"), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("without it")));
}

TEST_F(BranchingTest, RollbackFindsAStateNearItsTarget) {
  Create("a");
  for (int i = 0; i < 6; ++i) SayAndSave("a", Ids(10, 10 * i));
  ASSERT_OK(Undo("a", 3));
  auto turn = Begin(Spec("a", {1}));
  const auto state = turn->Restore();
  ASSERT_OK(state);
  EXPECT_EQ(state->position, 30);
  EXPECT_TRUE(Same(*state->state, *StateOf(Ids(30))));
}

TEST_F(BranchingTest, CheckpointsOfABranchThatWasLeftCanBeReturnedTo) {
  Create("a");
  SayAndSave("a", Ids(10));
  ASSERT_OK(Mark("a", "early"));
  SayAndSave("a", Ids(10, 10));
  ASSERT_OK(Mark("a", "late"));
  SayAndSave("a", Ids(10, 20));
  ASSERT_OK(GoBack("a", "early"));
  EXPECT_EQ(Log("a"), Ids(10));
  for (int i = 0; i < 4; ++i) SayAndSave("a", {100 + i});
  EXPECT_THAT(Checkpoints("a"),
              ElementsAre("turn-0-0", "early", "turn-1-10", "turn-1-11", "turn-1-12", "turn-1-13", "late"));
  ASSERT_OK(Fork("a", "b", "late"));
  EXPECT_EQ(Log("b"), Ids(20));
  ASSERT_OK(GoBack("a", "late"));
  EXPECT_EQ(Log("a"), Ids(20));
  EXPECT_EQ(manager_->Get("a")->branch, 2);
  auto turn = Begin(Spec("a", {1}));
  EXPECT_EQ(turn->Restore()->position, 20);
  FinishAndWait(*turn);
  ASSERT_OK(GoBack("a", "early"));
  EXPECT_EQ(Log("a"), Ids(10));
  ASSERT_OK(manager_->DeleteCheckpoint("a", "late", ""));
  EXPECT_THAT(GoBack("a", "late"), StatusIs(StatusCode::kNotFound, HasSubstr("late")));
}

TEST_F(BranchingTest, CheckpointsAreRefusedWithTheReason) {
  Create("a");
  Say("a", {1}, {});
  ASSERT_OK(Mark("a", "x"));
  EXPECT_THAT(Mark("a", "x"), StatusIs(StatusCode::kAlreadyExists, HasSubstr("'x'")));
  EXPECT_THAT(Mark("a", "X"), StatusIs(StatusCode::kInvalidArgument, HasSubstr("\"X\"")));
  EXPECT_THAT(Mark("b", "x"), StatusIs(StatusCode::kNotFound, HasSubstr("'b'")));
  CheckpointSpec spec;
  spec.session_id = "a";
  spec.expected_position = 3;
  EXPECT_THAT(manager_->CreateCheckpoint(spec), StatusIs(StatusCode::kAborted, HasSubstr("position 1")));
  EXPECT_THAT(manager_->DeleteCheckpoint("a", "y", ""), StatusIs(StatusCode::kNotFound, HasSubstr("'y'")));
  EXPECT_THAT(manager_->ListCheckpoints("a", -1, ""), StatusIs(StatusCode::kInvalidArgument, HasSubstr("-1")));
  EXPECT_THAT(manager_->ListCheckpoints("a", 1, "zz"), StatusIs(StatusCode::kInvalidArgument, HasSubstr("zz")));
  for (int i = 1; i < kMaxCheckpoints; ++i) ASSERT_OK(Mark("a", "c" + std::to_string(i)));
  EXPECT_THAT(Mark("a", "more"), StatusIs(StatusCode::kResourceExhausted, HasSubstr("64")));
  EXPECT_THAT(Undo("a", 0), StatusIs(StatusCode::kInvalidArgument, HasSubstr("turns is 0")));
  RollbackSpec back;
  back.session_id = "a";
  back.turns = 1;
  back.etag = "other";
  EXPECT_THAT(manager_->Rollback(back), StatusIs(StatusCode::kAborted, HasSubstr("etag")));
  auto turn = Begin(Spec("a", {3}));
  EXPECT_THAT(Undo("a", 1), StatusIs(StatusCode::kAborted, HasSubstr("another request")));
  EXPECT_THAT(Mark("a", "busy"), StatusIs(StatusCode::kAborted, HasSubstr("another request")));
}

TEST_F(BranchingTest, OnlyTheLatestTurnsAreRemembered) {
  Create("a");
  for (int i = 0; i < kRememberedTurns + 5; ++i) Say("a", {i}, {});
  EXPECT_EQ(Checkpoints("a").size(), static_cast<size_t>(kRememberedTurns));
  ASSERT_OK(Undo("a", kRememberedTurns));
  EXPECT_EQ(Log("a"), Ids(5));
}

TEST_F(BranchingTest, TheSameRequestAgainIsAnsweredAsBefore) {
  const auto made = manager_->Create("", absl::Hours(100), {{"k", "v"}}, "create-1");
  ASSERT_OK(made);
  const std::string a = made->id;
  Say(a, {1}, {2});
  const auto again = manager_->Create("", absl::Hours(100), {{"k", "v"}}, "create-1");
  ASSERT_OK(again);
  EXPECT_EQ(again->id, a);
  EXPECT_EQ(again->etag, made->etag);
  EXPECT_EQ(again->position, 0);
  EXPECT_NE(manager_->Create("", absl::Hours(100), {}, "create-2")->id, a);
  EXPECT_THAT(manager_->Create("", absl::Hours(200), {{"k", "v"}}, "create-1"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("another meaning")));

  const auto fork = Fork(a, "", "", "fork-1");
  ASSERT_OK(fork);
  Say(a, {3}, {});
  EXPECT_EQ(Fork(a, "", "", "fork-1")->id, fork->id);
  EXPECT_EQ(Fork(a, "", "", "fork-1")->position, 2);
  ASSERT_OK(Fork(a, "named", "", "fork-2"));
  EXPECT_EQ(Fork(a, "named", "", "fork-2")->position, 3);
  EXPECT_THAT(Fork(a, "named", "", "fork-3"), StatusIs(StatusCode::kAlreadyExists, HasSubstr("named")));

  CheckpointSpec mark;
  mark.session_id = a;
  mark.request_id = "mark-1";
  const auto checkpoint = manager_->CreateCheckpoint(mark);
  ASSERT_OK(checkpoint);
  Say(a, {4}, {});
  EXPECT_EQ(manager_->CreateCheckpoint(mark)->id, checkpoint->id);
  EXPECT_EQ(manager_->CreateCheckpoint(mark)->position, 3);

  RollbackSpec back;
  back.session_id = a;
  back.turns = 1;
  back.request_id = "back-1";
  EXPECT_EQ(manager_->Rollback(back)->position, 3);
  Say(a, {5}, {6});
  EXPECT_EQ(manager_->Rollback(back)->position, 3) << "not another turn undone";
  EXPECT_THAT(Log(a), ElementsAre(1, 2, 3, 5, 6));
  back.turns = 2;
  EXPECT_THAT(manager_->Rollback(back), StatusIs(StatusCode::kInvalidArgument, HasSubstr("another meaning")));
  ASSERT_OK(manager_->DeleteCheckpoint(a, checkpoint->id, "delete-1"));
  ASSERT_OK(manager_->DeleteCheckpoint(a, checkpoint->id, "delete-1"));
  EXPECT_THAT(manager_->GetRequest(a, "back-1"), StatusIs(StatusCode::kNotFound, HasSubstr("back-1")));
  EXPECT_THAT(manager_->ResumeTurn(a, "back-1"), StatusIs(StatusCode::kNotFound, HasSubstr("back-1")));
  EXPECT_THAT(manager_->BeginTurn(Spec(a, {1}, "back-1")), StatusIs(StatusCode::kInvalidArgument, HasSubstr("back-1")));
  SessionManager::Update update;
  update.labels = std::map<std::string, std::string>{{"x", "y"}};
  update.request_id = "update-1";
  const auto updated = manager_->UpdateSession(a, update);
  ASSERT_OK(updated);
  Say(a, {7}, {});
  EXPECT_EQ(manager_->UpdateSession(a, update)->etag, updated->etag);
  clock_.Advance(absl::Hours(25));  // forgotten
  EXPECT_NE(manager_->UpdateSession(a, update)->etag, updated->etag);
}

}  // namespace
}  // namespace smt
