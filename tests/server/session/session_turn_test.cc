// One writer at a time, the log, durability, group commit, snapshots, requests.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "server/base/status_details.h"
#include "tests/server/session/session_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::Contains;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

class SessionTurnTest : public SessionTest {};

TEST_F(SessionTurnTest, ATurnGoesOnAfterARestart) {
  OpenRocks();
  Create("a");
  {
    auto turn = Begin(Spec("a", {1, 2, 3}));
    EXPECT_EQ(turn->session().position, 0);
    EXPECT_THAT(turn->recent(), IsEmpty());
    EXPECT_EQ(turn->durable_position(), 3);
    EXPECT_TRUE(manager_->Get("a")->active);
    turn->Append(Ids(100, 10));
    const auto finished = FinishAndWait(*turn);
    ASSERT_OK(finished.status);
    EXPECT_EQ(finished.durable, 103);
    EXPECT_FALSE(manager_->Get("a")->active);
  }
  OpenRocks();
  EXPECT_EQ(manager_->Get("a")->position, 103);
  EXPECT_THAT(*manager_->ReadLog("a", 1, 5), ElementsAre(1, 2, 3, 10, 11));
  auto turn = Begin(Spec("a", {7}));
  EXPECT_EQ(turn->session().position, 103);
  EXPECT_EQ(std::vector<int32_t>(turn->recent().begin(), turn->recent().end()), Ids(8, 102));
  const auto restored = turn->Restore();
  ASSERT_OK(restored);
  EXPECT_EQ(restored->tier, "log");
  EXPECT_THAT(restored->tail, SizeIs(103));
}

TEST_F(SessionTurnTest, ASecondWriterIsRefusedOrWaits) {
  OpenMemory();
  Create("a");
  auto first = Begin(Spec("a", {1}));
  EXPECT_THAT(manager_->BeginTurn(Spec("a", {2})), StatusIs(StatusCode::kAborted, HasSubstr("another request")));
  EXPECT_THAT(manager_->Delete("a", std::nullopt), StatusIs(StatusCode::kAborted, HasSubstr("another request")));
  TurnSpec impatient = Spec("a", {2});
  impatient.wait = true;
  impatient.deadline = absl::Now() + absl::Milliseconds(20);
  EXPECT_THAT(manager_->BeginTurn(impatient), StatusIs(StatusCode::kDeadlineExceeded, HasSubstr("'a'")));
  std::atomic<bool> begun{false};
  std::thread waiter([&] {
    TurnSpec patient = Spec("a", {2});
    patient.wait = true;
    patient.deadline = absl::Now() + absl::Seconds(30);
    auto second = Begin(patient);
    begun = true;
    EXPECT_EQ(second->session().position, 2);
    EXPECT_OK(FinishAndWait(*second).status);
  });
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_FALSE(begun);
  first->Append(std::vector<int32_t>{5});
  ASSERT_OK(FinishAndWait(*first).status);
  waiter.join();
  EXPECT_THAT(*manager_->ReadLog("a", 1, 3), ElementsAre(1, 5, 2));
}

TEST_F(SessionTurnTest, ConcurrentWritersOfManySessionsKeepEveryLogInOrder) {
  OpenRocks();
  constexpr int kSessions = 3, kThreads = 6, kTurns = 15;
  for (int s = 0; s < kSessions; ++s) Create("s" + std::to_string(s));
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kTurns; ++i) {
        TurnSpec spec = Spec("s" + std::to_string((t + i) % kSessions), {1000 + t, i});
        spec.wait = true;
        spec.durability = static_cast<Durability>(i % 3);
        auto turn = Begin(spec);
        for (int n = 0; n < 70; ++n) turn->Append(std::vector<int32_t>{t});
        EXPECT_OK(FinishAndWait(*turn).status);
      }
    });
  }
  for (auto& t : threads) t.join();
  int64_t total = 0;
  OpenRocks();
  for (int s = 0; s < kSessions; ++s) {
    const std::string id = "s" + std::to_string(s);
    const int64_t end = manager_->Get(id)->position;
    total += end;
    const auto log = *manager_->ReadLog(id, 1, end);
    for (size_t at = 0; at < log.size(); at += 72) {  // turns are never mixed
      const int32_t t = log[at] - 1000;
      for (size_t n = 2; n < 72; ++n) ASSERT_EQ(log[at + n], t);
    }
  }
  EXPECT_EQ(total, kThreads * kTurns * 72);
}

