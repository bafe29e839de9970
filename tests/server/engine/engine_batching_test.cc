// Who is in which step with what: batches, shares of ingestion, queue order, slow readers.
#include <numeric>

#include "tests/server/engine/engine_fixture.h"

namespace smt {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

class EngineBatchingTest : public EngineFixture {
 protected:
  std::shared_ptr<RecordingSink> NewSink(bool takes_tokens = true) {
    return std::make_shared<RecordingSink>(takes_tokens);
  }
};

std::vector<int32_t> Numbers(int32_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  for (int32_t& id : ids) id %= 97;
  return ids;
}

TEST_P(EngineBatchingTest, EveryStepTakesAllThatRun) {
  Start({.slots = 3});
  control_->Hold();
  auto a = NewSink(), b = NewSink(), c = NewSink();
  Submit(Make({1}, 6, a));
  ASSERT_TRUE(control_->AwaitBatches(1));
  Submit(Make({2}, 6, b));
  Submit(Make({3}, 6, c));
  if (GetParam() == 1) {
    control_->LetThrough(1);
    ASSERT_TRUE(control_->AwaitBatches(2));
    // The first request's second draw and the two others' prompts share a step.
    const FakeControl::Batch batch = control_->batches()[1];
    ASSERT_EQ(batch.size(), 3u);
    EXPECT_TRUE(batch[0].append_last);
    EXPECT_EQ(batch[1].ids, 1);
    EXPECT_EQ(batch[2].ids, 1);
  }
  control_->LetAllThrough();
  a->Await(), b->Await(), c->Await();
  const std::vector<FakeControl::Batch> batches = control_->batches();
  EXPECT_TRUE(std::any_of(batches.begin(), batches.end(), [](const FakeControl::Batch& batch) {
    return batch.size() == 3 && batch[0].append_last && batch[1].append_last && batch[2].append_last;
  }));
}

TEST(EnginePipelineTest, TheNextStepIsSubmittedBeforeTheLastOnesResults) {
  auto control = std::make_shared<FakeControl>();
  control->Hold();
  Engine engine({}, std::make_unique<FakeExecutor>(FakeExecutor::Options{.max_in_flight = 2}, control), nullptr);
  auto sink = std::make_shared<RecordingSink>();
  EngineRequest request;
  request.prompt = {1};
  request.max_tokens = 10;
  request.sampling = std::make_shared<SamplingParams>();
  request.sink = sink;
  ASSERT_TRUE(engine.Submit(std::move(request)).ok());
  ASSERT_TRUE(control->AwaitBatches(1));
  control->LetThrough(1);
  // The first draw is known; two more steps go out although neither is let through.
  ASSERT_TRUE(control->AwaitBatches(3));
  ASSERT_TRUE(sink->AwaitTokens(1));
  EXPECT_EQ(sink->ids().size(), 1u);
  for (size_t i : {1, 2}) {
    ASSERT_EQ(control->batches()[i].size(), 1u);
    EXPECT_TRUE(control->batches()[i][0].append_last);
    EXPECT_EQ(control->batches()[i][0].ids, 0);
  }
  control->LetAllThrough();
  EXPECT_EQ(sink->Await().generated, 10);
}

TEST_P(EngineBatchingTest, ALongPromptIsCutSoThatStreamsGoOn) {
  Start({}, {.ingest_tokens_per_step = 8});
  control_->Hold();
  auto stream = NewSink(), prompt = NewSink();
  Submit(Make({1}, 400, stream));
  control_->LetThrough(1);
  ASSERT_TRUE(stream->AwaitTokens(1));
  Submit(Make(Numbers(60), 1, prompt));
  control_->LetAllThrough();
  prompt->Await();
  stream->Await();
  int64_t chunks = 0;
  for (const FakeControl::Batch& batch : control_->batches()) {
    for (const FakeControl::Item& item : batch) {
      if (item.ids <= 1) continue;
      EXPECT_LE(item.ids, 8);
      ++chunks;
    }
  }
  EXPECT_EQ(chunks, 8);  // 7 of 8 ids and one of 4
}

TEST_P(EngineBatchingTest, PromptsShareTheBudgetInWholeStrides) {
  Start({.slots = 4, .stride = 4}, {.ingest_tokens_per_step = 32, .ingest_tokens_per_step_idle = 32});
  control_->Hold();
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  auto warm_up = NewSink();
  Submit(Make({1}, 1, warm_up));  // so that the three come into one iteration
  ASSERT_TRUE(control_->AwaitHeld());
  for (int i = 0; i < 3; ++i) {
    sinks.push_back(NewSink());
    Submit(Make(Numbers(40), 0, sinks.back()));
  }
  control_->LetAllThrough();
  for (auto& sink : sinks) EXPECT_EQ(sink->Await().reason, FinishReason::kMaxTokens);
  for (auto& sink : sinks) {
    // 32 / 3 in whole strides is 8: five chunks each, nobody more.
    EXPECT_THAT(sink->ingested(), ElementsAre(8, 16, 24, 32, 40));
  }
}

TEST_P(EngineBatchingTest, WhereTheBudgetDoesNotReachPromptsTakeTurns) {
  Start({.slots = 8, .stride = 8}, {.ingest_tokens_per_step = 16, .ingest_tokens_per_step_idle = 16});
  control_->Hold();
  auto warm_up = NewSink();
  Submit(Make({1}, 1, warm_up));
  ASSERT_TRUE(control_->AwaitHeld());
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 6; ++i) {
    sinks.push_back(NewSink());
    Submit(Make(Numbers(80), 0, sinks.back()));
  }
  control_->LetAllThrough();
  for (auto& sink : sinks) sink->Await();
  std::map<int32_t, int64_t> done;
  for (const FakeControl::Batch& batch : control_->batches()) {
    EXPECT_LE(batch.size(), 2u);
    for (const FakeControl::Item& item : batch) {
      if (item.ids > 1) done[item.slot] += item.ids;
    }
    if (done.size() < 6) continue;
    const auto [low, high] =
        std::minmax_element(done.begin(), done.end(), [](const auto& x, const auto& y) { return x.second < y.second; });
    EXPECT_LE(high->second - low->second, 16) << "somebody fell behind";
  }
}

