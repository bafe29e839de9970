// What one request gets from the engine: ids, positions, stops, scores, refusals.
#include "server/engine/engine.h"

#include "server/engine/engine_metrics.h"
#include "tests/server/engine/engine_fixture.h"

namespace smt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class EngineTest : public EngineFixture {
 protected:
  std::vector<int32_t> Expected(const std::vector<int32_t>& prompt, int64_t max_tokens, uint64_t seed = 1) {
    SamplingParams params;
    params.seed = seed;
    return Oracle(prompt, {}, prompt.size(), params, max_tokens);
  }
};

TEST_P(EngineTest, GeneratesWhatSteppingAloneGives) {
  Start();
  auto sink = std::make_shared<RecordingSink>();
  Submit(Make({5, 6, 7}, 20, sink));
  const FinishInfo info = sink->Await();
  EXPECT_EQ(info.reason, FinishReason::kMaxTokens);
  EXPECT_EQ(sink->ids(), Expected({5, 6, 7}, 20));
  EXPECT_EQ(info.position, 23);
  EXPECT_EQ(info.generated, 20);
  EXPECT_EQ(sink->ingested().back(), 3);
}

TEST_P(EngineTest, SubmitsNoDrawBeyondMaxTokens) {
  Start();
  auto sink = std::make_shared<RecordingSink>();
  Submit(Make({5}, 4, sink));
  sink->Await();
  engine_->Drain();
  size_t draws = 0;
  for (const FakeControl::Batch& batch : control_->batches()) {
    for (const FakeControl::Item& item : batch) draws += item.want == Want::kSample;
  }
  EXPECT_EQ(draws, 4u);
}

TEST_P(EngineTest, WithoutMaxTokensItOnlyIngests) {
  Start();
  auto sink = std::make_shared<RecordingSink>();
  EngineRequest request = Make(std::vector<int32_t>(100, 3), 0, sink);
  request.sampling = nullptr;
  Submit(std::move(request));
  const FinishInfo info = sink->Await();
  EXPECT_EQ(info.reason, FinishReason::kMaxTokens);
  EXPECT_EQ(info.position, 100);
  EXPECT_THAT(sink->ids(), IsEmpty());
  EXPECT_EQ(sink->ingested().back(), 100);
}

TEST_P(EngineTest, AStopTokenIsTheLastIdOfTheLog) {
  Start();
  const std::vector<int32_t> all = Expected({9}, 30);
  auto sink = std::make_shared<RecordingSink>();
  EngineRequest request = Make({9}, 30, sink);
  request.stop_tokens = {200, all[11], 100};
  const auto end = std::find(all.begin(), all.end(), all[11]) + 1;
  Submit(std::move(request));
  const FinishInfo info = sink->Await();
  EXPECT_EQ(info.reason, FinishReason::kStopToken);
  EXPECT_EQ(info.stop_token, all[11]);
  EXPECT_EQ(sink->ids(), std::vector<int32_t>(all.begin(), end));
  EXPECT_EQ(info.position, 1 + (end - all.begin()));
}

TEST_P(EngineTest, AStopStringMayBeginInOneTokenAndEndInAnother) {
  Start();
  const std::vector<int32_t> all = Expected({9}, 30);
  auto sink = std::make_shared<RecordingSink>();
  EngineRequest request = Make({9}, 30, sink);
  const std::string across = token_bytes_[all[7]].substr(1) + token_bytes_[all[8]].substr(0, 2);
  request.stop_strings = {"not there", across};
  std::string text;
  size_t count = 0;
  while (text.find(across) == std::string::npos) text += token_bytes_[all[count++]];
  Submit(std::move(request));
  const FinishInfo info = sink->Await();
  EXPECT_EQ(info.reason, FinishReason::kStopString);
  EXPECT_EQ(info.stop_string, 1);
  EXPECT_EQ(sink->ids(), std::vector<int32_t>(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count)));
}

TEST_P(EngineTest, StopStringsCountOnlyFromMinTokensOn) {
  Start();
  const std::vector<int32_t> all = Expected({9}, 30);
  auto sink = std::make_shared<RecordingSink>();
  EngineRequest request = Make({9}, 30, sink);
  auto sampling = std::make_shared<SamplingParams>(*request.sampling);
  sampling->min_tokens = 6;
  request.sampling = sampling;
  request.stop_strings = {" "};  // every token ends with one
  Submit(std::move(request));
  EXPECT_EQ(sink->Await().generated, 6);
}

