// Forks, checkpoints, rollback, export and import.
#include <gmock/gmock.h>

#include <map>
#include <random>
#include <utility>

#include "server/store/record_format.h"
#include "tests/server/session/session_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// A state that only these ids make.
std::shared_ptr<const StateBuffer> StateOf(std::span<const int32_t> ids) {
  auto state = std::make_shared<StateBuffer>(kTestStateBytes);
  const uint64_t hash = Xxh3({reinterpret_cast<const char*>(ids.data()), ids.size() * 4});
  for (size_t i = 0; i < state->size(); i += 8) std::memcpy(state->span().data() + i, &hash, 8);
  return state;
}
bool Same(const StateBuffer& a, const StateBuffer& b) {
  return a.size() == b.size() && std::memcmp(a.span().data(), b.span().data(), a.size()) == 0;
}

class BranchingTest : public SessionTest {
 protected:
  BranchingTest() { OpenRocks(); }

  absl::StatusOr<SessionInfo> Fork(std::string from, std::string to, std::string checkpoint = "",
                                   std::string request_id = "") {
    ForkSpec spec;
    spec.session_id = std::move(from);
    spec.new_id = std::move(to);
    spec.checkpoint_id = std::move(checkpoint);
    spec.request_id = std::move(request_id);
    return manager_->Fork(spec);
  }
  absl::StatusOr<SessionInfo> Undo(std::string id, int32_t turns) {
    RollbackSpec spec;
    spec.session_id = std::move(id);
    spec.turns = turns;
    return manager_->Rollback(spec);
  }
  absl::StatusOr<SessionInfo> GoBack(std::string id, std::string checkpoint) {
    RollbackSpec spec;
    spec.session_id = std::move(id);
    spec.checkpoint_id = std::move(checkpoint);
    return manager_->Rollback(spec);
  }
  absl::StatusOr<CheckpointInfo> Mark(std::string id, std::string checkpoint) {
    CheckpointSpec spec;
    spec.session_id = std::move(id);
    spec.checkpoint_id = std::move(checkpoint);
    return manager_->CreateCheckpoint(spec);
  }
  std::vector<int32_t> Log(const std::string& id) {
    const auto info = manager_->Get(id);
    EXPECT_OK(info);
    if (!info.ok() || info->position == 0) return {};
    const auto log = manager_->ReadLog(id, 1, info->position);
    EXPECT_OK(log);
    return log.ok() ? *log : std::vector<int32_t>();
  }
  std::vector<std::string> Checkpoints(const std::string& id) {
    std::vector<std::string> out;
    std::string token;
    do {
      const auto page = manager_->ListCheckpoints(id, 3, token);
      EXPECT_OK(page);
      if (!page.ok()) break;
      for (const CheckpointInfo& c : page->checkpoints) out.push_back(c.id);
      token = page->next_page_token;
    } while (!token.empty());
    return out;
  }
  // A turn that leaves a snapshot of the whole log behind.
  void SayAndSave(const std::string& id, std::vector<int32_t> prompt) {
    auto turn = Begin(Spec(id, prompt));
    ASSERT_NE(turn, nullptr);
    auto log = Log(id);
    turn->Snapshot(static_cast<int64_t>(log.size()), StateOf(log));
    ASSERT_OK(FinishAndWait(*turn).status);
    ASSERT_OK(manager_->Flush());
  }
};

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

