// Ends that nobody planned: cancellation, deadlines, faults, draining.
#include <thread>

#include "absl/synchronization/notification.h"
#include "server/base/status_details.h"
#include "tests/server/engine/engine_fixture.h"

namespace smt {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

class EngineEndingTest : public EngineFixture {
 protected:
  std::shared_ptr<RecordingSink> NewSink() { return std::make_shared<RecordingSink>(); }

  // A request that is being restored until the test lets it.
  EngineRequest Restoring(std::shared_ptr<GenerationSink> sink, std::shared_ptr<std::atomic<bool>> go) {
    EngineRequest request = Make({2}, 5, std::move(sink), "restoring");
    request.head = 1;
    request.restore = [go]() -> absl::StatusOr<RestoredState> {
      while (!go->load()) absl::SleepFor(absl::Milliseconds(1));
      return RestoredState{nullptr, 0, {1}, "log", ""};
    };
    return request;
  }
};

TEST_P(EngineEndingTest, CancelWorksWhileWaitingRestoringIngestingAndGenerating) {
  Start({.slots = 3}, {.ingest_tokens_per_step = 4, .ingest_tokens_per_step_idle = 4});
  control_->Hold();
  auto go = std::make_shared<std::atomic<bool>>(false);
  auto generating = NewSink(), ingesting = NewSink(), restoring = NewSink(), waiting = NewSink();
  const RequestHandle a = Submit(Make({1}, 1000, generating));
  control_->LetThrough(3);
  ASSERT_TRUE(generating->AwaitTokens(2));
  const RequestHandle b = Submit(Make(std::vector<int32_t>(500, 2), 5, ingesting));
  const RequestHandle c = Submit(Restoring(restoring, go));
  control_->LetThrough(4);
  ASSERT_TRUE(ingesting->AwaitStarted());
  ASSERT_TRUE(AwaitStats([](const EngineStats& s) { return s.slots_active == 3; }));
  const RequestHandle d = Submit(Make({1}, 5, waiting));
  engine_->Cancel(d);
  engine_->Cancel(c);
  engine_->Cancel(b, FinishReason::kCancelled);
  engine_->Cancel(a);
  engine_->Cancel(12345);
  control_->LetAllThrough();
  EXPECT_EQ(waiting->Await().reason, FinishReason::kCancelled);
  EXPECT_EQ(restoring->Await().reason, FinishReason::kCancelled);
  EXPECT_EQ(ingesting->Await().reason, FinishReason::kCancelled);
  const FinishInfo info = generating->Await();
  EXPECT_EQ(info.reason, FinishReason::kCancelled);
  EXPECT_EQ(info.position, 1 + static_cast<int64_t>(generating->ids().size()));
  EXPECT_LT(info.generated, 1000);
  EXPECT_EQ(restoring->Await().position, 2);
  go->store(true);
  ASSERT_TRUE(AwaitStats([](const EngineStats& s) { return s.slots_free == 3; }));
}

TEST_P(EngineEndingTest, ADeadlineEndsTheRequestWhereverItIs) {
  Start({.slots = 2, .step_time = absl::Microseconds(100)});
  auto go = std::make_shared<std::atomic<bool>>(false);
  auto generating = NewSink(), restoring = NewSink(), waiting = NewSink();
  const absl::Time deadline = absl::Now() + absl::Milliseconds(60);
  EngineRequest a = Make({1}, 1000000, generating), b = Restoring(restoring, go), c = Make({1}, 5, waiting);
  a.deadline = b.deadline = c.deadline = deadline;
  Submit(std::move(a));
  Submit(std::move(b));
  Submit(std::move(c));
  for (const auto& sink : {generating, restoring, waiting}) {
    EXPECT_EQ(sink->Await().reason, FinishReason::kDeadlineExceeded);
    EXPECT_GE(absl::Now(), deadline);
  }
  EXPECT_LT(absl::Now(), deadline + absl::Seconds(5));
  EXPECT_GT(generating->ids().size(), 3u);
  EXPECT_THAT(waiting->ids(), IsEmpty());
  go->store(true);
}

TEST_P(EngineEndingTest, MaxDurationCountsFromTheStartOfTheGeneration) {
  Start({.slots = 1, .step_time = absl::Microseconds(100)});
  auto first = NewSink(), second = NewSink();
  EngineRequest a = Make({1}, 1000000, first), b = Make({1}, 1000000, second);
  a.max_duration = b.max_duration = absl::Milliseconds(40);
  const absl::Time begin = absl::Now();
  Submit(std::move(a));
  Submit(std::move(b));
  EXPECT_EQ(first->Await().reason, FinishReason::kMaxDuration);
  const FinishInfo info = second->Await();
  EXPECT_EQ(info.reason, FinishReason::kMaxDuration);
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(80));
  EXPECT_GE(info.queue_time, absl::Milliseconds(20));  // the first one held the only slot
  EXPECT_GT(info.generated, 0);
}

