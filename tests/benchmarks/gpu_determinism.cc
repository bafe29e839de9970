// determinism_price: our deterministic steps against the fastest way without determinism that this build has. Today
// that is LibTorch's operators, taken without drawing (they give logits to the host, where drawing for many sessions
// would take longer than they do); an Executor that says it is not deterministic counts too.
#include <algorithm>
#include <iostream>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/base/status_macros.h"
#include "server/engine/torch_executor.h"
#include "tests/benchmarks/bench_util.h"
#include "tests/benchmarks/executor_drive.h"
#include "tests/benchmarks/gpu_executor.h"
#include "tests/benchmarks/gpu_lines.h"
#include "tests/benchmarks/random_ids.h"

namespace smt::bench {

using nlohmann::json;

namespace {

// Steps of some implementation; each call of `seconds` gives those of one step, over whole strides.
struct Way {
  std::string name;
  std::function<absl::Status(int batch)> prepare;
  std::function<absl::StatusOr<double>(int batch, int64_t strides)> seconds;
};

Way WayOf(std::shared_ptr<Executor> executor, int64_t length) {
  return {.name = executor->info().numerics_id,
          .prepare = [=](int batch) -> absl::Status {
            ExecutorDrive drive(*executor);
            const std::vector<int32_t> slots = SlotRange(0, batch);
            RETURN_IF_ERROR(drive.Fill(slots, length));
            return drive.Draw(slots, 1, 2 * executor->info().stride).status();
          },
          .seconds = [=](int batch, int64_t strides) -> absl::StatusOr<double> {
            const int64_t steps = strides * executor->info().stride;
            ASSIGN_OR_RETURN(const Stretch stretch, ExecutorDrive(*executor).Draw(SlotRange(0, batch), 2, steps));
            return stretch.seconds / static_cast<double>(steps);
          }};
}

Way WayOf(std::shared_ptr<SlotRunner> runner, int64_t length) {
  const auto step = [=](int batch, int64_t steps) {
    const std::vector<int32_t> slots = SlotRange(0, batch);
    const std::vector<int32_t> ids = Ids(runner->config().vocab_size, steps * batch, 99);
    std::vector<float> logits(static_cast<size_t>(batch) * static_cast<size_t>(runner->config().vocab_size));
    for (int64_t i = 0; i < steps; ++i) {
      runner->Step(slots, std::span(ids).subspan(static_cast<size_t>(i * batch), slots.size()), logits.data());
    }
  };
  return {.name = runner->numerics_id(),
          .prepare = [=](int batch) -> absl::Status {
            std::vector<SlotRunner::Chunk> chunks;
            std::vector<std::vector<int32_t>> texts;
            for (const int32_t slot : SlotRange(0, batch)) {
              runner->Reset(slot);
              texts.push_back(Ids(runner->config().vocab_size, length + slot % runner->config().stride,
                                  static_cast<uint32_t>(slot)));
            }
            for (const int32_t slot : SlotRange(0, batch)) chunks.push_back({slot, texts[static_cast<size_t>(slot)]});
            runner->Ingest(chunks);
            step(batch, runner->config().stride);
            return absl::OkStatus();
          },
          .seconds = [=](int batch, int64_t strides) -> absl::StatusOr<double> {
            const int64_t steps = strides * runner->config().stride;
            step(batch, 1);
            const double start = Seconds();
            step(batch, steps);
            return (Seconds() - start) / static_cast<double>(steps);
          }};
}

// Every way without determinism that there is.
std::vector<Way> FreeWays(const GpuBenchOptions& options, int slots, int64_t length) {
  std::vector<Way> ways;
  RunnerOptions runner = GpuRunner(options, slots);
  runner.deterministic = false;
  if (auto executor = NewTorchExecutor(runner); executor.ok() && !(*executor)->info().deterministic) {
    ways.push_back(WayOf(std::shared_ptr<Executor>(*std::move(executor)), length));
  }
  runner.impl = RunnerOptions::Impl::kTorch;
  if (auto torch = NewSlotRunner(runner); torch.ok()) {
    ways.push_back(WayOf(std::shared_ptr<SlotRunner>(*std::move(torch)), length));
  } else {
    std::cerr << "  without LibTorch's operators: " << torch.status() << "\n";
  }
  return ways;
}

absl::StatusOr<json> Price(const GpuBenchOptions& options, const Way& ours, const std::vector<Way>& others, int batch) {
  const int64_t strides = options.Scale(batch <= 64 ? 4 : 1, 1);
  RETURN_IF_ERROR(ours.prepare(batch));
  for (const Way& way : others) RETURN_IF_ERROR(way.prepare(batch));
  std::vector<double> own;
  std::vector<std::vector<double>> theirs(others.size());
  for (int round = 0; round < options.rounds; ++round) {
    ASSIGN_OR_RETURN(own.emplace_back(), ours.seconds(batch, strides));
    for (size_t i = 0; i < others.size(); ++i) {
      ASSIGN_OR_RETURN(theirs[i].emplace_back(), others[i].seconds(batch, strides));
    }
  }
  size_t fastest = 0;
  for (size_t i = 1; i < others.size(); ++i) {
    if (Median(theirs[i]) < Median(theirs[fastest])) fastest = i;
  }
  const double deterministic = Median(own), free = Median(theirs[fastest]);
  return json{{"deterministic_ms", deterministic * 1e3},
              {"nondeterministic_ms", free * 1e3},
              {"price", deterministic / free},
              {"deterministic", ours.name},
              {"nondeterministic", others[fastest].name}};
}

}  // namespace

json DeterminismPriceLine(const GpuBenchOptions& options) {
  const absl::StatusOr<int64_t> length = FullLength(options);
  if (!length.ok()) return {{"1", Skipped(length.status())}};
  std::vector<Way> free_ways;  // on as many slots as ours
  bool none = false;
  json figures = OverBatches(
      GpuRunner(options, 1), WholeTokenBatches(options), [](int batch) { return batch; },
      [&](Executor& executor, int batch) -> absl::StatusOr<json> {
        if (free_ways.empty() && !none) free_ways = FreeWays(options, executor.info().slots, *length);
        none = free_ways.empty();
        if (none) return absl::UnavailableError("this build has no way without determinism");
        const std::shared_ptr<Executor> borrowed(&executor, [](Executor*) {});
        return Price(options, WayOf(borrowed, *length), free_ways, batch);
      });
  return none ? json() : figures;
}

}  // namespace smt::bench
