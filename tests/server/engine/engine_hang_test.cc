// Calls of the executor that do not come back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/base/status_details.h"
#include "server/engine/hang_watch.h"
#include "tests/server/engine/engine_fixture.h"

namespace smt {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Call = FakeControl::Call;

TEST(HangWatchTest, ACallIsLostWhenItWasSeenForAllTicks) {
  HangWatch watch;
  watch.Enter();
  for (int tick = 0; tick < HangWatch::kTicks; ++tick) {
    EXPECT_FALSE(watch.Tick());
    EXPECT_EQ(watch.stalled(), tick);
  }
  EXPECT_TRUE(watch.Tick());
  EXPECT_FALSE(watch.Tick()) << "once";
}

TEST(HangWatchTest, CallsThatComeBackAddUpToNothing) {
  HangWatch watch;
  for (int call = 0; call < 5; ++call) {
    for (int tick = 0; tick < 2 * HangWatch::kTicks; ++tick) EXPECT_FALSE(watch.Tick()) << "outside of any call";
    watch.Enter();
    for (int tick = 0; tick < HangWatch::kTicks; ++tick) EXPECT_FALSE(watch.Tick());
    watch.Leave();
    watch.Enter();
    for (int tick = 0; tick < HangWatch::kTicks; ++tick) EXPECT_FALSE(watch.Tick()) << "of another call";
    watch.Leave();
    EXPECT_FALSE(watch.Tick());
    EXPECT_EQ(watch.stalled(), 0);
  }
}

class EngineHangTest : public EngineFixture {
 protected:
  ~EngineHangTest() override { control_->EndHang(); }  // the thread that was lost comes back, and does nothing

