#include "tests/benchmarks/model_bench.h"

#include <cstdlib>
#include <iostream>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "model/runners.h"
#include "server/engine/engine.h"
#include "server/engine/torch_executor.h"
#include "tests/benchmarks/bench_util.h"

namespace smt::bench {
namespace {

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::cerr << "smt_bench: " << value.status().message() << "\n";
    std::exit(1);
  }
  return *std::move(value);
}

RunnerOptions Runner(const ModelBenchOptions& options, int slots) {
  RunnerOptions runner;
  runner.model_dir = options.model_dir;
  runner.device = options.device;
  runner.slots = slots;
  runner.deterministic = true;
  return runner;
}

// A text's worth of ids that every side of a comparison uses.
std::vector<int32_t> Ids(const SlotRunner& runner, int count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % runner.config().vocab_size);
  return ids;
}

// Brings the first `streams` slots to different phases around `position`.
void Prefill(SlotRunner& runner, int streams, int position) {
  for (int slot = 0; slot < streams; ++slot) {
    const std::vector<int32_t> ids = Ids(runner, position + slot % static_cast<int>(runner.config().stride), slot);
    runner.Reset(slot);
    const SlotRunner::Chunk chunk{slot, ids};
    runner.Ingest({&chunk, 1});
  }
}

// tokens/s of stepping `streams` slots `tokens` times.
double StepRate(SlotRunner& runner, int streams, int tokens) {
  std::vector<int32_t> slots(streams), ids(streams);
  std::iota(slots.begin(), slots.end(), 0);
  std::vector<float> logits(static_cast<size_t>(streams) * runner.config().vocab_size);
  const std::vector<int32_t> text = Ids(runner, tokens * streams, 99);
  runner.Step(slots, {text.data(), static_cast<size_t>(streams)}, logits.data());  // rebuilds the caches
  const double start = Seconds();
  for (int i = 1; i < tokens; ++i) {
    runner.Step(slots, {text.data() + static_cast<size_t>(i) * streams, static_cast<size_t>(streams)}, logits.data());
  }
  return (tokens - 1) * streams / (Seconds() - start);
}

class CountingSink : public GenerationSink {
 public:
  explicit CountingSink(absl::BlockingCounter* done) : done_(done) {}
  void OnTokens(std::span<const TokenOutput> tokens) override {
    if (count_ == 0) first_ = Seconds();
    count_ += static_cast<int64_t>(tokens.size());
    consumed = count_;
  }
  void OnFinished(const FinishInfo& info) override {
    last_ = Seconds();
    done_->DecrementCount();
  }
  int64_t count() const { return count_; }
  double first() const { return first_; }
  double last() const { return last_; }

 private:
  absl::BlockingCounter* done_;
  int64_t count_ = 0;
  double first_ = 0, last_ = 0;
};

// tokens/s of the engine from the moment that all streams run.
double EngineRate(Engine& engine, const SlotRunner& shapes, int streams, int tokens) {
  absl::BlockingCounter done(streams);
  std::vector<std::shared_ptr<CountingSink>> sinks;
  for (int i = 0; i < streams; ++i) {
    EngineRequest request;
    request.prompt = Ids(shapes, 64 + i % static_cast<int>(shapes.config().stride), i);
    auto sampling = std::make_shared<SamplingParams>();
    sampling->temperature = 0;
    request.sampling = sampling;
    request.max_tokens = tokens;
    sinks.push_back(std::make_shared<CountingSink>(&done));
    request.sink = sinks.back();
    OrDie(engine.Submit(std::move(request)));
  }
  done.Wait();
  double first = 0, last = 0;
  int64_t total = 0;
  for (const auto& sink : sinks) {
    first = std::max(first, sink->first());
    last = std::max(last, sink->last());
    total += sink->count();
  }
  return static_cast<double>(total) * (1.0 - 1.0 / tokens) / (last - first);
}

nlohmann::json Ratio(const char* over, double a, const char* under, double b) {
  return {{over, a}, {under, b}, {"ratio", a / b}};
}

}  // namespace