TEST_F(BranchingTest, ExportedAndImportedItIsTheSameSession) {
  Create("a");
  SayAndSave("a", Ids(5000));
  ASSERT_OK(Mark("a", "mark"));
  ASSERT_OK(Fork("a", "b"));
  Say("b", {7, 8}, {});
  auto content = manager_->Export("b", "");
  ASSERT_OK(content);
  EXPECT_EQ(content->info.position, 5002);
  EXPECT_EQ(content->log.size(), 5002u);
  EXPECT_EQ(content->state_position, 5000);
  ImportSpec spec;
  spec.new_id = "c";
  spec.labels = {{"from", "b"}};
  spec.content = *content;
  const auto imported = manager_->Import(spec);
  ASSERT_OK(imported);
  EXPECT_EQ(imported->position, 5002);
  ASSERT_OK(manager_->Delete("a", std::nullopt));
  ASSERT_OK(manager_->Delete("b", std::nullopt));
  OpenRocks();
  EXPECT_EQ(Log("c"), content->log);
  auto turn = Begin(Spec("c", {1}));
  const auto state = turn->Restore();
  ASSERT_OK(state);
  EXPECT_EQ(state->position, 5000);
  EXPECT_TRUE(Same(*state->state, *content->state));
  EXPECT_EQ(state->numerics_id, "cpu/test");
  turn.reset();

  EXPECT_THAT(manager_->Import(spec), StatusIs(StatusCode::kAlreadyExists, HasSubstr("'c'")));
  spec.new_id = "d";
  spec.content.info.model_fingerprint = "other";
  EXPECT_THAT(manager_->Import(spec), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("other")));
  spec.content = *content;
  spec.content.state_position = 5003;
  EXPECT_THAT(manager_->Import(spec), StatusIs(StatusCode::kInvalidArgument, HasSubstr("5003")));
  spec.content.state = std::make_shared<StateBuffer>(8);
  EXPECT_THAT(manager_->Import(spec), StatusIs(StatusCode::kInvalidArgument, HasSubstr("8 bytes")));
  EXPECT_THAT(manager_->Get("d"), StatusIs(StatusCode::kNotFound, HasSubstr("'d'")));
  spec.content.state = nullptr;
  ASSERT_OK(manager_->Import(spec));
}

TEST_F(BranchingTest, WhatGrewFromAForeignStateIsNotTakenForThisServersOwn) {
  ImportSpec spec;
  spec.new_id = "a";
  spec.content.info.model_fingerprint = "model-1";
  spec.content.log = Ids(10);
  spec.content.state = StateOf(Ids(10));
  spec.content.state_position = 10;
  spec.content.numerics_id = "gpu/other";
  ASSERT_OK(manager_->Import(spec));
  auto turn = Begin(Spec("a", {1}));
  ASSERT_TRUE(turn->Restore()->foreign_numerics);
  turn->Snapshot(11, State(11));
  FinishAndWait(*turn);
  manager_->SaveEvicted(manager_->Get("a")->key, 11, State(11));
  ASSERT_OK(manager_->Flush());
  OpenRocks();
  EXPECT_EQ(manager_->Export("a", "")->numerics_id, "mixed/cpu/test");
  EXPECT_TRUE(manager_->ReadState("a", nullptr)->foreign_numerics);
}

TEST_F(BranchingTest, ExportOfACheckpointOfABranchThatWasLeft) {
  Create("a");
  SayAndSave("a", Ids(10));
  SayAndSave("a", Ids(10, 10));
  ASSERT_OK(Mark("a", "late"));
  ASSERT_OK(Undo("a", 1));
  SayAndSave("a", Ids(10, 100));
  const auto content = manager_->Export("a", "late");
  ASSERT_OK(content);
  EXPECT_EQ(content->log, Ids(20));
  EXPECT_EQ(content->state_position, 20);
  EXPECT_TRUE(Same(*content->state, *StateOf(Ids(20))));
}

TEST_F(BranchingTest, VisitsTheStatesOfTheBranch) {
  Create("a");
  SayAndSave("a", Ids(10));
  ASSERT_OK(Fork("a", "b"));
  SayAndSave("b", Ids(10, 10));
  std::vector<int64_t> positions;
  ASSERT_OK(manager_->VisitStates("b", [&](const SessionManager::KeptState& kept) {
    positions.push_back(kept.position);
    EXPECT_TRUE(Same(*kept.state, *StateOf(Ids(kept.position))));
    return absl::OkStatus();
  }));
  EXPECT_THAT(positions, ElementsAre(10, 20));
}

TEST_F(BranchingTest, StatesComeFromTheHostTierWhileTheyAreThere) {
  options_.host_state_bytes = 2 * kTestStateBytes;
  OpenRocks();
  for (const char* id : {"a", "b"}) {
    Create(id);
    SayAndSave(id, Ids(10));
  }
  const auto tier = [&](const std::string& id) { return manager_->ReadState(id, nullptr)->tier; };
  EXPECT_EQ(tier("a"), "host");
  ASSERT_OK(Fork("a", "fork"));
  EXPECT_EQ(tier("fork"), "host") << "its parent's";
  Create("c");
  SayAndSave("c", Ids(10));
  EXPECT_EQ(tier("b"), "store") << "the least recently used one had to go";
  EXPECT_EQ(tier("a"), "host");
  EXPECT_EQ(tier("c"), "host");
  EXPECT_EQ(manager_->counters().host_state_bytes, 2 * kTestStateBytes);
  Say("a", {1}, {});
  SayAndSave("a", {2});
  ASSERT_OK(Undo("a", 1));
  EXPECT_EQ(manager_->ReadState("a", nullptr)->position, 10) << "not the one of the branch that was left";
  ASSERT_OK(manager_->Delete("a", std::nullopt));
  ASSERT_OK(manager_->Delete("c", std::nullopt));
  EXPECT_EQ(manager_->counters().host_state_bytes, 0);
}

