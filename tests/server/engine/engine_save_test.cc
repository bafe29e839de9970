// States asked for: Engine::SaveState of idle sessions, EngineRequest::save_at on the way.
#include <atomic>
#include <numeric>
#include <thread>

#include "tests/server/engine/engine_fixture.h"

namespace smt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// What SaveState answered, how often and on which thread.
struct Answer {
  // Until it has; then nobody writes here any more.
  void Await() {
    PlainLock lock(mu);
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (times == 0 && absl::Now() < deadline) changed.WaitUntil(mu, deadline);
    EXPECT_EQ(times, 1);
  }

  PlainMutex mu;
  PlainCondition changed;
  int times = 0;
  int64_t position = -1;
  std::shared_ptr<const StateBuffer> state;
  std::thread::id thread;
};

std::vector<int32_t> Prompt(int32_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), 3);
  for (int32_t& id : ids) id = id * 5 % 97;
  return ids;
}

class EngineSaveTest : public EngineFixture {
 protected:
  std::shared_ptr<Answer> Ask(const std::string& key) {
    auto answer = std::make_shared<Answer>();
    engine_->SaveState(key, [answer](int64_t position, std::shared_ptr<const StateBuffer> state) {
      PlainLock lock(answer->mu);
      ++answer->times;
      answer->position = position;
      answer->state = std::move(state);
      answer->thread = std::this_thread::get_id();
      answer->changed.NotifyAll();
    });
    return answer;
  }
  std::pair<int64_t, std::shared_ptr<const StateBuffer>> Save(const std::string& key) {
    const std::shared_ptr<Answer> answer = Ask(key);
    answer->Await();
    EXPECT_NE(answer->thread, std::this_thread::get_id());
    EXPECT_EQ(answer->state == nullptr, answer->position == 0);
    return {answer->position, answer->state};
  }
  static void ExpectStateOf(const StateBuffer& state, const std::vector<int32_t>& log, int64_t position) {
    EXPECT_EQ(StateIn(state).position, position);
    EXPECT_EQ(StateIn(state).hash, FakeState::Of(std::span(log).first(static_cast<size_t>(position))).hash);
  }
};

TEST_P(EngineSaveTest, AnIdleSessionIsCopiedAndStaysInItsSlot) {
  Start({.late_transfers = 0.5});
  FakeSession session{.key = "a"};
  RunTurn(&session, {1, 2, 3}, 5);
  for (int turn = 0; turn < 20; ++turn) {
    const auto [position, state] = Save("a");  // even right after the end, with a surplus draw in flight
    ASSERT_NE(state, nullptr);
    EXPECT_GE(position, static_cast<int64_t>(session.log.size()) - 1);
    EXPECT_LE(position, static_cast<int64_t>(session.log.size()));
    ExpectStateOf(*state, session.log, position);
    EXPECT_TRUE(RunTurn(&session, {turn, 7}, 4).resident);
  }
  engine_->Drain();
  EXPECT_THAT(evictions(), SizeIs(1));
}