  std::shared_ptr<RecordingSink> NewSink() { return std::make_shared<RecordingSink>(); }
  void StartWatched(FakeExecutor::Options executor, Engine::Options options = {}) {
    options.device_timeout = absl::Milliseconds(200);
    Start(executor, options);
  }
  static void ExpectDeviceFault(const FinishInfo& info) {
    EXPECT_EQ(info.reason, FinishReason::kError);
    EXPECT_EQ(info.status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(GetDetails(info.status).reason, "DEVICE_FAULT");
    EXPECT_THAT(std::string(info.status.message()), HasSubstr("has not answered for 200ms"));
  }
};

TEST_P(EngineHangTest, EveryRequestEndsAtItsPositionWhicheverCallHangs) {
  for (const Call call : {Call::kReset, Call::kLoad, Call::kSave, Call::kSubmit, Call::kPoll}) {
    SCOPED_TRACE(static_cast<int>(call));
    control_ = std::make_shared<FakeControl>();
    {
      PlainLock lock(mu_);
      faults_.clear();
    }
    engine_ = nullptr;
    token_bytes_.clear();
    StartWatched({.slots = 4, .step_time = absl::Microseconds(50)}, {.snapshot_interval = 200});
    FakeSession generating{.key = "a"};
    auto sink = NewSink();
    Submit(Turn(&generating, {1}, 1000000, sink));
    ASSERT_TRUE(sink->AwaitTokens(10));
    control_->HangIn(call);
    // New ones need a Reset, known ones a Load, some of them wait for a slot.
    std::vector<std::shared_ptr<RecordingSink>> others;
    for (int i = 0; i < 8; ++i) {
      FakeSession session{.key = "s" + std::to_string(i)};
      if (i % 2 == 0) {
        session.log = {1, 2, 3};
        session.snapshots[3] = BufferOf(FakeState::Of(session.log));
      }
      others.push_back(NewSink());
      const absl::StatusOr<RequestHandle> handle =
          engine_->Submit(Turn(&session, std::vector<int32_t>(40, 4), 1000000, others.back()));
      if (!handle.ok()) others.pop_back();
    }
    ASSERT_TRUE(control_->AwaitHang());
    const FinishInfo info = sink->Await();
    ExpectDeviceFault(info);
    EXPECT_THAT(faults(), SizeIs(1)) << "the owner hears of it first";
    EXPECT_EQ(info.position, 1 + static_cast<int64_t>(sink->ids().size()));
    for (const auto& other : others) {
      ExpectDeviceFault(other->Await());
      EXPECT_EQ(other->Await().generated, static_cast<int64_t>(other->ids().size()));
    }
    EXPECT_EQ(engine_->Submit(Make({1}, 5, NewSink())).status().code(), absl::StatusCode::kUnavailable);
    engine_->Drain();
    EXPECT_THAT(evictions(), IsEmpty());
    EXPECT_EQ(engine_->stats().running, 0);
    const std::vector<int32_t> ids = sink->ids();
    SamplingParams params;
    params.seed = 1;
    EXPECT_EQ(ids, Oracle({1}, {}, 1, params, static_cast<int64_t>(ids.size())));
    engine_ = nullptr;
    control_->EndHang();
  }
}

TEST_P(EngineHangTest, ARequestThatHasItsLastIdEndsWellThoughItsSnapshotDoesNotCome) {
  StartWatched({.slots = 2, .late_transfers = 1}, {.snapshot_interval = 4});
  const int64_t tokens = 2 + GetParam();  // the snapshot is asked for right before the step of the last one
  FakeSession session{.key = "a"};
  auto sink = NewSink();
  control_->HangIn(Call::kAwait);
  Submit(Turn(&session, {1, 2, 3}, tokens, sink));
  const FinishInfo info = sink->Await();
  EXPECT_EQ(info.reason, FinishReason::kMaxTokens);
  EXPECT_EQ(info.position, 3 + tokens);
  EXPECT_THAT(sink->ids(), SizeIs(static_cast<size_t>(tokens)));
  EXPECT_THAT(sink->snapshots(), IsEmpty());
  engine_->Drain();
  EXPECT_THAT(faults(), SizeIs(1));
}

TEST_P(EngineHangTest, WhoAskedForAStateIsAnswered) {
  StartWatched({.slots = 2});
  FakeSession first{.key = "a"}, second{.key = "b"};
  RunTurn(&first, {1, 2}, 5);
  RunTurn(&second, {1, 2}, 5);
  control_->HangIn(Call::kSave);
  std::atomic<int> answers = 0, states = 0;
  for (const char* key : {"a", "b", "nobody", "a"}) {
    engine_->SaveState(key, [&](int64_t, std::shared_ptr<const StateBuffer> state) {
      ++answers;
      if (state != nullptr) ++states;
    });
  }
  ASSERT_TRUE(control_->AwaitHang());
  engine_->Drain();
  EXPECT_EQ(answers, 4);
  EXPECT_EQ(states, 0);
  EXPECT_THAT(evictions(), IsEmpty());
}

TEST_P(EngineHangTest, AnEngineThatDrainsEndsAllTheSame) {
  StartWatched({.slots = 2});
  FakeSession session{.key = "a"};
  RunTurn(&session, {1, 2}, 5);
  auto sink = NewSink();
  Submit(Make({1}, 1000000, sink));
  ASSERT_TRUE(sink->AwaitTokens(3));
  control_->HangIn(Call::kSave);  // of the session that is idle
  engine_->Drain();
  EXPECT_EQ(sink->Await().reason, FinishReason::kDraining);
  EXPECT_THAT(evictions(), IsEmpty());
  EXPECT_THAT(faults(), SizeIs(1));
}

TEST_P(EngineHangTest, TheStallShowsWhileItLasts) {
  Engine::Options options;
  options.device_timeout = absl::Seconds(4);
  Start({.slots = 2}, options);
  control_->HangIn(Call::kPoll);
  auto sink = NewSink();
  Submit(Make({1}, 5, sink));
  ASSERT_TRUE(AwaitStats([](const EngineStats& s) { return s.stalled >= absl::Milliseconds(500); }));
  control_->EndHang();
  EXPECT_EQ(sink->Await().reason, FinishReason::kMaxTokens);
  ASSERT_TRUE(AwaitStats([](const EngineStats& s) { return s.stalled == absl::ZeroDuration(); }));
  EXPECT_THAT(faults(), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(StepsInFlight, EngineHangTest, testing::Values(1, 2));

}  // namespace
}  // namespace smt