TEST_P(EngineTest, LogprobsComeWithTheTokensThatAskedForThem) {
  Start();
  auto sink = std::make_shared<RecordingSink>();
  EngineRequest request = Make({9}, 3, sink);
  auto sampling = std::make_shared<SamplingParams>(*request.sampling);
  sampling->top_logprobs = 0;
  request.sampling = sampling;
  class LogprobSink : public GenerationSink {
   public:
    explicit LogprobSink(std::shared_ptr<RecordingSink> inner) : inner_(std::move(inner)) {}
    void OnStarted() override { inner_->OnStarted(); }
    void OnTokens(std::span<const TokenOutput> tokens) override {
      for (const TokenOutput& t : tokens) {
        EXPECT_TRUE(t.has_logprobs);
        got_.push_back(t.logprobs.logprob);
      }
      inner_->OnTokens(tokens);
    }
    void OnFinished(const FinishInfo& info) override { inner_->OnFinished(info); }
    std::shared_ptr<RecordingSink> inner_;
    std::vector<float> got_;
  };
  auto logprobs = std::make_shared<LogprobSink>(sink);
  request.sink = logprobs;
  Submit(std::move(request));
  sink->Await();
  FakeState state = FakeState::Of(std::vector<int32_t>{9});
  std::vector<float> expected;
  for (int32_t id : sink->ids()) {
    expected.push_back(state.Score(id));
    state.Absorb(id);
  }
  EXPECT_EQ(logprobs->got_, expected);
}

TEST_P(EngineTest, ScoresEveryPromptIdButTheFirst) {
  Start();
  std::vector<int32_t> prompt;
  for (int32_t i = 0; i < 70; ++i) prompt.push_back(i % 50);
  auto sink = std::make_shared<RecordingSink>();
  EngineRequest request = Make(prompt, 5, sink);
  request.prompt_logprobs = 0;
  request.score_first = true;  // nothing comes before the first one
  Submit(std::move(request));
  sink->Await();
  std::vector<std::pair<int64_t, float>> expected;
  FakeState state;
  for (size_t i = 0; i + 1 < prompt.size(); ++i) {
    state.Absorb(prompt[i]);
    expected.emplace_back(i + 2, state.Score(prompt[i + 1]));
  }
  EXPECT_EQ(sink->scores(), expected);
  EXPECT_EQ(sink->ids(), Expected(prompt, 5));
}

TEST_P(EngineTest, ScoresTheFirstPromptIdOfASessionWithALog) {
  Start();
  for (const bool resident_ids_left : {false, true}) {
    FakeSession session{.key = resident_ids_left ? "a" : "b"};
    // After generating, the last id is in the log but not in the state; after ingesting all are.
    RunTurn(&session, {4, 5, 6}, resident_ids_left ? 3 : 0);
    auto sink = std::make_shared<RecordingSink>();
    const FakeState before = FakeState::Of(session.log);
    const auto head = static_cast<int64_t>(session.log.size());
    EngineRequest request = Turn(&session, {7, 8}, 0, sink);
    request.prompt_logprobs = 0;
    request.score_first = true;
    Submit(std::move(request));
    EXPECT_TRUE(sink->Await().resident);
    FakeState after = before;
    after.Absorb(7);
    EXPECT_THAT(sink->scores(), ElementsAre(std::pair(head + 1, before.Score(7)), std::pair(head + 2, after.Score(8))));
  }
}

TEST_P(EngineTest, AnEmptyPromptGoesOnFromTheSession) {
  Start();
  FakeSession generated{.key = "a"}, ingested{.key = "b"};
  RunTurn(&generated, {1, 2}, 7);
  RunTurn(&generated, {}, 7);
  RunTurn(&ingested, {1, 2}, 0);
  RunTurn(&ingested, {}, 7);
  RunTurn(&ingested, {}, 0);
}

