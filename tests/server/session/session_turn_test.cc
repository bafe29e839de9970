// Turns: one writer at a time, and what a turn that cannot begin, append or finish leaves behind.
#include <atomic>
#include <thread>

#include "server/base/status_details.h"
#include "tests/server/session/session_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::Contains;
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

}  // namespace
}  // namespace smt