TEST_P(EngineEndingTest, ADurationThatHasPassedEndsTheRequestOnceItIsWhereItHadBeen) {
  Start();
  auto sink = NewSink();
  EngineRequest r = Make({1, 2, 3}, 100'000, sink);
  r.max_duration = absl::ZeroDuration();
  r.max_duration_from = 20;
  Submit(std::move(r));
  const FinishInfo info = sink->Await();
  EXPECT_EQ(info.reason, FinishReason::kMaxDuration);
  EXPECT_GE(info.position, 20);
  EXPECT_LT(info.position, 100'000);
}

TEST_P(EngineEndingTest, APastDeadlineEndsTheRequestBeforeItRuns) {
  Start();
  auto sink = NewSink();
  EngineRequest request = Make({1}, 5, sink);
  request.deadline = absl::Now() - absl::Seconds(1);
  Submit(std::move(request));
  EXPECT_EQ(sink->Await().reason, FinishReason::kDeadlineExceeded);
  EXPECT_THAT(control_->batches(), IsEmpty());
}

TEST_P(EngineEndingTest, AFaultEndsEveryRequestAndRefusesLaterOnes) {
  for (const auto& [at_submit, by_throwing] :
       {std::pair(true, false), std::pair(true, true), std::pair(false, false), std::pair(false, true)}) {
    control_ = std::make_shared<FakeControl>();
    {
      PlainLock lock(mu_);
      faults_.clear();
    }
    engine_ = nullptr;
    token_bytes_.clear();
    Start({.slots = 3, .step_time = absl::Microseconds(50)}, {.snapshot_interval = 4});
    auto go = std::make_shared<std::atomic<bool>>(false);
    FakeSession session{.key = "a"};
    auto generating = NewSink(), restoring = NewSink(), other = NewSink(), waiting = NewSink();
    Submit(Restoring(restoring, go));
    Submit(Turn(&session, {1}, 1000000, generating));
    Submit(Make({1}, 1000000, other));
    ASSERT_TRUE(generating->AwaitTokens(10));
    Submit(Make({1}, 5, waiting));
    EXPECT_TRUE(engine_->status().ok());
    at_submit ? control_->FailNextSubmit(by_throwing) : control_->FailNextPoll(by_throwing);
    for (const auto& sink : {generating, restoring, other, waiting}) {
      const FinishInfo info = sink->Await();
      EXPECT_EQ(info.reason, FinishReason::kError);
      EXPECT_EQ(info.status.code(), absl::StatusCode::kUnavailable);
      EXPECT_THAT(std::string(info.status.message()), HasSubstr("injected fault"));
      EXPECT_EQ(GetDetails(info.status).reason, "DEVICE_FAULT");
      EXPECT_THAT(faults(), SizeIs(1)) << "the owner hears of it first";
    }
    EXPECT_EQ(generating->Await().position, 1 + static_cast<int64_t>(generating->ids().size()));
    EXPECT_EQ(restoring->Await().position, 2);
    // What was saved is a state of ids that were announced, so nothing of the step that failed.
    std::vector<int32_t> log = generating->ids();
    log.insert(log.begin(), 1);
    EXPECT_THAT(generating->snapshots(), Not(IsEmpty()));
    for (const auto& [position, state] : generating->snapshots()) {
      ASSERT_LE(position, generating->Await().position);
      EXPECT_EQ(StateIn(*state).hash, FakeState::HashOf(std::span(log).first(static_cast<size_t>(position))));
    }
    EXPECT_EQ(engine_->status().code(), absl::StatusCode::kUnavailable);
    const absl::Status refused = engine_->Submit(Make({1}, 5, NewSink())).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(refused.message()), HasSubstr("injected fault"));
    go->store(true);
    engine_->Drain();
    EXPECT_THAT(faults(), SizeIs(1));
    EXPECT_THAT(evictions(), IsEmpty());
  }
}

TEST_P(EngineEndingTest, AFaultWhileAStateIsLoadedBlamesTheDeviceAndNotTheSession) {
  Start({.slots = 2});
  FakeSession session{.key = "a", .log = {1, 2, 3}};
  session.snapshots[3] = BufferOf(FakeState::Of(session.log));
  auto loading = NewSink(), other = NewSink();
  Submit(Make({1}, 1000000, other));
  ASSERT_TRUE(other->AwaitTokens(1));
  control_->FailNextLoad(absl::InternalError("injected fault at a load"));
  Submit(Turn(&session, {4}, 5, loading));
  for (const auto& sink : {loading, other}) {
    EXPECT_EQ(sink->Await().status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(sink->Await().status.message()), HasSubstr("injected fault"));
  }
  EXPECT_EQ(loading->Await().position, 4);
  EXPECT_THAT(faults(), SizeIs(1));
}

TEST_P(EngineEndingTest, AStateThatTheExecutorRefusesEndsItsRequestAlone) {
  Start({.slots = 2});
  FakeSession refused{.key = "a", .log = {1, 2, 3}}, other{.key = "b"};
  refused.snapshots[3] = BufferOf(FakeState::Of(refused.log));
  control_->FailNextLoad(absl::InvalidArgumentError("token id is 4097"));
  auto sink = NewSink();
  Submit(Turn(&refused, {4}, 5, sink));
  EXPECT_EQ(sink->Await().status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(sink->Await().status.message()), HasSubstr("token id is 4097"));
  RunTurn(&other, {1, 2}, 5);
  EXPECT_THAT(faults(), IsEmpty());
}

TEST_P(EngineEndingTest, DrainEndsRequestsAndSavesEverySession) {
  Start({.slots = 4, .step_time = absl::Microseconds(50)});
  auto go = std::make_shared<std::atomic<bool>>(true);
  FakeSession idle{.key = "idle"}, running{.key = "running"};
  RunTurn(&idle, {1, 2}, 5);
  auto generating = NewSink(), waiting = NewSink();
  Submit(Turn(&running, {1}, 1000000, generating));
  ASSERT_TRUE(generating->AwaitTokens(5));
  std::vector<std::shared_ptr<RecordingSink>> others;
  for (int i = 0; i < 5; ++i) {
    others.push_back(NewSink());
    Submit(Make({1}, 1000000, others.back()));
  }
  engine_->Drain();
  EXPECT_EQ(generating->Await().reason, FinishReason::kDraining);
  for (auto& sink : others) EXPECT_EQ(sink->Await().reason, FinishReason::kDraining);
  for (int32_t id : generating->ids()) running.log.push_back(id);
  const std::vector<Eviction> saved = evictions();
  ASSERT_THAT(saved, SizeIs(2));
  for (const Eviction& eviction : saved) {
    const FakeSession& session = eviction.key == "idle" ? idle : running;
    ASSERT_LE(eviction.position, static_cast<int64_t>(session.log.size()));
    EXPECT_GE(eviction.position, static_cast<int64_t>(session.log.size()) - 1);
    EXPECT_EQ(StateIn(*eviction.state).hash, FakeState::Of(std::span(session.log).first(eviction.position)).hash);
  }
  const absl::Status refused = engine_->Submit(Make({1}, 5, waiting)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("going down"));
  engine_->Drain();  // once more changes nothing
}

TEST_P(EngineEndingTest, CancelStormsLeaveEverySlotUsable) {
  Start({.slots = 3, .defer = 0.1});
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<uint32_t>(t));
      for (int i = 0; i < 150; ++i) {
        auto sink = std::make_shared<RecordingSink>();
        const std::string key = random() % 2 ? "" : std::string(1, static_cast<char>('a' + t));
        const absl::StatusOr<RequestHandle> handle =
            engine_->Submit(Make(std::vector<int32_t>(1 + random() % 30, 4), 1 + random() % 40, sink, key, i));
        ASSERT_TRUE(handle.ok()) << handle.status();
        if (random() % 3 == 0) std::this_thread::yield();
        if (random() % 4 == 0) sink->AwaitTokens(1 + random() % 5);
        engine_->Cancel(*handle);
        engine_->Cancel(*handle);
        engine_->Discard(key);
        const FinishInfo info = sink->Await();
        EXPECT_TRUE(info.reason == FinishReason::kCancelled || info.reason == FinishReason::kMaxTokens);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(AwaitStats([](const EngineStats& s) { return s.slots_active == 0 && s.running == 0; }));
  EXPECT_EQ(engine_->stats().waiting, 0);
  FakeSession session{.key = "z"};
  RunTurn(&session, {1}, 10);
}

INSTANTIATE_TEST_SUITE_P(StepsInFlight, EngineEndingTest, testing::Values(1, 2));

}  // namespace
}  // namespace smt
