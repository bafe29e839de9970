#include "tests/benchmarks/model_bench.h"

#include <cstdlib>
#include <iostream>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "model/runners.h"
#include "tests/benchmarks/bench_util.h"
#include "tests/benchmarks/engine_rate.h"
#include "tests/benchmarks/runner_util.h"

namespace smt::bench {
namespace {

// Brings the first `streams` slots to different phases around `position`.
void Prefill(SlotRunner& runner, int streams, int position) {
  for (int slot = 0; slot < streams; ++slot) {
    const std::vector<int32_t> ids =
        Ids(runner.config().vocab_size, position + slot % static_cast<int>(runner.config().stride), slot);
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
  const std::vector<int32_t> text = Ids(runner.config().vocab_size, tokens * streams, 99);
  runner.Step(slots, {text.data(), static_cast<size_t>(streams)}, logits.data());  // rebuilds the caches
  const double start = Seconds();
  for (int i = 1; i < tokens; ++i) {
    runner.Step(slots, {text.data() + static_cast<size_t>(i) * streams, static_cast<size_t>(streams)}, logits.data());
  }
  return (tokens - 1) * streams / (Seconds() - start);
}

nlohmann::json Ratio(const char* over, double a, const char* under, double b) {
  return {{over, a}, {under, b}, {"ratio", a / b}};
}

}  // namespace

nlohmann::json EngineOverModel(const ModelBenchOptions& options, int streams, int tokens) {
  auto runner = OrDie(NewSlotRunner(Runner(options, streams)));
  const auto engine = OrDie(EngineUnderTest::New(options, streams));
  const Pair rate = Alternate(
      options.rounds, [&] { return engine->Rate({.streams = streams, .tokens = tokens}); },
      [&] {
        Prefill(*runner, streams, 64);
        return StepRate(*runner, streams, tokens);
      });
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
  const std::vector<int32_t> ids = Ids(runner->config().vocab_size, late, 7);
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
  const std::vector<int32_t> ids = Ids(runner->config().vocab_size, prompt_tokens, 7);
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
  free_options.impl = RunnerOptions::Impl::kTorch;  // LibTorch with MKL, batched plainly
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