TEST_P(EngineTest, OneFailedDrawEndsOnlyItsRequest) {
  Start();
  auto sink = std::make_shared<RecordingSink>();
  control_->FailDraw(3);
  Submit(Make({1}, 10, sink));
  const FinishInfo info = sink->Await();
  EXPECT_EQ(info.reason, FinishReason::kError);
  EXPECT_EQ(info.status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(info.position, 4);
  control_->FailDraw(-1);
  auto next = std::make_shared<RecordingSink>();
  Submit(Make({1}, 10, next));
  EXPECT_EQ(next->Await().reason, FinishReason::kMaxTokens);
}

TEST_P(EngineTest, RefusesWhatCannotBeRun) {
  Start();
  auto sink = std::make_shared<RecordingSink>();
  const auto refusal = [&](auto change) {
    EngineRequest request = Make({1, 2}, 5, sink);
    change(request);
    const absl::StatusOr<RequestHandle> handle = engine_->Submit(std::move(request));
    EXPECT_EQ(handle.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(handle.status().message());
  };
  EXPECT_THAT(refusal([](EngineRequest& r) { r.prompt.clear(); }), HasSubstr("prompt is empty"));
  EXPECT_THAT(refusal([](EngineRequest& r) { r.prompt[1] = 97; }), HasSubstr("prompt[1] is 97"));
  EXPECT_THAT(refusal([](EngineRequest& r) { r.prompt[0] = -1; }), HasSubstr("prompt[0] is -1"));
  EXPECT_THAT(refusal([](EngineRequest& r) { r.max_tokens = -1; }), HasSubstr("max_tokens is -1"));
  EXPECT_THAT(refusal([](EngineRequest& r) { r.head = -3; }), HasSubstr("head is -3"));
  EXPECT_THAT(refusal([](EngineRequest& r) { r.sampling = nullptr; }), HasSubstr("sampling"));
  EXPECT_THAT(refusal([](EngineRequest& r) { r.sink = nullptr; }), HasSubstr("sink"));
  EXPECT_FALSE(sink->finished());
}

TEST_P(EngineTest, RefusesASecondRequestOnASession) {
  Start();
  control_->Hold();
  FakeSession session{.key = "a"};
  auto first = std::make_shared<RecordingSink>(), second = std::make_shared<RecordingSink>();
  Submit(Turn(&session, {1}, 3, first));
  EXPECT_EQ(engine_->Submit(Turn(&session, {2}, 3, second)).status().code(), absl::StatusCode::kFailedPrecondition);
  control_->LetAllThrough();
  first->Await();
}

TEST_P(EngineTest, AFullQueueIsUnavailable) {
  Start({.slots = 1}, {.max_queue = 2});
  control_->Hold();
  std::vector<std::shared_ptr<RecordingSink>> sinks(4);
  for (auto& sink : sinks) sink = std::make_shared<RecordingSink>();
  Submit(Make({1}, 1, sinks[0]));
  ASSERT_TRUE(control_->AwaitBatches(1));
  Submit(Make({1}, 1, sinks[1]));
  Submit(Make({1}, 1, sinks[2]));
  EXPECT_EQ(engine_->stats().waiting, 2);
  const absl::Status refused = engine_->Submit(Make({1}, 1, sinks[3])).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("queue is full (2 requests)"));
  control_->LetAllThrough();
  for (int i = 0; i < 3; ++i) sinks[i]->Await();
  EXPECT_FALSE(sinks[3]->finished());
}

TEST_P(EngineTest, ReportsItsStepsToTheMetrics) {
  class Metrics : public EngineMetrics {
   public:
    void OnStep(const StepMetrics& step) override {
      prompt += step.prompt_tokens;
      generated += step.generated_tokens;
      ++steps;
    }
    void OnSave(SaveKind kind, absl::Duration, int64_t bytes) override {
      evictions += kind == SaveKind::kEviction && bytes == FakeExecutor::kStateBytes;
    }
    int64_t prompt = 0, generated = 0, steps = 0, evictions = 0;
  } metrics;
  Start({}, {}, &metrics);
  FakeSession session{.key = "a"};
  RunTurn(&session, {1, 2, 3}, 6);
  engine_->Drain();
  EXPECT_EQ(metrics.prompt, 3);
  EXPECT_EQ(metrics.generated, 6);
  EXPECT_EQ(metrics.steps, static_cast<int64_t>(control_->batches().size()));
  EXPECT_EQ(metrics.evictions, 1);
}

INSTANTIATE_TEST_SUITE_P(StepsInFlight, EngineTest, testing::Values(1, 2));

}  // namespace
}  // namespace smt
