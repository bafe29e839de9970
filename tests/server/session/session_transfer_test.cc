// Export and import, and which states a session that was forked or rolled back goes on from.
#include "tests/server/session/session_branching_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

class TransferTest : public BranchingTest {};

TEST_F(TransferTest, ExportedAndImportedItIsTheSameSession) {
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

TEST_F(TransferTest, WhatGrewFromAForeignStateIsNotTakenForThisServersOwn) {
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

TEST_F(TransferTest, ExportOfACheckpointOfABranchThatWasLeft) {
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

TEST_F(TransferTest, VisitsTheStatesOfTheBranch) {
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

TEST_F(TransferTest, StatesComeFromTheHostTierWhileTheyAreThere) {
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

}  // namespace
}  // namespace smt
