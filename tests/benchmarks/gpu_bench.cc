#include "tests/benchmarks/gpu_bench.h"

#include <fstream>
#include <memory>
#include <numeric>
#include <utility>

#include "model/runners.h"
#include "tests/benchmarks/bench_util.h"
#include "tests/benchmarks/runner_util.h"

namespace smt::bench {
namespace {

std::unique_ptr<SlotRunner> Runner(const GpuBenchOptions& options, int slots, WindowPolicy policy) {
  return OrDie(NewSlotRunner({.model_dir = options.model_dir,
                              .device = options.device,
                              .dtype = options.dtype,
                              .slots = slots,
                              .window_policy = policy,
                              .impl = RunnerOptions::Impl::kCudaKernels}));
}

std::vector<int32_t> Slots(int count) {
  std::vector<int32_t> slots(static_cast<size_t>(count));
  std::iota(slots.begin(), slots.end(), 0);
  return slots;
}

// Puts each slot at another phase, its memory full.
void Prefill(SlotRunner& runner, int slots) {
  const auto& config = runner.config();
  std::vector<std::vector<int32_t>> texts;
  std::vector<SlotRunner::Chunk> chunks;
  const auto length = static_cast<int>(config.stride * (config.n_ssm_outputs + 2));
  for (int slot = 0; slot < slots; ++slot) {
    runner.Reset(slot);
    const int phase = slot % static_cast<int>(config.stride);
    texts.push_back(Ids(config.vocab_size, length + phase, static_cast<uint32_t>(slot)));
  }
  for (int slot = 0; slot < slots; ++slot) chunks.push_back({slot, texts[static_cast<size_t>(slot)]});
  runner.Ingest(chunks);
}

// tokens/s of drawing (temperature 0.8, top_p 0.95) in all slots; whole strides, so every phase counts alike.
double DrawRate(SlotRunner& runner, int slots, int tokens) {
  const std::vector<int32_t> all = Slots(slots);
  std::vector<SlotRunner::Draw> draws(all.size());
  for (size_t i = 0; i < draws.size(); ++i) draws[i] = {.temperature = 0.8f, .top_p = 0.95f, .seed = i};
  std::vector<int32_t> ids(all.size());
  runner.StepAndDraw(all, {}, draws, ids.data());  // rebuilds the caches
  const double start = Seconds();
  for (int i = 0; i < tokens; ++i) {
    const std::vector<int32_t> last = ids;
    runner.StepAndDraw(all, last, draws, ids.data());
  }
  return tokens * slots / (Seconds() - start);
}

double MedianOf(int rounds, const std::function<double()>& measure) {
  std::vector<double> values;
  for (int i = 0; i < rounds; ++i) values.push_back(measure());
  return Median(values);
}

// Seconds of a write of each of `slots` sessions: one stride absorbed.
double WriteSeconds(SlotRunner& runner, int slots, int repeats) {
  const std::vector<int32_t> ids = Ids(runner.config().vocab_size, static_cast<int>(runner.config().stride), 5);
  std::vector<SlotRunner::Chunk> chunks;
  for (int slot = 0; slot < slots; ++slot) {
    runner.Reset(slot);
    chunks.push_back({slot, ids});
  }
  std::vector<std::byte> state(runner.layout().bytes());
  runner.Ingest(chunks);
  runner.Save(0, state);  // waits for the device
  const double start = Seconds();
  for (int i = 0; i < repeats; ++i) runner.Ingest(chunks);
  runner.Save(0, state);
  return (Seconds() - start) / repeats;
}

double IngestRate(SlotRunner& runner, int slots, int tokens) {
  const std::vector<int32_t> ids = Ids(runner.config().vocab_size, tokens, 6);
  std::vector<SlotRunner::Chunk> chunks;
  for (int slot = 0; slot < slots; ++slot) {
    runner.Reset(slot);
    chunks.push_back({slot, ids});
  }
  std::vector<std::byte> state(runner.layout().bytes());
  const double start = Seconds();
  runner.Ingest(chunks);
  runner.Save(0, state);
  return static_cast<double>(tokens) * slots / (Seconds() - start);
}

void Compare(const std::string& file, nlohmann::json* figures) {
  const nlohmann::json baseline = nlohmann::json::parse(std::ifstream(file));
  for (auto& [line, batches] : figures->items()) {
    for (auto& [batch, values] : batches.items()) {
      if (!baseline.contains(line) || !baseline[line].contains(batch)) continue;
      nlohmann::json ratios;
      for (const auto& [name, theirs] : baseline[line][batch].items()) {
        const bool rate = name.ends_with("tok_s");
        const char* const ours = rate ? "tok_s" : "ms";
        if ((!rate && !name.ends_with("_ms")) || !values.contains(ours)) continue;
        const double own = values[ours].get<double>(), other = theirs.get<double>();
        ratios["speed_over_" + name] = rate ? own / other : other / own;
      }
      values.update(ratios);
    }
  }
}

}  // namespace

nlohmann::json GpuFigures(const GpuBenchOptions& options) {
  nlohmann::json figures;
  const int most = *std::max_element(options.batches.begin(), options.batches.end());
  const auto wanted = [&](const char* line) {
    return options.lines.empty() || std::find(options.lines.begin(), options.lines.end(), line) != options.lines.end();
  };
  for (const WindowPolicy policy : {WindowPolicy::kHop, WindowPolicy::kSlide}) {
    const bool hop = policy == WindowPolicy::kHop;
    if (!hop && !wanted("slide")) continue;
    const auto runner = Runner(options, most, policy);
    for (const int batch : options.batches) {
      if (hop ? !wanted("hop_whole") : batch > 256) continue;
      Prefill(*runner, batch);
      const int tokens = static_cast<int>(runner->config().stride) * (batch >= 256 || !hop ? 2 : 8);
      const double rate = MedianOf(options.rounds, [&] { return DrawRate(*runner, batch, tokens); });
      figures[hop ? "hop_whole" : "slide"][std::to_string(batch)] = {{"tok_s", rate}, {"ms", batch / rate * 1e3}};
    }
    if (!hop) continue;
    for (const int batch : {1, 4, 16, 64, 256}) {
      if (batch > most || !wanted("write")) continue;
      const double seconds = MedianOf(options.rounds, [&] { return WriteSeconds(*runner, batch, 20); });
      figures["write"][std::to_string(batch)] = {{"ms", seconds * 1e3}};
    }
    for (const int batch : {1, 64}) {
      if (batch > most || !wanted("ingest")) continue;
      const double rate = MedianOf(options.rounds, [&] { return IngestRate(*runner, batch, 4096); });
      figures["ingest"][std::to_string(batch)] = {{"tok_s", rate}};
    }
    if (!wanted("save_restore")) continue;
    std::vector<std::byte> state(runner->layout().bytes());
    const double seconds = MedianOf(options.rounds * 20, [&] {
      const double start = Seconds();
      runner->Save(0, state);
      runner->Load(0, state);
      return Seconds() - start;
    });
    figures["save_restore"]["1"] = {{"ms", seconds * 1e3}};
    figures["slot"]["1"] = {{"state_bytes", runner->layout().bytes()}, {"slot_bytes", runner->slot_bytes()}};
  }
  if (!options.baseline.empty()) Compare(options.baseline, &figures);
  return figures;
}

}  // namespace smt::bench