// Random sessions against a plain model of them: whatever was forked, rolled back, deleted and reopened, each log is
// what it should be and each restored state is that of its ids.
TEST_F(BranchingTest, RandomHistoriesReadBack) {
  struct Model {
    std::vector<int32_t> log;
    std::map<std::string, std::vector<int32_t>> named;
    std::vector<int64_t> turns;  // starts, of the branch
  };
  options_.host_state_bytes = 5 * kTestStateBytes;
  OpenRocks();
  std::map<std::string, Model> model;
  std::mt19937 random(20261126);
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  const auto turns_of = [&](const std::string& id) {
    std::vector<int64_t> turns;
    const auto page = manager_->ListCheckpoints(id, 1000, "");
    EXPECT_OK(page);
    if (!page.ok()) return turns;
    for (const CheckpointInfo& c : page->checkpoints) {
      if (c.automatic) turns.push_back(c.position);
    }
    return turns;
  };
  int next_id = 0;
  for (int step = 0; step < 900; ++step) {
    if (model.empty() || (model.size() < 8 && below(10) == 0)) {
      const std::string id = "s" + std::to_string(next_id++);
      Create(id);
      model[id];
      continue;
    }
    auto it = std::next(model.begin(), static_cast<int64_t>(below(model.size())));
    const std::string id = it->first;
    Model& m = it->second;
    SCOPED_TRACE("step " + std::to_string(step) + " on " + id);
    switch (below(10)) {
      case 0:
      case 1:
      case 2:
      case 3: {
        std::vector<int32_t> ids(below(8) == 0 ? 3000 + below(4000) : below(20));
        for (int32_t& x : ids) x = static_cast<int32_t>(random() % 1000);
        auto turn = Begin(Spec(id, ids));
        ASSERT_NE(turn, nullptr);
        const auto restored = turn->Restore();
        ASSERT_OK(restored);
        if (restored->state != nullptr) {
          ASSERT_TRUE(Same(*restored->state, *StateOf({m.log.data(), static_cast<size_t>(restored->position)})));
        }
        ASSERT_EQ(restored->tail, std::vector<int32_t>(m.log.begin() + restored->position, m.log.end()));
        std::erase(m.turns, static_cast<int64_t>(m.log.size()));
        m.turns.push_back(static_cast<int64_t>(m.log.size()));
        m.log.insert(m.log.end(), ids.begin(), ids.end());
        if (below(2) == 0 && !m.log.empty()) turn->Snapshot(static_cast<int64_t>(m.log.size()), StateOf(m.log));
        ASSERT_OK(FinishAndWait(*turn).status);
        if (m.turns.size() > static_cast<size_t>(kRememberedTurns)) m.turns.erase(m.turns.begin());
        break;
      }
      case 4: {
        const std::string name = "c" + std::to_string(below(6));
        const auto marked = Mark(id, name);
        ASSERT_EQ(marked.ok(), m.named.count(name) == 0);
        if (marked.ok()) m.named[name] = m.log;
        break;
      }
      case 5: {
        if (m.turns.empty()) break;
        const size_t back = 1 + below(m.turns.size());
        ASSERT_OK(Undo(id, static_cast<int32_t>(back)));
        m.log.resize(static_cast<size_t>(m.turns[m.turns.size() - back]));
        m.turns.resize(m.turns.size() - back);
        break;
      }
      case 6: {
        if (m.named.empty()) break;
        const auto c = std::next(m.named.begin(), static_cast<int64_t>(below(m.named.size())));
        ASSERT_OK(GoBack(id, c->first));
        m.log = c->second;
        m.turns = turns_of(id);
        break;
      }
      case 7: {
        const std::string child = "s" + std::to_string(next_id++);
        if (!m.named.empty() && below(2) == 0) {
          const auto c = std::next(m.named.begin(), static_cast<int64_t>(below(m.named.size())));
          ASSERT_OK(Fork(id, child, c->first));
          model[child].log = c->second;
          model[child].turns = turns_of(child);
          for (const int64_t turn : model[child].turns) ASSERT_LT(turn, static_cast<int64_t>(c->second.size()));
        } else {
          ASSERT_OK(Fork(id, child));
          model[child].log = std::vector<int32_t>(m.log);
          model[child].turns = m.turns;
          std::erase(model[child].turns, static_cast<int64_t>(m.log.size()));
          ASSERT_EQ(turns_of(child), model[child].turns);
        }
        break;
      }
      case 8:
        if (model.size() > 4) {
          ASSERT_OK(manager_->Delete(id, std::nullopt));
          model.erase(it);
        }
        break;
      case 9:
        if (below(4) == 0) OpenRocks();
        break;
    }
    if (step % 50 == 0 || step > 880) {
      for (auto& [name, expected] : model) {
        ASSERT_EQ(Log(name), expected.log) << name;
        for (const auto& [checkpoint, log] : expected.named) {
          const auto content = manager_->Export(name, checkpoint);
          ASSERT_OK(content);
          ASSERT_EQ(content->log, log);
          if (content->state != nullptr) {
            ASSERT_TRUE(Same(*content->state, *StateOf({log.data(), static_cast<size_t>(content->state_position)})));
          }
        }
      }
    }
  }
  for (const auto& [id, m] : model) ASSERT_OK(manager_->Delete(id, std::nullopt));
  manager_.reset();
  RocksDbStoreOptions options;
  options.dir = dir_.path();
  const auto store = *OpenRocksDbStore(options);
  EXPECT_EQ(*store->Count(), 0);
}