TEST_P(EngineSaveTest, WhatIsNotIdleInASlotHasNoState) {
  Start({.slots = 2, .step_time = absl::Microseconds(100)});
  EXPECT_EQ(Save("unknown").second, nullptr);
  EXPECT_EQ(Save("").second, nullptr);
  FakeSession running{.key = "running"};
  auto sink = std::make_shared<RecordingSink>();
  const RequestHandle handle = Submit(Turn(&running, {1}, 100'000, sink));
  ASSERT_TRUE(sink->AwaitTokens(1));
  EXPECT_EQ(Save("running").second, nullptr);
  engine_->Cancel(handle);
  sink->Await();
  EXPECT_NE(Save("running").second, nullptr);
  engine_->Discard("running");
  EXPECT_EQ(Save("running").second, nullptr);
}

TEST_P(EngineSaveTest, AnEvictedSessionHasNoState) {
  Start({.slots = 1});
  FakeSession a{.key = "a"}, b{.key = "b"};
  RunTurn(&a, {1}, 3);
  RunTurn(&b, {2}, 3);
  EXPECT_EQ(Save("a").second, nullptr);
  EXPECT_NE(Save("b").second, nullptr);
}

TEST_P(EngineSaveTest, EveryQuestionIsAnsweredOnceThroughADrain) {
  Start({.slots = 2, .late_transfers = 0.5, .step_time = absl::Microseconds(20)});
  FakeSession idle{.key = "idle"}, running{.key = "running"};
  RunTurn(&idle, {1, 2}, 3);
  auto sink = std::make_shared<RecordingSink>();
  Submit(Turn(&running, {1}, 100'000, sink));
  std::vector<std::vector<std::shared_ptr<Answer>>> asked(3);
  std::vector<std::thread> threads;
  std::atomic<int64_t> questions{0};
  for (auto& mine : asked) {
    threads.emplace_back([&] {
      for (int i = 0; i < 300; ++i) {
        mine.push_back(Ask(i % 2 == 0 ? "idle" : "running"));
        ++questions;
      }
    });
  }
  while (questions < 200) std::this_thread::yield();
  engine_->Drain();
  for (std::thread& thread : threads) thread.join();
  for (const auto& mine : asked) {
    for (const auto& answer : mine) {
      PlainLock lock(answer->mu);
      ASSERT_EQ(answer->times, 1);
    }
  }
  const auto late = Ask("idle");
  PlainLock lock(late->mu);
  EXPECT_EQ(late->times, 1) << "before SaveState returned";
  EXPECT_EQ(late->state, nullptr);
}

TEST_P(EngineSaveTest, EveryQuestionIsAnsweredOnceThroughAFault) {
  Start({.late_transfers = 0.9});
  FakeSession idle{.key = "idle"}, other{.key = "other"};
  RunTurn(&idle, {1, 2}, 3);
  std::vector<std::shared_ptr<Answer>> asked;
  control_->FailNextPoll();
  auto sink = std::make_shared<RecordingSink>();
  for (int i = 0; i < 20; ++i) asked.push_back(Ask("idle"));
  Submit(Turn(&other, {1}, 5, sink));
  for (int i = 0; i < 20; ++i) asked.push_back(Ask("idle"));
  EXPECT_EQ(sink->Await().reason, FinishReason::kError);
  EXPECT_EQ(engine_->status().code(), absl::StatusCode::kUnavailable);
  asked.push_back(Ask("idle"));
  for (const auto& answer : asked) {
    answer->Await();
    if (answer->state != nullptr) ExpectStateOf(*answer->state, idle.log, answer->position);
  }
  PlainLock lock(asked.back()->mu);
  EXPECT_EQ(asked.back()->state, nullptr);
}

TEST_P(EngineSaveTest, AForgottenSessionGivesNoStateThatIsStillBeingCopied) {
  Start({.late_transfers = 1});
  FakeSession session{.key = "a"};
  RunTurn(&session, {1, 2}, 3);
  for (int i = 0; i < 10; ++i) {
    const auto answer = Ask("a");
    engine_->Discard("a");
    answer->Await();
    if (answer->state != nullptr) ExpectStateOf(*answer->state, session.log, answer->position);
  }
  EXPECT_EQ(Save("a").second, nullptr);
}

TEST_P(EngineSaveTest, StatesAreSavedExactlyWhereAskedAndChangeNothing) {
  Start({.defer = 0.3, .late_transfers = 0.4}, {.ingest_tokens_per_step_idle = 32});
  const std::vector<int32_t> prompt = Prompt(100);
  const std::vector<int32_t> expected = Oracle(prompt, {}, prompt.size(), *Make({}, 0, nullptr).sampling, 9);
  for (const std::string key : {"", "a"}) {
    auto sink = std::make_shared<RecordingSink>();
    EngineRequest request = Make(prompt, 9, sink, key);
    request.save_at = {0, 1, 2, 7, 8, 33, 64, 99, 100};
    Submit(std::move(request));
    EXPECT_EQ(sink->Await().reason, FinishReason::kMaxTokens);
    EXPECT_EQ(sink->ids(), expected);
    std::vector<int64_t> positions;
    for (const auto& [position, state] : sink->snapshots()) {
      positions.push_back(position);
      ExpectStateOf(*state, prompt, position);
    }
    EXPECT_THAT(positions, ElementsAre(1, 2, 7, 8, 33, 64, 99, 100));
  }
}

TEST_P(EngineSaveTest, TheLastPositionIsSavedBeforeARequestThatOnlyReadsEnds) {
  Start({.late_transfers = 1});
  const std::vector<int32_t> prompt = Prompt(50);
  auto sink = std::make_shared<RecordingSink>();
  EngineRequest request = Make(prompt, 0, sink);
  request.save_at = {50};
  Submit(std::move(request));
  sink->Await();
  ASSERT_THAT(sink->snapshots(), SizeIs(1));
  ExpectStateOf(*sink->snapshots()[0].second, prompt, 50);
}

TEST_P(EngineSaveTest, AScoredPromptGivesTheSameScoresAndStates) {
  Start({}, {.ingest_tokens_per_step_idle = 64});
  const std::vector<int32_t> prompt = Prompt(60);
  std::vector<std::vector<std::pair<int64_t, float>>> scores;
  for (const bool save : {false, true}) {
    auto sink = std::make_shared<RecordingSink>();
    EngineRequest request = Make(prompt, 0, sink);
    request.prompt_logprobs = 0;
    if (save) request.save_at = {5, 6, 59, 60};
    Submit(std::move(request));
    sink->Await();
    scores.push_back(sink->scores());
    for (const auto& [position, state] : sink->snapshots()) ExpectStateOf(*state, prompt, position);
    EXPECT_THAT(sink->snapshots(), SizeIs(save ? 4 : 0));
  }
  EXPECT_EQ(scores[0], scores[1]);
}

TEST_P(EngineSaveTest, PositionsInTheLogsTailAreSavedAndThoseBeforeItAreNot) {
  Start();
  FakeSession session{.key = "a", .log = Prompt(50)};
  session.snapshots[40] = BufferOf(FakeState::Of(std::span(session.log).first(40)));
  auto sink = std::make_shared<RecordingSink>();
  EngineRequest request = Turn(&session, {5, 6, 7, 8}, 3, sink);
  request.session_key.clear();
  request.save_at = {30, 40, 41, 50, 54};
  Submit(std::move(request));
  sink->Await();
  std::vector<int64_t> positions;
  for (const auto& [position, state] : sink->snapshots()) {
    positions.push_back(position);
    ExpectStateOf(*state, session.log, position);
  }
  EXPECT_THAT(positions, ElementsAre(41, 50, 54));
}

TEST_P(EngineSaveTest, PositionsAskedForJoinTheRegularSnapshots) {
  Start({.late_transfers = 0.3}, {.snapshot_interval = 16});
  FakeSession session{.key = "a"};
  auto sink = std::make_shared<RecordingSink>();
  EngineRequest request = Turn(&session, Prompt(40), 0, sink);
  request.save_at = {10, 11};
  Submit(std::move(request));
  sink->Await();
  std::vector<int64_t> positions;
  for (const auto& [position, state] : sink->snapshots()) {
    positions.push_back(position);
    ExpectStateOf(*state, session.log, position);
  }
  EXPECT_THAT(positions, ElementsAre(10, 11, 27));
}

TEST_P(EngineSaveTest, PositionsThatDoNotAscendOrLieBeyondThePromptAreRefused) {
  Start();
  const auto refuse = [&](std::vector<int64_t> save_at) {
    EngineRequest request = Make({1, 2, 3}, 1, std::make_shared<RecordingSink>());
    request.save_at = std::move(save_at);
    const absl::Status status = engine_->Submit(std::move(request)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(refuse({4}), HasSubstr("save_at[0] is 4; positions must ascend and be in [0, 3]"));
  EXPECT_THAT(refuse({-1}), HasSubstr("save_at[0] is -1"));
  EXPECT_THAT(refuse({2, 2}), HasSubstr("save_at[1] is 2; positions must ascend and be in [3, 3]"));
}

INSTANTIATE_TEST_SUITE_P(StepsInFlight, EngineSaveTest, testing::Values(1, 2));

}  // namespace
}  // namespace smt
