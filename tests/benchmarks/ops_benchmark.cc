// The CPU kernels: matrix products against LibTorch's (MKL) in the same run, and the bundled model stepped, both
// policies, and ingesting.
//
//   ops_benchmark --benchmark_filter=Linear        GMAC/s of ours and of at::linear, by rows
//   ops_benchmark --benchmark_filter='Step|Ingest'  seconds a token
//
// Two threads each. Run from the repository root.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <benchmark/benchmark.h>

#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "model/checkpoint.h"
#include "model/cpu_slot_runner.h"
#include "model/ops/packed_linear.h"

namespace smt {
namespace {

constexpr int kThreads = 2;

std::vector<float> Random(int64_t count, bool bf16) {
  std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& x : values) x = bf16 ? ops::FromBf16(ops::ToBf16(normal(engine))) : normal(engine);
  return values;
}

void CountProducts(benchmark::State& state, int64_t m, int64_t k, int64_t n) {
  state.counters["GMAC/s"] = benchmark::Counter(
      static_cast<double>(m * k * n) * 1e-9 * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

// rows, k, n, weights kept in bfloat16.
void BM_Linear(benchmark::State& state) {
  const int64_t m = state.range(0), k = state.range(1), n = state.range(2);
  const std::vector<float> w = Random(k * n, state.range(3) != 0), x = Random(m * k, false);
  std::vector<float> y(static_cast<size_t>(m * n));
  const ops::PackedLinear linear(w.data(), k, n, n, 1, nullptr);
  ops::ThreadPool pool(kThreads);
  const ops::ThreadPool::Region region(pool);
  for (auto _ : state) {
    linear.Forward(ops::BestKernels(), pool, x.data(), k, m, y.data(), n);
    benchmark::ClobberMemory();
  }
  CountProducts(state, m, k, n);
}

void BM_LinearOfLibTorch(benchmark::State& state) {
  at::set_num_threads(kThreads);
  const at::NoGradGuard no_grad;
  const int64_t m = state.range(0), k = state.range(1), n = state.range(2);
  const at::Tensor w = at::randn({n, k}), x = at::randn({m, k});
  for (auto _ : state) benchmark::DoNotOptimize(at::linear(x, w));
  CountProducts(state, m, k, n);
}

void Shapes(benchmark::internal::Benchmark* benchmark, bool with_dtype) {
  const int64_t widths[][2] = {{256, 768}, {1024, 256}, {256, 4096}, {768, 3072}};
  for (const auto& [k, n] : widths) {
    for (const int64_t m : {1, 2, 4, 8, 16, 64}) {
      if (!with_dtype) {
        benchmark->Args({m, k, n});
        continue;
      }
      for (const int64_t bf16 : {1, 0}) benchmark->Args({m, k, n, bf16});
    }
  }
  benchmark->UseRealTime();
}
BENCHMARK(BM_Linear)->Apply([](auto* b) { Shapes(b, true); });
BENCHMARK(BM_LinearOfLibTorch)->Apply([](auto* b) { Shapes(b, false); });

std::unique_ptr<SlotRunner> Runner(WindowPolicy policy, int32_t slots) {
  static const std::shared_ptr<const Checkpoint> checkpoint = *Checkpoint::Open("models/books-6m");
  StrideHybridConfig config = checkpoint->config();
  config.window_policy = policy;
  const WeightSource source = [](const std::string& name, const std::vector<int64_t>& shape) {
    return checkpoint->Float32(name, shape);
  };
  return *NewCpuSlotRunner(config, source, {.slots = slots, .threads = kThreads});
}

std::vector<int32_t> Text(int64_t count) {
  std::mt19937 engine(2);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = static_cast<int32_t>(engine() % 4096);
  return ids;
}

// streams, at evenly spread phases.
void BM_Step(benchmark::State& state, WindowPolicy policy) {
  const int32_t streams = static_cast<int32_t>(state.range(0));
  const auto runner = Runner(policy, streams);
  const std::vector<int32_t> text = Text(200);
  std::vector<int32_t> slots, ids;
  for (int32_t i = 0; i < streams; ++i) {
    slots.push_back(i);
    ids.push_back(text[static_cast<size_t>(i)]);
    runner->Ingest(std::vector<SlotRunner::Chunk>{{i, std::span(text).first(static_cast<size_t>(100 + i % 16))}});
  }
  std::vector<float> logits(static_cast<size_t>(streams) * 4096);
  runner->Step(slots, ids, logits.data());
  for (auto _ : state) runner->Step(slots, ids, logits.data());
  state.counters["tokens/s"] =
      benchmark::Counter(streams * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}
BENCHMARK_CAPTURE(BM_Step, hop, WindowPolicy::kHop)->Arg(1)->Arg(4)->Arg(16)->Arg(64)->UseRealTime();
BENCHMARK_CAPTURE(BM_Step, slide, WindowPolicy::kSlide)->Arg(1)->Arg(16)->UseRealTime();

void BM_Ingest(benchmark::State& state) {
  const auto runner = Runner(WindowPolicy::kHop, 1);
  const std::vector<int32_t> text = Text(16000);
  for (auto _ : state) runner->Ingest(std::vector<SlotRunner::Chunk>{{0, text}});
  state.counters["tokens/s"] =
      benchmark::Counter(16000 * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}
BENCHMARK(BM_Ingest)->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace smt

BENCHMARK_MAIN();