// A log of a branch that was left stays as long as a checkpoint, a request that may be sent again or a fork needs it.
TEST_F(BranchingTest, LogsOfLeftBranchesGoWhenNothingNeedsThem) {
  const auto bytes_of = [&](int64_t branch) {  // as one who asks for all of it
    return manager_->ReadRequestLog("a", branch, 5001, 10'000).ok();
  };
  Create("a");
  Say("a", Ids(5000), {});
  Say("a", Ids(5000, 5000), {});
  ASSERT_OK(Mark("a", "kept"));            // at 10,000 of branch 0
  Say("a", Ids(10, 10'000), {}, "asked");  // on branch 0, up to 10,010
  ASSERT_OK(Undo("a", 2));                 // to 5,000: branch 1
  Say("a", Ids(5000, 20'000), {});
  ASSERT_OK(Fork("a", "child"));  // reads branch 1 up to 10,000
  ASSERT_OK(Undo("a", 1));        // to 5,000: branch 2
  Say("a", Ids(5000, 30'000), {});
  ASSERT_OK(Undo("a", 1));  // branch 3
  Say("a", {1}, {2});
  const std::vector<int32_t> log = Log("a"), child = Log("child");
  for (const int64_t branch : {0, 1, 2}) EXPECT_TRUE(bytes_of(branch)) << branch;

  const std::string etag = manager_->Get("a")->etag;
  ASSERT_OK(manager_->Sweep());
  EXPECT_TRUE(bytes_of(2)) << "somebody may just be reading it";
  for (int i = 0; i < 3; ++i) ASSERT_OK(manager_->Sweep());
  EXPECT_TRUE(bytes_of(0)) << "a checkpoint";
  EXPECT_TRUE(bytes_of(1)) << "a fork";
  EXPECT_FALSE(bytes_of(2));
  EXPECT_EQ(*manager_->ReadRequestLog("a", 0, 10'001, 10'010), Ids(10, 10'000)) << "a request";
  EXPECT_EQ(manager_->Get("a")->etag, etag);

  OpenRocks();
  clock_.Advance(options_.request_ttl + absl::Seconds(1));
  for (int i = 0; i < 4; ++i) ASSERT_OK(manager_->Sweep());
  EXPECT_TRUE(bytes_of(0));
  ASSERT_OK(manager_->DeleteCheckpoint("a", "kept", ""));
  ASSERT_OK(manager_->Delete("child", std::nullopt));
  OpenRocks();
  for (int i = 0; i < 2; ++i) ASSERT_OK(manager_->Sweep());
  EXPECT_FALSE(bytes_of(0));
  EXPECT_FALSE(bytes_of(1));
  EXPECT_EQ(Log("a"), log);
  OpenRocks();
  EXPECT_EQ(Log("a"), log);
  ASSERT_OK(Undo("a", 1));
  EXPECT_EQ(Log("a"), std::vector<int32_t>(log.begin(), log.begin() + 5000));
}

}  // namespace
}  // namespace smt
