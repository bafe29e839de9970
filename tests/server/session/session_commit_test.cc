// Group commit: what is written together, what is synced, and who is told when.
#include <atomic>

#include "tests/server/session/session_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class SessionCommitTest : public SessionTest {};

TEST_F(SessionCommitTest, FinishesThatArriveDuringOneSyncFormTheNextGroup) {
  OpenMemory();
  std::vector<std::unique_ptr<Turn>> turns;
  for (int i = 0; i < 17; ++i) {
    Create("s" + std::to_string(i));
    turns.push_back(Begin(Spec("s" + std::to_string(i), {1})));
  }
  const int64_t commits = memory_->commits(), syncs = memory_->syncs();
  std::atomic<int> done{0};
  const auto count = [&](absl::Status s, int64_t) { done += s.ok(); };
  memory_->Hold(true);
  turns[0]->Finish(RequestState::kFinished, "", count);
  memory_->WaitUntilCommitWaits();
  for (size_t i = 1; i < turns.size(); ++i) {
    turns[i]->Append(std::vector<int32_t>{2, 3});
    turns[i]->Finish(RequestState::kFinished, "", count);
  }
  EXPECT_EQ(done, 0);
  memory_->Hold(false);
  ASSERT_OK(manager_->Flush());
  EXPECT_EQ(done, 17);
  const auto sizes = memory_->group_sizes();
  EXPECT_THAT(std::vector<size_t>(sizes.begin() + commits, sizes.end()), ElementsAre(1u, 16u));
  EXPECT_EQ(memory_->syncs() - syncs, 3);  // two groups and Flush
}

TEST_F(SessionCommitTest, DurabilityDecidesWhatIsSynced) {
  OpenMemory();
  for (const auto& [durability, syncs] :
       {std::pair{Durability::kNone, 0}, {Durability::kTurn, 2}, {Durability::kToken, 7}}) {
    const std::string id = "d" + std::to_string(static_cast<int>(durability));
    Create(id);
    const int64_t before = memory_->syncs();
    auto turn = Begin(Spec(id, {1}, "", durability));
    EXPECT_EQ(turn->durable_position(), durability == Durability::kNone ? 0 : 1);
    for (int i = 0; i < 5; ++i) {
      const int64_t synced = memory_->syncs();
      turn->Append(std::vector<int32_t>{i});
      if (durability == Durability::kToken) {
        while (memory_->syncs() == synced || turn->durable_position() < 2 + i) absl::SleepFor(absl::Microseconds(100));
      }
    }
    EXPECT_EQ(FinishAndWait(*turn).durable, durability == Durability::kNone ? 0 : 6);
    EXPECT_EQ(memory_->syncs() - before, syncs) << id;
  }
}

class TokenTurns : public SessionTest {
 protected:
  // So many turns with kToken, on a store in memory.
  void BeginTurns(int count) {
    OpenMemory();
    for (int i = 0; i < count; ++i) {
      Create("s" + std::to_string(i));
      turns_.push_back(Begin(Spec("s" + std::to_string(i), {1}, "", Durability::kToken)));
    }
    commits_ = memory_->group_sizes().size();
    syncs_ = memory_->syncs();
  }
  void AppendToEach(int32_t id) {
    for (const auto& turn : turns_) turn->Append(std::vector<int32_t>{id});
  }
  void AwaitDurable(int64_t position) {
    for (const auto& turn : turns_) {
      while (turn->durable_position() < position) absl::SleepFor(absl::Microseconds(100));
    }
  }
  // Writes of each commit since the turns began.
  std::vector<size_t> Groups() const {
    const auto sizes = memory_->group_sizes();
    return {sizes.begin() + static_cast<int64_t>(commits_), sizes.end()};
  }

  std::vector<std::unique_ptr<Turn>> turns_;
  size_t commits_ = 0;
  int64_t syncs_ = 0;
};

TEST_F(TokenTurns, TheIdsOfOneStepAreOneCommit) {
  BeginTurns(17);
  manager_->HoldAppends();
  AppendToEach(2);
  AppendToEach(3);
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_THAT(Groups(), IsEmpty());
  manager_->ReleaseAppends();
  AwaitDurable(3);
  EXPECT_THAT(Groups(), ElementsAre(17u));
  EXPECT_EQ(memory_->syncs() - syncs_, 1);
  EXPECT_THAT(*manager_->ReadLog("s16", 1, 3), ElementsAre(1, 2, 3));
}

TEST_F(TokenTurns, HeldIdsGoWithWhateverElseIsCommitted) {
  BeginTurns(2);
  manager_->HoldAppends();
  AppendToEach(2);
  Create("other");
  AwaitDurable(2);
  EXPECT_THAT(Groups(), ElementsAre(3u));
  AppendToEach(3);
  ASSERT_OK(FinishAndWait(*turns_[0]).status);
  EXPECT_EQ(turns_[0]->durable_position(), 3);
  EXPECT_EQ(manager_->ReadLog("s1", 3, 3)->at(0), 3);
  manager_->ReleaseAppends();
}