TEST_F(SessionTurnTest, AHeadThatMovedIsAbortedNamingBothValues) {
  OpenMemory();
  Create("a");
  const std::string etag = manager_->Get("a")->etag;
  Say("a", {1, 2}, {3});
  TurnSpec late = Spec("a", {9});
  late.expected_position = 0;
  const auto refused = manager_->BeginTurn(late);
  EXPECT_THAT(refused, StatusIs(StatusCode::kAborted, AllOf(HasSubstr("position 3"), HasSubstr("expects 0"))));
  EXPECT_EQ(GetDetails(refused.status()).reason, "POSITION_MISMATCH");
  late = Spec("a", {9});
  late.etag = etag;
  EXPECT_THAT(manager_->BeginTurn(late), StatusIs(StatusCode::kAborted, HasSubstr(etag)));
  late.expected_position = 3;
  late.etag = manager_->Get("a")->etag;
  EXPECT_OK(manager_->BeginTurn(late));
}

TEST_F(SessionTurnTest, ARequestIdSeenBeforeIsReplayedNotRunAgain) {
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

TEST_F(SessionTurnTest, AWaitingRetryGetsTheReplayWhenTheFirstEnds) {
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

TEST_F(SessionTurnTest, ExpiredRequestsAreSweptAndRunningOnesAreNot) {
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

TEST_F(SessionTurnTest, ATurnDroppedUnfinishedIsInterruptedAtTheEndOfItsLog) {
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

TEST_F(SessionTurnTest, AnInterruptedRequestGoesOnWhereItsLogEnds) {
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

TEST_F(SessionTurnTest, ASessionThatWentOnSupersedesWhatWasInterrupted) {
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

TEST_F(SessionTurnTest, AResumedTurnThatRanWhenTheServerDiedIsFoundInterruptedAgain) {
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

TEST_F(SessionTurnTest, DoneMayDestroyTheTurnAndTheSessionIsFreeByThen) {
  OpenRocks();
  Create("a");
  for (int i = 0; i < 50; ++i) {
    auto turn = Begin(Spec("a", {i}));
    Turn* raw = turn.get();
    absl::Notification done;
    raw->Finish(
        RequestState::kFinished, "",
        [&done, owned = std::make_shared<std::unique_ptr<Turn>>(std::move(turn))](const absl::Status& status, int64_t) {
          EXPECT_OK(status);
          owned->reset();
          done.Notify();
        });
    done.WaitForNotification();
    EXPECT_FALSE(manager_->Get("a")->active);
  }
}

TEST_F(SessionTurnTest, FinishesThatArriveDuringOneSyncFormTheNextGroup) {
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

TEST_F(SessionTurnTest, DurabilityDecidesWhatIsSynced) {
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

TEST_F(SessionTurnTest, LogWritesAreBatchedBySixtyFourIds) {
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

TEST_F(SessionTurnTest, RestoreTakesTheNewestSnapshotAndTheLogAfterIt) {
  OpenRocks();
  Create("a");
  {
    auto turn = Begin(Spec("a", Ids(10)));
    turn->Append(Ids(30, 10));
    for (const int64_t at : {10, 20, 30}) {
      turn->Snapshot(at, State(at));
      ASSERT_OK(manager_->Flush());
    }
    ASSERT_OK(FinishAndWait(*turn).status);
  }
  for (int restart = 0; restart < 2; ++restart) {
    auto turn = Begin(Spec("a", {}));
    const auto restored = turn->Restore();
    ASSERT_OK(restored);
    EXPECT_EQ(restored->position, 30);
    EXPECT_EQ(PositionIn(*restored->state), 30);
    EXPECT_EQ(restored->tail, Ids(10, 30));
    EXPECT_EQ(restored->tier, "store");
    EXPECT_EQ(restored->numerics_id, "cpu/test");
    EXPECT_FALSE(restored->foreign_numerics);
    ASSERT_OK(FinishAndWait(*turn).status);
    turn.reset();
    OpenRocks();
  }
  options_.numerics_id = "gpu/test";
  OpenRocks();
  SessionInfo info;
  const auto read = manager_->ReadState("a", &info);
  ASSERT_OK(read);
  EXPECT_EQ(info.position, 40);
  EXPECT_EQ(read->position, 30);
  EXPECT_TRUE(read->foreign_numerics);
  manager_.reset();
  EXPECT_EQ(CountRecords(dir_.path(), "snapshots"), 2);
}

TEST_F(SessionTurnTest, AnEvictedStateIsKeptAndAnImpossibleOneIsNot) {
  OpenRocks();
  Create("a");
  Say("a", Ids(5), Ids(5, 5));
  const std::string key = manager_->Get("a")->key;
  manager_->SaveEvicted(key, 11, State(11));  // past the log
  manager_->SaveEvicted("not a key", 5, State(5));
  ASSERT_OK(manager_->Flush());
  EXPECT_EQ(manager_->ReadState("a", nullptr)->tier, "log");
  manager_->SaveEvicted(key, 10, State(10));
  const auto at_once = *manager_->ReadState("a", nullptr);
  ASSERT_OK(manager_->Flush());
  const auto later = *manager_->ReadState("a", nullptr);
  EXPECT_EQ(later.tier, "store");
  EXPECT_EQ(later.position, 10);
  EXPECT_THAT(later.tail, IsEmpty());
  EXPECT_EQ(PositionIn(*later.state), 10);
  EXPECT_THAT(at_once.tier, testing::AnyOf("log", "host", "store"));
}

TEST_F(SessionTurnTest, SnapshotsBeyondTheMemoryBoundAreDropped) {
  options_.max_pending_snapshot_bytes = kTestStateBytes;
  OpenMemory();
  Create("a");
  Say("a", Ids(5), {});
  const std::string key = manager_->Get("a")->key;
  memory_->Hold(true);
  auto turn_thread = std::thread([&] { Begin(Spec("a", {1})); });
  memory_->WaitUntilCommitWaits();
  for (int i = 1; i <= 5; ++i) manager_->SaveEvicted(key, i, State(i));
  EXPECT_EQ(manager_->counters().snapshots_dropped, 4);
  memory_->Hold(false);
  turn_thread.join();
}

TEST_F(SessionTurnTest, AFailedAppendFailsTheTurnAndTheSessionGoesOnFromItsLog) {
  OpenMemory();
  Create("a");
  auto turn = Begin(Spec("a", {1, 2}, "r"));
  memory_->FailCommits(1, absl::ResourceExhaustedError("no space left"));
  turn->Append(Ids(64));
  while (turn->status().ok()) absl::SleepFor(absl::Microseconds(100));
  turn->Append(Ids(3));
  EXPECT_THAT(FinishAndWait(*turn).status, StatusIs(StatusCode::kResourceExhausted, HasSubstr("no space left")));
  turn.reset();
  EXPECT_EQ(manager_->Get("a")->position, 2);
  EXPECT_EQ(manager_->GetRequest("a", "r")->state, RequestState::kInterrupted);
  Say("a", {3}, {4});
  EXPECT_THAT(*manager_->ReadLog("a", 1, 4), ElementsAre(1, 2, 3, 4));
}

TEST_F(SessionTurnTest, BeginsThatArriveDuringOneSyncShareTheNextAndTakeWhatWasAddedMeanwhile) {
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

// All that a turn and those beside it hand over while its begin is on its way, which then fails: nothing of it is
// written, although the store would take it. With and without a prompt, whose absence the log does not show.
TEST_F(SessionTurnTest, OfATurnThatNeverBeganNothingIsWritten) {
  for (const bool prompted : {true, false}) {
    for (const bool finishes_before : {true, false}) {
      OpenMemory();
      Create("a");
      Create("other");
      Say("a", {1}, {2});
      const std::string etag = manager_->Get("a")->etag;
      memory_->Hold(true);
      std::thread first([&] { Say("other", {1}, {}); });
      memory_->WaitUntilCommitWaits();
      TurnSpec spec = Spec("a", prompted ? std::vector<int32_t>{3} : std::vector<int32_t>{}, "r", Durability::kToken);
      auto begun = manager_->BeginTurn(std::move(spec));
      ASSERT_OK(begun);
      const int64_t end = prompted ? 4 : 3;
      begun->turn->Append(std::vector<int32_t>{9});
      begun->turn->Snapshot(end, State(end));
      absl::Notification done;
      const auto finish = [&] {
        begun->turn->Finish(RequestState::kFinished, "", [&](const absl::Status& status, int64_t) {
          EXPECT_THAT(status, StatusIs(StatusCode::kResourceExhausted, HasSubstr("no space left")));
          done.Notify();
        });
      };
      if (finishes_before) finish();
      absl::Status updated;
      std::thread update([&] {
        SessionManager::Update update;
        update.labels = std::map<std::string, std::string>{{"k", "v"}};
        updated = manager_->UpdateSession("a", update).status();
      });
      absl::SleepFor(absl::Milliseconds(20));  // most of it is queued by then; the outcome is the same
      memory_->FailWrite(absl::ResourceExhaustedError("no space left"),
                         [](const SessionWrite& write, bool) { return write.key.id == "a"; });
      memory_->Hold(false);
      EXPECT_THAT(begun->turn->AwaitBegun(), StatusIs(StatusCode::kResourceExhausted, HasSubstr("no space left")));
      EXPECT_FALSE(begun->turn->begun());
      if (!finishes_before) finish();
      done.WaitForNotification();
      update.join();
      first.join();
      ASSERT_OK(manager_->Flush());
      EXPECT_THAT(manager_->GetRequest("a", "r"), StatusIs(StatusCode::kNotFound, HasSubstr("")));
      EXPECT_EQ(manager_->Get("a")->position, 2);
      if (!updated.ok()) {
        EXPECT_EQ(manager_->Get("a")->etag, etag);
      }
      Say("a", {5, 6}, {7}, "r");  // the state at `end` is not of these
      EXPECT_THAT(*manager_->ReadLog("a", 1, 5), ElementsAre(1, 2, 5, 6, 7));
      EXPECT_EQ(manager_->ReadState("a", nullptr)->tier, "log");
      absl::MutexLock lock(&removed_mu_);
      EXPECT_THAT(removed_, Contains(manager_->Get("a")->key)) << "its slot may hold what the log does not";
      removed_.clear();
    }
  }
}

TEST_F(SessionTurnTest, AFailedBeginOrFinishChangesNothing) {
  OpenMemory();
  Create("a");
  memory_->FailCommits(1, absl::UnavailableError("store away"));
  {
    auto begun = manager_->BeginTurn(Spec("a", {1}));
    ASSERT_OK(begun);
    EXPECT_THAT(begun->turn->AwaitBegun(), StatusIs(StatusCode::kUnavailable, HasSubstr("away")));
  }
  ASSERT_OK(manager_->Flush());
  EXPECT_EQ(manager_->Get("a")->position, 0);
  auto turn = Begin(Spec("a", {1}));
  turn->Append(std::vector<int32_t>{2});
  memory_->FailCommits(1, absl::UnavailableError("store away"));
  EXPECT_THAT(FinishAndWait(*turn).status, StatusIs(StatusCode::kUnavailable, HasSubstr("away")));
  EXPECT_EQ(manager_->Get("a")->position, 1);
  memory_->FailCommits(1, absl::UnavailableError("store away"));
  EXPECT_THAT(manager_->Create("b", absl::InfiniteDuration(), {}),
              StatusIs(StatusCode::kUnavailable, HasSubstr("away")));
  EXPECT_OK(manager_->Create("b", absl::InfiniteDuration(), {}));
  memory_->FailCommits(1, absl::UnavailableError("store away"));
  EXPECT_THAT(manager_->Delete("b", std::nullopt), StatusIs(StatusCode::kUnavailable, HasSubstr("away")));
  EXPECT_OK(manager_->Delete("b", std::nullopt));
}

TEST_F(SessionTurnTest, AnotherModelsSessionIsRefusedNamingBoth) {
  OpenRocks();
  Create("a");
  Say("a", {1}, {2}, "r");
  options_.model_fingerprint = "model-2";
  OpenRocks();
  EXPECT_THAT(manager_->BeginTurn(Spec("a", {3})),
              StatusIs(StatusCode::kFailedPrecondition, AllOf(HasSubstr("model-1"), HasSubstr("model-2"))));
  EXPECT_THAT(manager_->ReadState("a", nullptr), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("model-1")));
  EXPECT_EQ(manager_->Get("a")->position, 2);
  EXPECT_OK(manager_->Delete("a", std::nullopt));
}

// A child writes turns and is killed in the middle of one; what it acknowledged is there.
TEST_F(SessionTurnTest, EveryAcknowledgedFinishSurvivesAKilledServer) {
  for (int round = 0; round < 3; ++round) {
    int fd[2];
    ASSERT_EQ(::pipe(fd), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      OpenRocks();
      for (const char* id : {"a", "b"}) {
        if (round == 0 && !manager_->Create(id, absl::InfiniteDuration(), {}).ok()) ::_exit(1);
      }
      for (int i = 0;; ++i) {
        const std::string id = i % 2 ? "a" : "b";
        auto turn = Begin(Spec(id, {i}, "r" + std::to_string(round) + "-" + std::to_string(i)));
        if (turn == nullptr) ::_exit(1);
        for (int n = 0; n < 100; ++n) turn->Append(std::vector<int32_t>{n});
        if (!FinishAndWait(*turn).status.ok()) ::_exit(1);
        const int64_t said[2] = {i % 2, turn->session().position + 101};
        if (::write(fd[1], said, sizeof(said)) != sizeof(said)) ::_exit(1);
      }
    }
    ::close(fd[1]);
    int64_t said[2], acknowledged[2] = {0, 0};
    for (int n = 0; n < 30 + round; ++n) {
      ASSERT_EQ(::read(fd[0], said, sizeof(said)), static_cast<ssize_t>(sizeof(said)));
      acknowledged[said[0]] = said[1];
    }
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status));
    while (::read(fd[0], said, sizeof(said)) == sizeof(said)) acknowledged[said[0]] = said[1];
    ::close(fd[0]);

    OpenRocks();
    for (const int which : {0, 1}) {
      const std::string id = which ? "a" : "b";
      const auto info = manager_->Get(id);
      ASSERT_OK(info);
      EXPECT_GE(info->position, acknowledged[which]);
      EXPECT_LE(info->position, acknowledged[which] + 101);
      EXPECT_EQ(manager_->ReadLog(id, 1, info->position)->size(), static_cast<size_t>(info->position));
      Say(id, {-1}, {-2});  // goes on
    }
    manager_.reset();
  }
}

TEST_F(SessionTurnTest, ATurnThatRanWhenTheServerDiedIsFoundInterrupted) {
  const pid_t child = ::fork();
  if (child == 0) {
    OpenRocks();
    if (!manager_->Create("a", absl::InfiniteDuration(), {}).ok()) ::_exit(1);
    auto turn = Begin(Spec("a", {1, 2}, "r"));
    turn->Append(Ids(64));
    const bool read = manager_->ReadLog("a", 3, 66).ok();
    turn->Append(Ids(3));  // in memory only
    ::_exit(read ? 42 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_EQ(WEXITSTATUS(status), 42);
  OpenRocks();
  EXPECT_EQ((*manager_->List(10, "")).sessions.at(0).position, 66);
  const auto record = manager_->GetRequest("a", "r");
  ASSERT_OK(record);
  EXPECT_EQ(record->state, RequestState::kInterrupted);
  EXPECT_EQ(record->end_position, 66);
  EXPECT_EQ(manager_->Get("a")->position, 66);
  const auto again = manager_->BeginTurn(Spec("a", {1, 2}, "r"));
  ASSERT_OK(again);
  EXPECT_EQ(again->replay.value().state, RequestState::kInterrupted);
  Say("a", {5}, {6});
  EXPECT_EQ(manager_->Get("a")->position, 68);
}

}  // namespace
}  // namespace smt
