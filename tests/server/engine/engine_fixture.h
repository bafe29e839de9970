// What the engine's tests share: a sink that records, sessions with a log and snapshots, and the sequential oracle.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "server/engine/engine.h"
#include "server/engine/mutex.h"
#include "tests/server/engine/fake_executor.h"

namespace smt {

// Records one request's events and checks their order. Takes tokens at once unless told otherwise.
class RecordingSink : public GenerationSink {
 public:
  explicit RecordingSink(bool takes_tokens = true) : takes_tokens_(takes_tokens) {}

  void OnStarted() override {
    PlainLock lock(mu_);
    EXPECT_FALSE(started_ || finished_);
    started_ = true;
    changed_.NotifyAll();
  }
  void OnIngested(int64_t done, int64_t total) override {
    PlainLock lock(mu_);
    EXPECT_TRUE(started_ && !finished_ && done <= total);
    ingested_.push_back(done);
    changed_.NotifyAll();
  }
  void OnPromptLogprobs(int64_t first_position, std::vector<TokenLogprobs> logprobs) override {
    PlainLock lock(mu_);
    EXPECT_TRUE(started_ && !finished_);
    for (const TokenLogprobs& l : logprobs) scores_.emplace_back(first_position++, l.logprob);
  }
  void OnTokens(std::span<const TokenOutput> tokens) override {
    PlainLock lock(mu_);
    EXPECT_TRUE(started_ && !finished_);
    for (const TokenOutput& token : tokens) {
      EXPECT_TRUE(ids_.empty() || token.position == last_position_ + 1);
      last_position_ = token.position;
      ids_.push_back(token.id);
    }
    changed_.NotifyAll();
    if (!takes_tokens_) return;
    consumed.fetch_add(static_cast<int64_t>(tokens.size()));
    if (engine_ != nullptr) engine_->Wake(0);  // wakes the engine whichever request it is
  }
  void OnSnapshot(int64_t position, std::shared_ptr<const StateBuffer> state) override {
    PlainLock lock(mu_);
    EXPECT_TRUE(started_ && !finished_);
    snapshots_.emplace_back(position, std::move(state));
  }
  void OnFinished(const FinishInfo& info) override {
    PlainLock lock(mu_);
    EXPECT_FALSE(finished_);
    finished_ = true;
    info_ = info;
    changed_.NotifyAll();
  }

  // Before the request is submitted.
  void set_engine(Engine* engine) { engine_ = engine; }

  FinishInfo Await() {
    PlainLock lock(mu_);
    AwaitLocked([this] { return finished_; });
    EXPECT_TRUE(finished_) << "the request did not end";
    return info_;
  }
  bool AwaitTokens(size_t count) {
    PlainLock lock(mu_);
    AwaitLocked([&] { return ids_.size() >= count || finished_; });
    return ids_.size() >= count;
  }
  bool AwaitStarted() {
    PlainLock lock(mu_);
    AwaitLocked([&] { return started_; });
    return started_;
  }
  bool finished() const {
    PlainLock lock(mu_);
    return finished_;
  }
  std::vector<int32_t> ids() const {
    PlainLock lock(mu_);
    return ids_;
  }
  std::vector<int64_t> ingested() const {
    PlainLock lock(mu_);
    return ingested_;
  }
  std::vector<std::pair<int64_t, float>> scores() const {
    PlainLock lock(mu_);
    return scores_;
  }
  std::vector<std::pair<int64_t, std::shared_ptr<const StateBuffer>>> snapshots() const {
    PlainLock lock(mu_);
    return snapshots_;
  }

 private:
  template <typename Condition>
  void AwaitLocked(Condition condition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (!condition() && absl::Now() < deadline) changed_.WaitUntil(mu_, deadline);
  }

  const bool takes_tokens_;
  Engine* engine_ = nullptr;
  mutable PlainMutex mu_;
  PlainCondition changed_;
  bool started_ = false, finished_ = false;
  int64_t last_position_ = 0;
  std::vector<int32_t> ids_;
  std::vector<int64_t> ingested_;
  std::vector<std::pair<int64_t, float>> scores_;
  std::vector<std::pair<int64_t, std::shared_ptr<const StateBuffer>>> snapshots_;
  FinishInfo info_;
};

inline FakeState StateIn(const StateBuffer& buffer) {
  FakeState state;
  std::memcpy(&state.position, buffer.span().data(), 8);
  std::memcpy(&state.hash, buffer.span().data() + 8, 8);
  return state;
}

inline std::shared_ptr<const StateBuffer> BufferOf(const FakeState& state) {
  auto buffer = std::make_shared<StateBuffer>(FakeExecutor::kStateBytes);
  std::memcpy(buffer->span().data(), &state.position, 8);
  std::memcpy(buffer->span().data() + 8, &state.hash, 8);
  return buffer;
}

// What one request must generate, one id after another and alone.
inline std::vector<int32_t> Oracle(std::vector<int32_t> log_with_prompt, const std::vector<int32_t>& recent,
                                   size_t prompt_size, const SamplingParams& params, int64_t max_tokens,
                                   const std::vector<int32_t>& stop_tokens = {}, int32_t vocab = 97,
                                   size_t input_tokens = 10) {
  std::vector<int32_t> prior = recent;
  prior.insert(prior.end(), log_with_prompt.end() - static_cast<std::ptrdiff_t>(prompt_size), log_with_prompt.end());
  if (prior.size() > input_tokens) {
    prior.erase(prior.begin(), prior.end() - static_cast<std::ptrdiff_t>(input_tokens));
  }
  const uint64_t prior_hash = FakeState::HashOf(prior);
  FakeState state = FakeState::Of(log_with_prompt);
  std::vector<int32_t> ids;
  while (static_cast<int64_t>(ids.size()) < max_tokens) {
    ids.push_back(state.Draw(params, prior_hash, vocab));
    state.Absorb(ids.back());
    if (std::find(stop_tokens.begin(), stop_tokens.end(), ids.back()) != stop_tokens.end()) break;
  }
  return ids;
}

// A session as its owner knows it: the log, and states that came back from the engine.
struct FakeSession {
  std::string key;
  std::vector<int32_t> log = {};
  std::map<int64_t, std::shared_ptr<const StateBuffer>> snapshots = {};