TEST_F(TokenTurns, WhatATurnAppendsDuringASyncIsOneWrite) {
  BeginTurns(1);
  memory_->Hold(true);
  AppendToEach(2);
  memory_->WaitUntilCommitWaits();
  for (int32_t id = 3; id < 100; ++id) AppendToEach(id);
  memory_->Hold(false);
  AwaitDurable(99);
  EXPECT_THAT(Groups(), ElementsAre(1u, 1u));
  EXPECT_EQ(*manager_->ReadLog("s0", 1, 99), Ids(99, 1));
}

TEST_F(TokenTurns, AFailedSyncFailsEachTurnOfItsGroupAndTellsIt) {
  BeginTurns(5);
  std::vector<absl::Notification> told(turns_.size());
  for (size_t i = 0; i < turns_.size(); ++i) {
    turns_[i]->Watch([&, i] { told[i].Notify(); });
  }
  memory_->FailCommits(1, absl::UnavailableError("the sync failed"));
  manager_->HoldAppends();
  AppendToEach(2);
  manager_->ReleaseAppends();
  for (size_t i = 0; i < turns_.size(); ++i) {
    told[i].WaitForNotification();
    EXPECT_THAT(turns_[i]->status(), StatusIs(StatusCode::kUnavailable, HasSubstr("the sync failed")));
    EXPECT_EQ(turns_[i]->durable_position(), 1);
    turns_[i]->Watch(nullptr);
    EXPECT_THAT(FinishAndWait(*turns_[i]).status, StatusIs(StatusCode::kUnavailable, HasSubstr("the sync failed")));
    EXPECT_EQ(manager_->Get("s" + std::to_string(i))->position, 1);
  }
}

TEST_F(TokenTurns, AWatcherThatTakesItsTimeHoldsUpNoCommitAndIsToldTheRestAtOnce) {
  BeginTurns(2);
  absl::Notification entered, go_on;
  std::atomic<int> calls{0};
  std::atomic<int64_t> seen{0};
  turns_[0]->Watch([&] {
    if (calls++ == 0) {
      entered.Notify();
      go_on.WaitForNotification();
    }
    seen = turns_[0]->durable_position();
  });
  turns_[0]->Append(std::vector<int32_t>{2});
  entered.WaitForNotification();
  for (int32_t id = 3; id < 20; ++id) {
    turns_[0]->Append(std::vector<int32_t>{id});
    while (turns_[0]->durable_position() < id) absl::SleepFor(absl::Microseconds(100));
  }
  go_on.Notify();
  ASSERT_OK(manager_->Flush());
  EXPECT_EQ(seen, 19);
  EXPECT_EQ(calls, 2);
  turns_[0]->Watch(nullptr);
}

TEST_F(SessionCommitTest, LogWritesAreBatchedBySixtyFourIds) {
  OpenMemory();
  Create("a");
  auto turn = Begin(Spec("a", {1}));
  ASSERT_OK(manager_->ReadLog("a", 1, 1));
  const int64_t commits = memory_->commits();
  for (int i = 0; i < 63; ++i) turn->Append(std::vector<int32_t>{i});
  EXPECT_EQ(manager_->Get("a")->position, 1);
  turn->Append(std::vector<int32_t>{63});
  EXPECT_EQ(manager_->ReadLog("a", 2, 65)->size(), 64u);
  EXPECT_EQ(memory_->commits() - commits, 1);
  turn->Append(std::vector<int32_t>{64});
  ASSERT_OK(manager_->Flush());
  EXPECT_EQ(manager_->ReadLog("a", 66, 66)->at(0), 64);
  EXPECT_THAT(manager_->ReadLog("a", 1, 67), StatusIs(StatusCode::kOutOfRange, HasSubstr("1 to 66")));
  EXPECT_THAT(manager_->ReadLog("a", 0, 1), StatusIs(StatusCode::kOutOfRange, HasSubstr("")));
}

TEST_F(SessionCommitTest, BeginsThatArriveDuringOneSyncShareTheNextAndTakeWhatWasAddedMeanwhile) {
  OpenMemory();
  std::vector<std::unique_ptr<Turn>> turns;
  for (int i = 0; i < 17; ++i) Create("s" + std::to_string(i));
  const int64_t commits = memory_->commits(), syncs = memory_->syncs();
  memory_->Hold(true);
  for (int i = 0; i < 17; ++i) {
    auto begun = manager_->BeginTurn(Spec("s" + std::to_string(i), {1, 2}, "r"));
    ASSERT_OK(begun);
    turns.push_back(std::move(begun->turn));
    if (i == 0) memory_->WaitUntilCommitWaits();
    turns.back()->Append(std::vector<int32_t>{3});
    EXPECT_FALSE(turns.back()->begun());
    EXPECT_EQ(turns.back()->durable_position(), 0);
  }
  memory_->Hold(false);
  for (const auto& turn : turns) EXPECT_OK(turn->AwaitBegun());
  const auto sizes = memory_->group_sizes();
  EXPECT_THAT(std::vector<size_t>(sizes.begin() + commits, sizes.end()), ElementsAre(1u, 16u));
  EXPECT_EQ(memory_->syncs() - syncs, 2);
  EXPECT_EQ(turns[0]->durable_position(), 2);
  EXPECT_EQ(turns[1]->durable_position(), 3);
  for (const auto& turn : turns) ASSERT_OK(FinishAndWait(*turn).status);
  EXPECT_THAT(*manager_->ReadLog("s16", 1, 3), ElementsAre(1, 2, 3));
}

}  // namespace
}  // namespace smt