nlohmann::json EngineOverModel(const ModelBenchOptions& options, int streams, int tokens) {
  auto runner = OrDie(NewSlotRunner(Runner(options, streams)));
  Engine::Options engine_options;
  engine_options.ingest_tokens_per_step = 1 << 20;  // all streams start together: decode is what is compared
  Engine engine(engine_options, OrDie(NewTorchExecutor(Runner(options, streams))), nullptr);
  const Pair rate = Alternate(
      options.rounds, [&] { return EngineRate(engine, *runner, streams, tokens); },
      [&] {
        Prefill(*runner, streams, 64);
        return StepRate(*runner, streams, tokens);
      });
  engine.Drain();
  nlohmann::json result = Ratio("engine_tok_s", rate.a, "model_tok_s", rate.b);
  result["streams"] = streams;
  return result;
}

nlohmann::json HopOverSlide(const ModelBenchOptions& options, int tokens) {
  RunnerOptions hop = Runner(options, 1), slide = Runner(options, 1);
  hop.window_policy = WindowPolicy::kHop;
  slide.window_policy = WindowPolicy::kSlide;
  auto a = OrDie(NewSlotRunner(hop)), b = OrDie(NewSlotRunner(slide));
  Prefill(*a, 1, 400);
  Prefill(*b, 1, 400);
  const Pair rate = Alternate(
      options.rounds, [&] { return StepRate(*a, 1, tokens); }, [&] { return StepRate(*b, 1, tokens); });
  return Ratio("hop_tok_s", rate.a, "slide_tok_s", rate.b);
}

nlohmann::json FlatCost(const ModelBenchOptions& options, int early, int late, int tokens) {
  auto runner = OrDie(NewSlotRunner(Runner(options, 2)));
  // Both sessions live side by side so that the two measurements can alternate.
  const std::vector<int32_t> ids = Ids(*runner, late, 7);
  const SlotRunner::Chunk first{0, {ids.data(), static_cast<size_t>(early)}};
  runner->Ingest({&first, 1});
  const double resident_early = ResidentBytes();
  const SlotRunner::Chunk second{1, ids};
  runner->Ingest({&second, 1});
  const double resident_late = ResidentBytes();
  std::vector<float> logits(runner->config().vocab_size);
  auto inter_token = [&](int32_t slot) {
    std::vector<double> times;
    for (int i = 0; i < tokens; ++i) {
      const double start = Seconds();
      runner->Step({&slot, 1}, {&ids[i], 1}, logits.data());
      times.push_back(Seconds() - start);
    }
    return std::accumulate(times.begin(), times.end(), 0.0) / static_cast<double>(times.size());
  };
  const Pair time = Alternate(
      options.rounds, [&] { return inter_token(1); }, [&] { return inter_token(0); });
  nlohmann::json result = Ratio("late_s", time.a, "early_s", time.b);
  result["late_position"] = late;
  result["early_position"] = early;
  result["resident_ratio"] = resident_late / resident_early;
  return result;
}

nlohmann::json IngestOverStep(const ModelBenchOptions& options, int prompt_tokens) {
  auto runner = OrDie(NewSlotRunner(Runner(options, 2)));
  const std::vector<int32_t> ids = Ids(*runner, prompt_tokens, 7);
  Prefill(*runner, 2, 64);
  const Pair rate = Alternate(
      options.rounds,
      [&] {
        runner->Reset(1);
        const SlotRunner::Chunk chunk{1, ids};
        const double start = Seconds();
        runner->Ingest({&chunk, 1});
        return static_cast<double>(prompt_tokens) / (Seconds() - start);
      },
      [&] { return StepRate(*runner, 1, 800); });
  nlohmann::json result = Ratio("ingest_tok_s", rate.a, "step_tok_s", rate.b);
  result["prompt_tokens"] = prompt_tokens;
  return result;
}

nlohmann::json DeterminismPrice(const ModelBenchOptions& options, int streams, int tokens) {
  RunnerOptions free_options = Runner(options, streams);
  free_options.deterministic = false;
  auto fixed = OrDie(NewSlotRunner(Runner(options, streams))), free = OrDie(NewSlotRunner(free_options));
  Prefill(*fixed, streams, 64);
  Prefill(*free, streams, 64);
  const Pair rate = Alternate(
      options.rounds, [&] { return StepRate(*free, streams, tokens); },
      [&] { return StepRate(*fixed, streams, tokens); });
  nlohmann::json result = {
      {"nondeterministic_tok_s", rate.a}, {"deterministic_tok_s", rate.b}, {"price", rate.a / rate.b}};
  result["streams"] = streams;
  result["nondeterministic"] = free->numerics_id();
  result["deterministic"] = fixed->numerics_id();
  return result;
}

}  // namespace smt::bench