  RestoredState Restore(int64_t head) const {
    RestoredState restored;
    const auto after = snapshots.upper_bound(head);
    if (after != snapshots.begin()) {
      restored.position = std::prev(after)->first;
      restored.state = std::prev(after)->second;
    }
    restored.tail.assign(log.begin() + restored.position, log.begin() + head);
    return restored;
  }
};

// Parameter: Executor max_in_flight.
class EngineFixture : public ::testing::TestWithParam<int> {
 protected:
  struct Eviction {
    std::string key;
    int64_t position;
    std::shared_ptr<const StateBuffer> state;
  };

  void Start(FakeExecutor::Options executor = {}, Engine::Options options = {}, EngineMetrics* metrics = nullptr) {
    executor.max_in_flight = GetParam();
    executor_options_ = executor;
    options.on_evicted = [this](const std::string& key, int64_t position, std::shared_ptr<const StateBuffer> state) {
      PlainLock lock(mu_);
      evictions_.push_back({key, position, std::move(state)});
    };
    options.on_fault = [this](const absl::Status& status) {
      PlainLock lock(mu_);
      faults_.push_back(status);
    };
    if (options.token_bytes == nullptr) {
      for (int32_t id = 0; id < executor.vocab; ++id) {
        token_bytes_.push_back(std::string(1, static_cast<char>('A' + id % 26)) + std::to_string(id) + " ");
      }
      options.token_bytes = &token_bytes_;
    }
    engine_ = std::make_unique<Engine>(options, std::make_unique<FakeExecutor>(executor, control_), metrics);
  }

  static EngineRequest Make(std::vector<int32_t> prompt, int64_t max_tokens, std::shared_ptr<GenerationSink> sink,
                            std::string key = "", uint64_t seed = 1) {
    EngineRequest request;
    request.session_key = std::move(key);
    request.prompt = std::move(prompt);
    request.max_tokens = max_tokens;
    auto sampling = std::make_shared<SamplingParams>();
    sampling->seed = seed;
    request.sampling = std::move(sampling);
    request.sink = std::move(sink);
    return request;
  }

  RequestHandle Submit(EngineRequest request) {
    if (auto* sink = dynamic_cast<RecordingSink*>(request.sink.get())) sink->set_engine(engine_.get());
    const absl::StatusOr<RequestHandle> handle = engine_->Submit(std::move(request));
    EXPECT_TRUE(handle.ok()) << handle.status();
    return handle.ok() ? *handle : 0;
  }

  // A turn of `session`; the prompt goes to its log at once, as the owner would do.
  EngineRequest Turn(FakeSession* session, std::vector<int32_t> prompt, int64_t max_tokens,
                     std::shared_ptr<GenerationSink> sink) {
    EngineRequest request = Make(prompt, max_tokens, std::move(sink), session->key);
    request.head = static_cast<int64_t>(session->log.size());
    request.recent = session->log;
    request.restore = [copy = *session, head = request.head] { return copy.Restore(head); };
    session->log.insert(session->log.end(), prompt.begin(), prompt.end());
    return request;
  }

  // Runs a turn to its end, adds what it generated to the log and compares with the oracle.
  FinishInfo RunTurn(FakeSession* session, std::vector<int32_t> prompt, int64_t max_tokens) {
    auto sink = std::make_shared<RecordingSink>();
    const std::vector<int32_t> recent = session->log;
    Submit(Turn(session, prompt, max_tokens, sink));
    const FinishInfo info = sink->Await();
    SamplingParams params;
    params.seed = 1;
    EXPECT_EQ(sink->ids(), Oracle(session->log, recent, prompt.size(), params, max_tokens));
    for (const auto& [position, state] : sink->snapshots()) session->snapshots[position] = state;
    const std::vector<int32_t> ids = sink->ids();
    session->log.insert(session->log.end(), ids.begin(), ids.end());
    EXPECT_EQ(info.position, static_cast<int64_t>(session->log.size()));
    return info;
  }

  std::vector<Eviction> evictions() {
    PlainLock lock(mu_);
    return evictions_;
  }
  std::vector<absl::Status> faults() {
    PlainLock lock(mu_);
    return faults_;
  }

  // Until the engine has nothing in its slots that is in use; false after 20 s.
  bool AwaitStats(const std::function<bool(const EngineStats&)>& condition) {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (!condition(engine_->stats())) {
      if (absl::Now() > deadline) return false;
      absl::SleepFor(absl::Microseconds(200));
    }
    return true;
  }

  std::shared_ptr<FakeControl> control_ = std::make_shared<FakeControl>();
  FakeExecutor::Options executor_options_;
  std::vector<std::string> token_bytes_;
  PlainMutex mu_;
  std::vector<Eviction> evictions_ ABSL_GUARDED_BY(mu_);
  std::vector<absl::Status> faults_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<Engine> engine_;  // last: its threads use the rest
};

}  // namespace smt
