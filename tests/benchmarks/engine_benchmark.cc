// What the engine itself costs: one iteration over an executor that does nothing, and one draw of the sampler.
#include <benchmark/benchmark.h>

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "model/sampling/sampler.h"
#include "server/engine/engine.h"

namespace smt {
namespace {

// Results are there at once: every id is 7.
class NullExecutor : public Executor {
 public:
  NullExecutor(int32_t slots, int32_t max_in_flight) : pending_(4) {
    info_.slots = slots;
    info_.max_in_flight = max_in_flight;
    info_.state_bytes = 64;
    info_.vocab_size = 100;
    info_.stride = 16;
    info_.input_tokens = 50;
  }
  const ExecutorInfo& info() const override { return info_; }
  int64_t position(int32_t) const override { return 0; }
  void Reset(int32_t) override {}
  Ticket Load(int32_t, std::span<const std::byte>) override { return ++last_; }
  Ticket Save(int32_t, std::span<std::byte>) override { return ++last_; }
  Ticket Copy(int32_t, int32_t) override { return ++last_; }
  void BindSampling(int32_t, std::shared_ptr<const SamplingParams>, std::span<const int32_t>,
                    std::span<const int32_t>) override {}
  absl::StatusOr<Ticket> Submit(std::span<const PlanItem> plan) override {
    pending_[static_cast<size_t>(++last_) % 4] = plan.size();
    return last_;
  }
  absl::StatusOr<bool> Poll(Ticket ticket, bool, StepResult* result) override {
    if (result == nullptr) return true;
    result->items.resize(pending_[static_cast<size_t>(ticket) % 4]);
    for (ItemResult& item : result->items) item.id = 7;
    return true;
  }

 private:
  ExecutorInfo info_;
  std::vector<size_t> pending_;
  Ticket last_ = 0;
};

class CountingSink : public GenerationSink {
 public:
  explicit CountingSink(absl::BlockingCounter* ended) : ended_(ended) {}
  void OnTokens(std::span<const TokenOutput> tokens) override {
    consumed.fetch_add(static_cast<int64_t>(tokens.size()), std::memory_order_relaxed);
  }
  void OnFinished(const FinishInfo&) override { ended_->DecrementCount(); }

 private:
  absl::BlockingCounter* const ended_;
};

// Arguments: streams, steps in flight. The time is that of one iteration: a token for every stream.
void BM_EngineIteration(benchmark::State& state) {
  constexpr int64_t kTokens = 4000;
  const auto streams = static_cast<int32_t>(state.range(0));
  Engine engine({.max_buffered_tokens = int64_t{1} << 40},
                std::make_unique<NullExecutor>(streams, static_cast<int32_t>(state.range(1))), nullptr);
  double seconds = 0;
  for (auto _ : state) {
    absl::BlockingCounter ended(streams);
    const absl::Time begin = absl::Now();
    for (int32_t i = 0; i < streams; ++i) {
      EngineRequest request;
      request.prompt = {1};
      request.max_tokens = kTokens;
      request.sampling = std::make_shared<SamplingParams>();
      request.sink = std::make_shared<CountingSink>(&ended);
      benchmark::DoNotOptimize(engine.Submit(std::move(request)));
    }
    ended.Wait();
    const double took = absl::ToDoubleSeconds(absl::Now() - begin);
    seconds += took;
    state.SetIterationTime(took / kTokens);
  }
  state.counters["ns_per_token"] = seconds * 1e9 / (static_cast<double>(state.iterations()) * kTokens * streams);
}
BENCHMARK(BM_EngineIteration)
    ->ArgsProduct({{1, 16, 64}, {1, 2}})
    ->UseManualTime()
    ->Iterations(20)
    ->Unit(benchmark::kMicrosecond);

SamplingParams Options(int64_t kind) {
  SamplingParams params;
  if (kind == 1) params.temperature = 0;
  if (kind == 2) params.top_k = 50;
  if (kind == 3) params.top_p = 0.9f;
  if (kind == 4) params.min_p = 0.05f;
  if (kind == 5) params.top_logprobs = 5;
  return params;
}

// Argument: 0 plain, 1 greedy, 2 top_k 50, 3 top_p 0.9, 4 min_p 0.05, 5 with five log-probabilities.
void BM_Sample(benchmark::State& state) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(50257);
  for (float& l : logits) l = normal(random);
  const SamplingParams params = Options(state.range(0));
  Sampler sampler(static_cast<int32_t>(logits.size()));
  PenaltyState penalties;
  SampledToken token;
  int64_t position = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(sampler.Sample(logits, params, penalties, ++position, &token));
  }
}
BENCHMARK(BM_Sample)->DenseRange(0, 5)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace smt

BENCHMARK_MAIN();
