// Sessions between turns: residency, restoring, eviction, snapshots, forgetting.
#include <numeric>

#include "tests/server/engine/engine_fixture.h"

namespace smt {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class EngineSessionTest : public EngineFixture {};

TEST_P(EngineSessionTest, TheNextTurnFindsTheStateInItsSlot) {
  Start();
  FakeSession session{.key = "a"};
  EXPECT_FALSE(RunTurn(&session, {1, 2, 3}, 5).resident);
  for (int turn = 0; turn < 5; ++turn) {
    const FinishInfo info = RunTurn(&session, {7, 8}, 4);
    EXPECT_TRUE(info.resident);
    EXPECT_EQ(info.recomputed_tokens, 0);
  }
}

TEST_P(EngineSessionTest, TheNextTurnAfterAStopNeedsNoUndo) {
  Start();
  FakeSession session{.key = "a"};
  SamplingParams params;
  params.seed = 1;
  session.log = {3};
  const std::vector<int32_t> all = Oracle({3}, {}, 1, params, 20);
  session.log.clear();
  auto sink = std::make_shared<RecordingSink>();
  EngineRequest request = Turn(&session, {3}, 20, sink);
  request.stop_tokens = {all[9]};
  Submit(std::move(request));
  EXPECT_EQ(sink->Await().reason, FinishReason::kStopToken);
  for (int32_t id : sink->ids()) session.log.push_back(id);
  EXPECT_TRUE(RunTurn(&session, {5}, 10).resident);
}

TEST_P(EngineSessionTest, TheNextTurnAfterACancellationGoesOnFromTheLog) {
  Start({.step_time = absl::Microseconds(50)});
  FakeSession session{.key = "a"};
  for (size_t after : {0, 1, 2, 7, 20}) {
    auto sink = std::make_shared<RecordingSink>();
    const RequestHandle handle = Submit(Turn(&session, {1, 2}, 1000, sink));
    ASSERT_TRUE(sink->AwaitTokens(after));
    engine_->Cancel(handle);
    const FinishInfo info = sink->Await();
    EXPECT_EQ(info.reason, FinishReason::kCancelled);
    for (int32_t id : sink->ids()) session.log.push_back(id);
    EXPECT_EQ(info.position, static_cast<int64_t>(session.log.size()));
    EXPECT_TRUE(RunTurn(&session, {9}, 5).resident || after == 0);
  }
}

TEST_P(EngineSessionTest, APromptCutShortIsAbsorbedByTheNextTurn) {
  Start({}, {.ingest_tokens_per_step_idle = 8});
  control_->Hold();
  FakeSession session{.key = "a"};
  auto sink = std::make_shared<RecordingSink>();
  std::vector<int32_t> prompt(100);
  std::iota(prompt.begin(), prompt.end(), 0);
  for (int32_t& id : prompt) id %= 97;
  const RequestHandle handle = Submit(Turn(&session, prompt, 50, sink));
  control_->LetThrough(3);
  ASSERT_TRUE(control_->AwaitBatches(4));
  engine_->Cancel(handle);
  control_->LetAllThrough();
  EXPECT_EQ(sink->Await().position, 100);
  EXPECT_LT(sink->ingested().back(), 100);
  EXPECT_TRUE(RunTurn(&session, {1}, 10).resident);
}

TEST_P(EngineSessionTest, TheLeastRecentlyUsedIdleSessionLeavesItsSlot) {
  Start({.slots = 2});
  FakeSession a{.key = "a"}, b{.key = "b"}, c{.key = "c"};
  RunTurn(&a, {1}, 3);
  RunTurn(&b, {2}, 3);
  RunTurn(&a, {1}, 3);
  RunTurn(&c, {3}, 3);
  engine_->Drain();  // a and c, besides b before
  const std::vector<Eviction> left = evictions();
  ASSERT_THAT(left, SizeIs(3));
  EXPECT_EQ(left[0].key, "b");
  // The state may lack the id drawn last, and never has more than the log.
  EXPECT_GE(left[0].position, static_cast<int64_t>(b.log.size()) - 1);
  EXPECT_LE(left[0].position, static_cast<int64_t>(b.log.size()));
  for (const Eviction& eviction : left) {
    const FakeSession& session = eviction.key == "a" ? a : eviction.key == "b" ? b : c;
    const FakeState state = StateIn(*eviction.state);
    EXPECT_EQ(state.position, eviction.position);
    EXPECT_EQ(state.hash, FakeState::Of(std::span(session.log).first(eviction.position)).hash);
  }
}

TEST_P(EngineSessionTest, ARestoredSessionGoesOnWhereItsLogEnds) {
  Start({.slots = 1, .late_transfers = 0.5});
  FakeSession a{.key = "a"}, b{.key = "b"};
  for (int turn = 0; turn < 10; ++turn) {
    for (FakeSession* session : {&a, &b}) {
      const FinishInfo info = RunTurn(session, {turn}, 5);
      EXPECT_FALSE(info.resident);
      EXPECT_LE(info.recomputed_tokens, 1) << "the evicted state was not used";
      // The owner stores what was evicted.
      ASSERT_TRUE(AwaitStats([](const EngineStats& s) { return s.slots_active == 0; }));
      for (const Eviction& eviction : evictions()) {
        (eviction.key == "a" ? a : b).snapshots[eviction.position] = eviction.state;
      }
    }
  }
}

TEST_P(EngineSessionTest, WithoutASnapshotTheWholeLogIsAbsorbedAgain) {
  Start({.slots = 1});
  FakeSession a{.key = "a"}, b{.key = "b"};
  RunTurn(&a, {1, 2, 3}, 10);
  RunTurn(&b, {1}, 1);
  EXPECT_EQ(RunTurn(&a, {4}, 10).recomputed_tokens, 13);
}

TEST_P(EngineSessionTest, RunningSessionsAreNeverEvicted) {
  Start({.slots = 2, .step_time = absl::Microseconds(20)});
  FakeSession a{.key = "a"}, b{.key = "b"};
  auto first = std::make_shared<RecordingSink>(), second = std::make_shared<RecordingSink>();
  Submit(Turn(&a, {1}, 200, first));
  Submit(Turn(&b, {2}, 200, second));
  auto third = std::make_shared<RecordingSink>();
  Submit(Make({3}, 1, third));
  third->Await();
  EXPECT_TRUE(first->finished() || second->finished()) << "the third request had to wait";
  first->Await(), second->Await();
}

TEST_P(EngineSessionTest, SnapshotsComeEverySoManyIdsAndHoldExactlyTheirPosition) {
  Start({.late_transfers = 0.3}, {.snapshot_interval = 16});
  FakeSession session{.key = "a"};
  std::vector<int32_t> prompt(40, 5);
  RunTurn(&session, prompt, 100);
  RunTurn(&session, {6}, 30);
  ASSERT_FALSE(session.snapshots.empty());
  int64_t previous = 0;
  for (const auto& [position, buffer] : session.snapshots) {
    EXPECT_LE(position - previous, 16 + 2);
    previous = position;
    const FakeState state = StateIn(*buffer);
    EXPECT_EQ(state.position, position);
    EXPECT_EQ(state.hash, FakeState::Of(std::span(session.log).first(position)).hash);
  }
  EXPECT_GT(previous, static_cast<int64_t>(session.log.size()) - 20);
}

TEST_P(EngineSessionTest, EphemeralRequestsLeaveNothing) {
  Start({}, {.snapshot_interval = 4});
  auto sink = std::make_shared<RecordingSink>();
  Submit(Make({1}, 50, sink));
  sink->Await();
  EXPECT_THAT(sink->snapshots(), IsEmpty());
  ASSERT_TRUE(AwaitStats([](const EngineStats& s) { return s.slots_free == 4; }));
  engine_->Drain();
  EXPECT_THAT(evictions(), IsEmpty());
}

TEST_P(EngineSessionTest, DiscardForgetsIdleAndRunningSessions) {
  Start({.step_time = absl::Microseconds(50)});
  FakeSession idle{.key = "idle"}, running{.key = "running"};
  RunTurn(&idle, {1}, 3);
  ASSERT_TRUE(AwaitStats([](const EngineStats& s) { return s.slots_idle == 1; }));
  auto sink = std::make_shared<RecordingSink>();
  Submit(Turn(&running, {1}, 50, sink));
  ASSERT_TRUE(sink->AwaitTokens(1));
  engine_->Discard("idle");
  engine_->Discard("running");
  engine_->Discard("unknown");
  EXPECT_EQ(sink->Await().generated, 50);
  ASSERT_TRUE(AwaitStats([](const EngineStats& s) { return s.slots_free == 4; }));
  engine_->Drain();
  EXPECT_THAT(evictions(), IsEmpty());
}

TEST_P(EngineSessionTest, AStaleResidentStateIsNotUsed) {
  Start();
  FakeSession session{.key = "a"};
  RunTurn(&session, {1, 2, 3}, 8);
  session.log.resize(6);  // rolled back without the engine knowing
  const FinishInfo info = RunTurn(&session, {4}, 8);
  EXPECT_FALSE(info.resident);
  EXPECT_EQ(info.recomputed_tokens, 6);
}

TEST_P(EngineSessionTest, AFailedRestoreEndsOnlyItsRequest) {
  Start();
  const auto fail = [&](std::function<absl::StatusOr<RestoredState>()> restore) {
    auto sink = std::make_shared<RecordingSink>();
    EngineRequest request = Make({1}, 5, sink, "a");
    request.head = 4;
    request.restore = std::move(restore);
    Submit(std::move(request));
    const FinishInfo info = sink->Await();
    EXPECT_EQ(info.reason, FinishReason::kError);
    EXPECT_EQ(info.position, 5);
    return info.status;
  };
  EXPECT_EQ(fail([] { return absl::DataLossError("the log is damaged at 3"); }).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(fail(nullptr).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(fail([]() -> absl::StatusOr<RestoredState> {
                            return RestoredState{nullptr, 0, {1, 2}, "log", ""};
                          }).message()),
              HasSubstr("log ends at 4"));
  EXPECT_EQ(fail([]() -> absl::StatusOr<RestoredState> {
              return RestoredState{std::make_shared<StateBuffer>(3), 4, {}, "store", ""};
            }).code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(fail([]() -> absl::StatusOr<RestoredState> {
              FakeState state;
              state.Absorb(1);
              return RestoredState{BufferOf(state), 3, {5}, "store", ""};
            }).code(),
            absl::StatusCode::kDataLoss);
  ASSERT_TRUE(AwaitStats([](const EngineStats& s) { return s.slots_free == 4; }));
  FakeSession session{.key = "a"};
  RunTurn(&session, {1}, 5);
}

INSTANTIATE_TEST_SUITE_P(StepsInFlight, EngineSessionTest, testing::Values(1, 2));

}  // namespace
}  // namespace smt