TEST_P(EngineBatchingTest, TheQueueIsOrderedByPriorityThenArrival) {
  Start({.slots = 1});
  control_->Hold();
  auto busy = NewSink();
  Submit(Make({1}, 1, busy));
  ASSERT_TRUE(control_->AwaitBatches(1));
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  const std::vector<int32_t> priorities = {0, 5, 0, -1, 5};
  for (size_t i = 0; i < priorities.size(); ++i) {
    sinks.push_back(NewSink());
    EngineRequest request = Make(Numbers(static_cast<int32_t>(i) + 2), 0, sinks.back());
    request.priority = priorities[i];
    Submit(std::move(request));
  }
  control_->LetAllThrough();
  for (auto& sink : sinks) sink->Await();
  std::vector<int64_t> prompt_sizes;
  for (const FakeControl::Batch& batch : control_->batches()) prompt_sizes.push_back(batch[0].ids);
  EXPECT_THAT(prompt_sizes, ElementsAre(1, 3, 6, 2, 4, 5));
}

TEST_P(EngineBatchingTest, ASlowReaderHoldsUpOnlyItself) {
  Start({}, {.max_buffered_tokens = 5});
  auto slow = NewSink(false), fast = NewSink();
  const RequestHandle handle = Submit(Make({1}, 12, slow));
  Submit(Make({2}, 300, fast));
  fast->Await();
  ASSERT_TRUE(AwaitStats([](const EngineStats& s) { return s.paused == 1; }));
  EXPECT_EQ(slow->ids().size(), 5u);
  slow->consumed.fetch_add(3);
  engine_->Wake(handle);
  ASSERT_TRUE(slow->AwaitTokens(8));
  ASSERT_TRUE(AwaitStats([](const EngineStats& s) { return s.paused == 1; }));
  EXPECT_EQ(slow->ids().size(), 8u);
  slow->consumed.fetch_add(100);
  engine_->Wake(handle);
  EXPECT_EQ(slow->Await().reason, FinishReason::kMaxTokens);
  SamplingParams params;
  params.seed = 1;
  EXPECT_EQ(slow->ids(), Oracle({1}, {}, 1, params, 12));
}

TEST_P(EngineBatchingTest, APausedRequestCanBeCancelled) {
  Start({}, {.max_buffered_tokens = 2});
  auto slow = NewSink(false);
  const RequestHandle handle = Submit(Make({1}, 12, slow));
  ASSERT_TRUE(AwaitStats([](const EngineStats& s) { return s.paused == 1; }));
  engine_->Cancel(handle);
  const FinishInfo info = slow->Await();
  EXPECT_EQ(info.reason, FinishReason::kCancelled);
  EXPECT_EQ(info.position, 1 + static_cast<int64_t>(slow->ids().size()));
}

TEST_P(EngineBatchingTest, AnIdleEngineSubmitsNothing) {
  Start({}, {.max_buffered_tokens = 1});
  auto slow = NewSink(false);
  Submit(Make({1}, 5, slow));
  ASSERT_TRUE(AwaitStats([](const EngineStats& s) { return s.paused == 1; }));
  const size_t before = control_->batches().size();
  const std::clock_t cpu = std::clock();
  absl::SleepFor(absl::Milliseconds(200));
  EXPECT_EQ(control_->batches().size(), before);
  EXPECT_LT(std::clock() - cpu, CLOCKS_PER_SEC / 10) << "someone is spinning";
}

INSTANTIATE_TEST_SUITE_P(StepsInFlight, EngineBatchingTest, testing::Values(1, 2));

}  // namespace
}  // namespace smt
