// What every Executor promises (server/engine/executor.h), on each implementation. Small random models of odd shapes;
// the GPU's turn is skipped, saying why, where there is none.
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <ostream>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/cpu_slot_runner.h"
#include "model/cuda/abi.h"
#include "model/cuda_plugin.h"
#include "model/device.h"
#include "model/torch_slot_runner.h"
#include "server/engine/cuda_executor.h"
#include "server/engine/executor.h"
#include "server/engine/torch_executor.h"
#include "tests/model/tiny_models.h"
#include "tests/server/engine/background_runner.h"

namespace smt {
namespace {

using testing::HasSubstr;
using Bytes = std::vector<std::byte>;
using Ids = std::vector<int32_t>;

constexpr int32_t kSlots = 4;

// Asked once, before LibTorch is asked about CUDA by anything else.
class Gpu : public testing::Environment {
 public:
  void SetUp() override { device() = ResolveDevice("cuda"); }
  static absl::StatusOr<Device>& device() {
    static absl::StatusOr<Device> device = absl::UnknownError("not asked yet");
    return device;
  }
};
const testing::Environment* const kGpu = testing::AddGlobalTestEnvironment(new Gpu);

std::unique_ptr<SlotRunner> TorchRunner(const StrideHybridConfig& config, const std::string& device) {
  StrideHybridModel model = RandomModel(config);
  model->to(at::Device(device));
  return *NewTorchSlotRunner(model, {.slots = kSlots, .deterministic = true, .window_policy = std::nullopt});
}

WeightSource RandomWeights(const StrideHybridConfig& config) {
  return [model = RandomModel(config)](const std::string& name, const std::vector<int64_t>&) {
    const at::Tensor value = model->named_parameters()[name].detach().contiguous();
    return absl::StatusOr<std::vector<float>>(
        std::vector<float>(value.data_ptr<float>(), value.data_ptr<float>() + value.numel()));
  };
}

std::unique_ptr<SlotRunner> KernelRunner(const StrideHybridConfig& config) {
  return *NewCpuSlotRunner(config, RandomWeights(config), {.slots = kSlots, .threads = 2});
}

std::unique_ptr<SlotRunner> CudaKernelRunner(const StrideHybridConfig& config, bool bfloat16) {
  return *(*LoadCudaModule())
              ->new_runner(config, RandomWeights(config), {.index = 0, .slots = kSlots, .bfloat16 = bfloat16});
}

struct Implementation {
  std::string name;
  bool gpu;
  std::function<std::unique_ptr<Executor>(const StrideHybridConfig& config)> make;
};
// Without it a failing test would name its parameter in raw bytes.
void PrintTo(const Implementation& implementation, std::ostream* out) { *out << implementation.name; }

const Implementation kImplementations[] = {
    {"CpuKernels", false, [](const auto& config) { return NewTorchExecutor(KernelRunner(config), "cpu", "float32"); }},
    // What serves a GPU, on a CPU's numbers.
    {"BackgroundCpu", false,
     [](const auto& config) {
       return NewCudaExecutor(std::make_unique<BackgroundRunner>(KernelRunner(config)), "cpu", "float32");
     }},
    {"TorchCpu", false,
     [](const auto& config) { return NewTorchExecutor(TorchRunner(config, "cpu"), "cpu", "float32"); }},
    {"TorchCuda", true,
     [](const auto& config) { return NewTorchExecutor(TorchRunner(config, "cuda:0"), "cuda:0", "float32"); }},
    {"Cuda", true,
     [](const auto& config) { return NewCudaExecutor(CudaKernelRunner(config, false), "cuda:0", "float32"); }},
    {"CudaBfloat16", true,
     [](const auto& config) { return NewCudaExecutor(CudaKernelRunner(config, true), "cuda:0", "bfloat16"); }},
    {"CudaKernelsStepwise", true,
     [](const auto& config) { return NewTorchExecutor(CudaKernelRunner(config, true), "cuda:0", "bfloat16"); }},
};

// Parameters that differ from the defaults as `change` makes them.
std::shared_ptr<const SamplingParams> Params(const std::function<void(SamplingParams&)>& change) {
  SamplingParams params;
  change(params);
  return std::make_shared<const SamplingParams>(std::move(params));
}
std::shared_ptr<const SamplingParams> Greedy() {
  return Params([](SamplingParams& p) { p.temperature = 0; });
}
std::shared_ptr<const SamplingParams> Seeded(uint64_t seed) {
  return Params([=](SamplingParams& p) { p.seed = seed; });
}

class ExecutorTest : public testing::TestWithParam<std::tuple<Implementation, size_t>> {
 protected:
  void SetUp() override {
    const auto& [implementation, model] = GetParam();
    if (implementation.gpu && !Gpu::device().ok()) GTEST_SKIP() << Gpu::device().status().message();
    executor_ = implementation.make(TinyCases()[model].config);
    text_ = RandomIds(80, executor_->info().vocab_size);
  }

  // Until nothing is deferred any more.
  StepResult Run(const std::vector<PlanItem>& plan) {
    const absl::StatusOr<Ticket> ticket = executor_->Submit(plan);
    EXPECT_TRUE(ticket.ok()) << ticket.status();
    StepResult result;
    const absl::StatusOr<bool> done = executor_->Poll(*ticket, /*wait=*/true, &result);
    EXPECT_TRUE(done.ok() && *done) << done.status();
    EXPECT_EQ(result.items.size(), plan.size());
    std::vector<PlanItem> again;
    std::vector<size_t> at;
    for (size_t i = 0; i < result.items.size(); ++i) {
      if (!result.items[i].deferred) continue;
      again.push_back(plan[i]);
      at.push_back(i);
    }
    if (!again.empty()) {
      StepResult rest = Run(again);
      for (size_t i = 0; i < at.size(); ++i) result.items[at[i]] = std::move(rest.items[i]);
    }
    return result;
  }
  void Wait(Ticket ticket) {
    const absl::StatusOr<bool> done = executor_->Poll(ticket, /*wait=*/true, nullptr);
    EXPECT_TRUE(done.ok() && *done) << done.status();
  }
  void Ingest(int32_t slot, std::span<const int32_t> ids) { Run({{.slot = slot, .ids = ids}}); }
  Bytes Save(int32_t slot) {
    Bytes state(executor_->info().state_bytes);
    Wait(executor_->Save(slot, state));
    return state;
  }
  // `count` ids drawn in `slot`: the first after `prompt` (may be empty), the others after the one before.
  Ids Generate(int32_t slot, std::span<const int32_t> prompt, int count) {
    Ids drawn = {Run({{.slot = slot, .ids = prompt, .want = Want::kSample}}).items[0].id};
    while (static_cast<int>(drawn.size()) < count) {
      drawn.push_back(Run({{.slot = slot, .append_last_sampled = true, .want = Want::kSample}}).items[0].id);
    }
    return drawn;
  }
  std::span<const int32_t> Text(size_t first, size_t count) { return std::span(text_).subspan(first, count); }
  absl::StatusCode SubmitCode(const std::vector<PlanItem>& plan) { return executor_->Submit(plan).status().code(); }

  at::NoGradGuard no_grad_;
  std::unique_ptr<Executor> executor_;
  Ids text_;
};

TEST_P(ExecutorTest, InfoSaysWhatTheModelAndTheSlotsAre) {
  const ExecutorInfo& info = executor_->info();
  const StrideHybridConfig& config = TinyCases()[std::get<1>(GetParam())].config;
  EXPECT_EQ(info.slots, kSlots);
  EXPECT_EQ(info.vocab_size, config.vocab_size);
  EXPECT_EQ(info.stride, config.stride);
  EXPECT_EQ(info.input_tokens, config.m_input_tokens);
  EXPECT_EQ(info.state_bytes, static_cast<int64_t>(StateLayout(config).bytes()));
  EXPECT_GE(info.slot_bytes, info.state_bytes);
  EXPECT_GE(info.max_in_flight, 1);
  EXPECT_TRUE(info.deterministic);
  EXPECT_FALSE(info.numerics_id.empty());
}

TEST_P(ExecutorTest, PositionCountsAppendedIdsAndNotTheDrawnOne) {
  executor_->BindSampling(0, Greedy(), {}, {});
  EXPECT_EQ(executor_->position(0), 0);
  Run({{.slot = 0, .ids = Text(0, 21), .want = Want::kSample}});
  EXPECT_EQ(executor_->position(0), 21);
  Run({{.slot = 0, .append_last_sampled = true, .ids = Text(21, 2), .want = Want::kNothing}});
  EXPECT_EQ(executor_->position(0), 24);
  EXPECT_EQ(executor_->position(1), 0);
  executor_->Reset(0);
  EXPECT_EQ(executor_->position(0), 0);
}

TEST_P(ExecutorTest, GreedyDrawsAreTheLikeliestIdsOfTheirScores) {
  executor_->BindSampling(0, Params([](SamplingParams& p) { p.temperature = 0, p.top_logprobs = 2; }), {}, {});
  Ids ids(text_.begin(), text_.begin() + 19);
  StepResult result = Run({{.slot = 0, .ids = ids, .want = Want::kSample}});
  for (int i = 0; i < 30; ++i) {
    const ItemResult drawn = result.items[0];
    ASSERT_EQ(drawn.logprobs.top.size(), 2u);
    EXPECT_EQ(drawn.logprobs.top[0].first, drawn.id);
    EXPECT_EQ(drawn.logprobs.top[0].second, drawn.logprobs.logprob);
    // The same text scored in another slot, at once.
    executor_->Reset(1);
    Ids targets(ids.begin() + 1, ids.end());
    targets.push_back(drawn.id);
    const StepResult scored =
        Run({{.slot = 1, .ids = ids, .want = Want::kScore, .targets = targets, .top_logprobs = 1}});
    ASSERT_EQ(scored.items[0].scores.size(), targets.size());
    EXPECT_EQ(scored.items[0].scores.back().logprob, drawn.logprobs.logprob);
    EXPECT_EQ(scored.items[0].scores.back().top[0].first, drawn.id);
    ids.push_back(drawn.id);
    result = Run({{.slot = 0, .append_last_sampled = true, .want = Want::kSample}});
  }
}

TEST_P(ExecutorTest, DrawsDependOnSeedAndTextAndNotOnSlotCompanyOrChunks) {
  executor_->BindSampling(0, Seeded(7), {}, {});
  const Ids expected = Generate(0, Text(0, 30), 25);
  executor_->BindSampling(0, Seeded(8), {}, {});
  executor_->Reset(0);
  EXPECT_NE(Generate(0, Text(0, 30), 25), expected);

  executor_->BindSampling(2, Seeded(7), {}, {});
  executor_->BindSampling(3, Seeded(9), {}, {});
  Ingest(2, Text(0, 13));
  Ingest(2, Text(13, 1));
  Run({{.slot = 2, .ids = Text(14, 16)}, {.slot = 1, .ids = Text(3, 9)}});
  Ids drawn;
  for (size_t i = 0; i < 25; ++i) {
    const StepResult result = Run({{.slot = 3, .append_last_sampled = i > 0, .ids = Text(i, 2), .want = Want::kSample},
                                   {.slot = 1, .ids = Text(i, i % 5)},
                                   {.slot = 2, .append_last_sampled = i > 0, .want = Want::kSample}});
    drawn.push_back(result.items[2].id);
  }
  EXPECT_EQ(drawn, expected);
}

TEST_P(ExecutorTest, ASavedStateLoadedElsewhereGoesOnTheSame) {
  executor_->BindSampling(0, Seeded(3), {}, {});
  Ingest(0, Text(0, 26));
  const Bytes state = Save(0);
  const Ids expected = Generate(0, {}, 20);
  Wait(executor_->Load(3, state));
  EXPECT_EQ(executor_->position(3), 26);
  executor_->BindSampling(3, Seeded(3), {}, {});
  EXPECT_EQ(Generate(3, {}, 20), expected);
  EXPECT_EQ(Save(3), Save(0));
}

TEST_P(ExecutorTest, ASaveSeesWhatWasSubmittedBefore) {
  const absl::StatusOr<Ticket> step = executor_->Submit(std::vector<PlanItem>{{.slot = 0, .ids = Text(0, 33)}});
  ASSERT_TRUE(step.ok());
  Bytes state(executor_->info().state_bytes);
  const Ticket save = executor_->Save(0, state);
  Wait(save);
  Wait(*step);
  Ingest(1, Text(0, 33));
  EXPECT_EQ(state, Save(1));
}

// As the engine goes on: the next step is submitted before the last one's ids are known, for sessions of all phases and
// with saves between, and every session draws what it draws alone.
TEST_P(ExecutorTest, StepsInFlightDrawWhatStepsAloneDraw) {
  constexpr int kIds = 40;
  std::vector<Ids> alone(kSlots), together(kSlots);
  std::vector<Bytes> states;
  for (int32_t slot = 0; slot < kSlots; ++slot) {
    executor_->Reset(slot);
    executor_->BindSampling(slot, Seeded(100 + slot), {}, {});
    alone[slot] = Generate(slot, Text(slot, 17 + 2 * slot), kIds);
    Run({{.slot = slot, .append_last_sampled = true}});
    states.push_back(Save(slot));
  }
  for (int32_t slot = 0; slot < kSlots; ++slot) {
    executor_->Reset(slot);
    executor_->BindSampling(slot, Seeded(100 + slot), {}, {});
    together[slot].push_back(
        Run({{.slot = slot, .ids = Text(slot, 17 + 2 * slot), .want = Want::kSample}}).items[0].id);
  }
  struct Flight {
    Ticket ticket;
    std::vector<PlanItem> plan;
  };
  std::deque<Flight> flights;
  Ids draws_in_flight(kSlots);
  std::vector<std::pair<Ticket, std::unique_ptr<Bytes>>> saves;
  const auto take = [&] {
    StepResult result;
    const absl::StatusOr<bool> done = executor_->Poll(flights.front().ticket, /*wait=*/true, &result);
    ASSERT_TRUE(done.ok() && *done) << done.status();
    for (size_t i = 0; i < result.items.size(); ++i) {
      const int32_t slot = flights.front().plan[i].slot;
      --draws_in_flight[slot];
      if (!result.items[i].deferred) together[slot].push_back(result.items[i].id);
    }
    flights.pop_front();
  };
  for (int step = 0; step < 1000; ++step) {
    std::vector<PlanItem> plan;
    for (int32_t slot = 0; slot < kSlots; ++slot) {
      const size_t drawn = together[slot].size() + static_cast<size_t>(draws_in_flight[slot]);
      if (drawn >= kIds || (step + slot) % 7 == 0) continue;  // now and then one stays out
      plan.push_back({.slot = slot, .append_last_sampled = true, .want = Want::kSample});
      ++draws_in_flight[slot];
    }
    if (step % 5 == 3) {
      saves.emplace_back(0, std::make_unique<Bytes>(executor_->info().state_bytes));
      saves.back().first = executor_->Save(step % kSlots, *saves.back().second);
    }
    if (!plan.empty()) {
      const absl::StatusOr<Ticket> ticket = executor_->Submit(plan);
      ASSERT_TRUE(ticket.ok()) << ticket.status();
      flights.push_back({*ticket, plan});
    }
    const auto complete = [&](const Ids& ids) { return ids.size() >= kIds; };
    if (flights.empty() && std::all_of(together.begin(), together.end(), complete)) break;
    if (!flights.empty() && (flights.size() >= static_cast<size_t>(executor_->info().max_in_flight) || plan.empty()))
      take();
  }
  EXPECT_TRUE(flights.empty());
  for (const auto& [ticket, bytes] : saves) Wait(ticket);
  for (int32_t slot = 0; slot < kSlots; ++slot) {
    EXPECT_EQ(together[slot], alone[slot]) << "slot " << slot;
    Run({{.slot = slot, .append_last_sampled = true}});
    EXPECT_EQ(Save(slot), states[slot]) << "slot " << slot;
  }
}

TEST_P(ExecutorTest, ACopyIsAnotherSessionWithTheSamePast) {
  executor_->BindSampling(0, Seeded(1), {}, {});
  executor_->BindSampling(1, Seeded(1), {}, {});
  Ingest(0, Text(0, 22));
  Wait(executor_->Copy(0, 1));
  EXPECT_EQ(executor_->position(1), 22);
  const Ids expected = Generate(0, {}, 12);
  EXPECT_EQ(executor_->position(1), 22);
  EXPECT_EQ(Generate(1, {}, 12), expected);
}

TEST_P(ExecutorTest, ScoringInPiecesIsScoringAtOnce) {
  std::vector<float> at_once, pieces;
  const StepResult whole = Run({{.slot = 0, .ids = Text(0, 39), .want = Want::kScore, .targets = Text(1, 39)}});
  for (const TokenLogprobs& score : whole.items[0].scores) {
    at_once.push_back(score.logprob);
    EXPECT_LT(score.logprob, 0);
    EXPECT_TRUE(score.top.empty());
  }
  ASSERT_EQ(at_once.size(), 39u);
  for (size_t at = 0; at < 39; at += 13) {
    // In company, and with the first target of each later piece scored at the position where the last one ended.
    const StepResult result =
        Run({{.slot = 1, .ids = Text(at, 5)},
             {.slot = 2, .ids = Text(at, 12), .want = Want::kScore, .targets = Text(at + 1, 12)}});
    for (const TokenLogprobs& score : result.items[1].scores) pieces.push_back(score.logprob);
    Ingest(2, Text(at + 12, 1));
    const StepResult last = Run({{.slot = 2, .want = Want::kScore, .targets = Text(at + 13, 1)}});
    ASSERT_EQ(last.items[0].scores.size(), 1u);
    pieces.push_back(last.items[0].scores[0].logprob);
  }
  EXPECT_EQ(pieces, at_once);
}

TEST_P(ExecutorTest, PenaltiesGoOnFromWhatBindingSaysWasGenerated) {
  const auto params = Params([](SamplingParams& p) {
    p.repetition_penalty = 1.5f, p.presence_penalty = 1, p.frequency_penalty = 2, p.seed = 5;
  });
  const Ids prior(text_.begin(), text_.begin() + 5);
  executor_->BindSampling(0, params, prior, {});
  const Ids whole = Generate(0, Text(0, 20), 24);

  executor_->BindSampling(1, params, prior, {});
  Ids resumed = Generate(1, Text(0, 20), 11);
  Run({{.slot = 1, .append_last_sampled = true}});
  const Bytes state = Save(1);
  Wait(executor_->Load(2, state));
  executor_->BindSampling(2, params, prior, resumed);
  const Ids rest = Generate(2, {}, 13);
  resumed.insert(resumed.end(), rest.begin(), rest.end());
  EXPECT_EQ(resumed, whole);
  // Without them the text is another one, so the test can fail.
  executor_->Reset(3);
  executor_->BindSampling(3, Seeded(5), {}, {});
  EXPECT_NE(Generate(3, Text(0, 20), 24), whole);
}

// Log-probabilities take the draw to the host where a device can draw by itself, so both samplers are compared.
TEST_P(ExecutorTest, AskingForLogprobsDoesNotChangeWhatIsDrawn) {
  const int32_t v = executor_->info().vocab_size;
  for (uint64_t seed = 0; seed < 24; ++seed) {
    SamplingParams params;
    params.seed = seed * 7919;
    params.temperature = seed % 6 == 5 ? 0.0f : 0.3f + 0.4f * static_cast<float>(seed % 5);
    if (seed % 2 == 1) params.top_k = 1 + static_cast<int32_t>(seed * 5) % v;
    if (seed % 3 != 0) params.top_p = 0.15f * static_cast<float>(1 + seed % 6);
    if (seed % 4 == 3) params.min_p = 0.02f * static_cast<float>(seed);
    executor_->Reset(0);
    executor_->Reset(1);
    executor_->BindSampling(0, std::make_shared<const SamplingParams>(params), {}, {});
    params.top_logprobs = 0;
    executor_->BindSampling(1, std::make_shared<const SamplingParams>(params), {}, {});
    EXPECT_EQ(Generate(0, Text(seed, 5), 12), Generate(1, Text(seed, 5), 12)) << "seed " << seed;
  }
}

TEST_P(ExecutorTest, AnEmptyPlanAndAnEmptyItemDoNothing) {
  Ingest(0, Text(0, 9));
  const Bytes before = Save(0);
  Run({});
  Run({{.slot = 0}});
  EXPECT_EQ(Save(0), before);
}

TEST_P(ExecutorTest, RefusesBadPlansAndDoesNothingOfThem) {
  constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
  executor_->BindSampling(0, Greedy(), {}, {});
  Ingest(0, Text(0, 11));
  const Bytes before = Save(0);
  const int32_t v = executor_->info().vocab_size;
  const PlanItem good = {.slot = 0, .ids = Text(0, 3)};
  const Ids unknown = {1, v}, negative = {-1};
  EXPECT_EQ(SubmitCode({good, {.slot = kSlots}}), kInvalid);
  EXPECT_EQ(SubmitCode({good, {.slot = -1}}), kInvalid);
  EXPECT_EQ(SubmitCode({good, {.slot = 0}}), kInvalid) << "a slot twice";
  EXPECT_EQ(SubmitCode({good, {.slot = 1, .ids = unknown}}), kInvalid);
  EXPECT_EQ(SubmitCode({good, {.slot = 1, .ids = negative}}), kInvalid);
  EXPECT_EQ(SubmitCode({good, {.slot = 1, .append_last_sampled = true}}), kInvalid) << "nothing was drawn";
  EXPECT_EQ(SubmitCode({good, {.slot = 1, .ids = Text(0, 2), .want = Want::kSample}}), kInvalid) << "nothing bound";
  executor_->BindSampling(1, Greedy(), {}, {});
  EXPECT_EQ(SubmitCode({good, {.slot = 1, .want = Want::kSample}}), kInvalid) << "an empty slot has no logits";
  EXPECT_EQ(SubmitCode({good, {.slot = 1, .ids = Text(0, 2), .want = Want::kScore, .targets = Text(0, 1)}}), kInvalid);
  EXPECT_EQ(SubmitCode({good, {.slot = 1, .want = Want::kScore, .targets = Text(0, 1)}}), kInvalid);
  EXPECT_EQ(executor_->position(1), 0);
  EXPECT_EQ(Save(0), before);
  Run({good});
  EXPECT_EQ(executor_->position(0), 14);
}

TEST_P(ExecutorTest, ADrawnIdIsForgottenOnceOtherIdsFollow) {
  executor_->BindSampling(0, Greedy(), {}, {});
  Run({{.slot = 0, .ids = Text(0, 6), .want = Want::kSample}});
  Ingest(0, Text(6, 1));
  EXPECT_EQ(SubmitCode({{.slot = 0, .append_last_sampled = true}}), absl::StatusCode::kInvalidArgument);
}

TEST_P(ExecutorTest, RefusesAStateThatIsNotOneAndKeepsTheSlot) {
  Ingest(0, Text(0, 17));
  const Bytes state = Save(0);
  const Bytes small(state.size() - 1);
  EXPECT_EQ(executor_->Poll(executor_->Load(0, small), true, nullptr).status().code(),
            absl::StatusCode::kInvalidArgument);
  Bytes hostile = state;
  const StateLayout layout(TinyCases()[std::get<1>(GetParam())].config);
  layout.tokens(std::span<std::byte>(hostile))[0] = executor_->info().vocab_size;
  EXPECT_EQ(executor_->Poll(executor_->Load(0, hostile), true, nullptr).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Save(0), state);
  Ingest(0, Text(17, 4));
}

TEST_P(ExecutorTest, ATicketIsForgottenWhenItIsDone) {
  const Ticket ticket = executor_->Copy(0, 1);
  Wait(ticket);
  EXPECT_EQ(executor_->Poll(ticket, true, nullptr).status().code(), absl::StatusCode::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(All, ExecutorTest,
                         testing::Combine(testing::ValuesIn(kImplementations), testing::Values<size_t>(0, 2, 3)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + TinyCases()[std::get<1>(info.param)].name;
                         });

TEST(CudaCapacityTest, AsManySlotsFitAsItSaysAndNotOneMore) {
  if (!Gpu::device().ok()) GTEST_SKIP() << Gpu::device().status().message();
  StrideHybridConfig config;  // few weights, slots of tens of megabytes
  config.vocab_size = 1000;
  config.m_input_tokens = 512;
  config.d_model = 1024;
  config.transformer.n_layer = 8;
  config.transformer.n_head = 16;
  config.ssm.n_layer = 2;
  const WeightSource weights = RandomWeights(config);
  const auto make = [&](int32_t slots, bool fewer) {
    return (*LoadCudaModule())->new_runner(config, weights, {.slots = slots, .fewer_slots = fewer});
  };
  auto runner = make(1'000'000, true);
  ASSERT_TRUE(runner.ok()) << runner.status();
  const SlotCapacity capacity = (*runner)->capacity();
  EXPECT_EQ((*runner)->slots(), capacity.fits());
  EXPECT_NEAR(static_cast<double>(capacity.slot_bytes), static_cast<double>((*runner)->slot_bytes()), 1024);
  // The last slot works like the first, with all the memory taken.
  const int32_t slots[] = {0, (*runner)->slots() - 1}, ids[] = {1, 1};
  std::vector<float> logits(2000);
  for (int i = 0; i < 40; ++i) (*runner)->Step(slots, ids, logits.data());
  EXPECT_TRUE(std::equal(logits.begin(), logits.begin() + 1000, logits.begin() + 1000));
  runner->reset();
  const absl::Status refused = make(static_cast<int32_t>(capacity.fits()) + 1, false).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("for the work area; allowed: 1 to "));
}

// A vocabulary as wide as GPT-2's, where the device's sampler has many ids a thread and weights that are equal; the
// host's sampler draws from logits of the same kernels.
TEST(CudaSamplerTest, DrawsAndReportsWhatTheHostDoesFromAWideVocabulary) {
  if (!Gpu::device().ok()) GTEST_SKIP() << Gpu::device().status().message();
  StrideHybridConfig config = TinyCases()[0].config;
  config.vocab_size = 50257;
  const auto device = NewCudaExecutor(CudaKernelRunner(config, true), "cuda:0", "any");
  const auto host = NewTorchExecutor(CudaKernelRunner(config, true), "cuda:0", "any");
  for (int i = 0; i < 60; ++i) {
    SamplingParams params;
    params.seed = static_cast<uint64_t>(i) << 30 | 12345;
    params.temperature = 0.05f + 0.2f * static_cast<float>(i % 8);
    if (i % 2 == 1) params.top_k = i % 4 == 1 ? i : 700 * i;
    if (i % 3 != 0) params.top_p = 0.02f + 0.97f / static_cast<float>(1 + i % 5);
    if (i % 5 == 4) params.min_p = 0.9f / static_cast<float>(i);
    if (i % 4 == 2) params.top_logprobs = i % 21;
    if (i % 6 == 5) {
      params.repetition_penalty = 1.3f;
      params.frequency_penalty = 0.5f;
      params.logit_bias = {{7, 3.5f}, {50256, -2.0f}};
    }
    std::vector<ItemResult> drawn;
    for (Executor* const executor : {device.get(), host.get()}) {
      executor->Reset(0);
      executor->BindSampling(0, std::make_shared<const SamplingParams>(params), {}, {});
      const Ids prompt = {i, i * 800 + 1};
      for (int step = 0; step < 4; ++step) {
        PlanItem item = {.slot = 0, .append_last_sampled = step > 0, .want = Want::kSample};
        if (step == 0) item.ids = prompt;
        const absl::StatusOr<Ticket> ticket = executor->Submit({&item, 1});
        ASSERT_TRUE(ticket.ok()) << ticket.status();
        StepResult result;
        ASSERT_TRUE(executor->Poll(*ticket, true, &result).ok());
        drawn.push_back(std::move(result.items[0]));
      }
    }
    for (size_t step = 0; step < 4; ++step) {
      const ItemResult &on_device = drawn[step], &on_host = drawn[4 + step];
      EXPECT_EQ(on_device.id, on_host.id) << "draw " << i;
      EXPECT_EQ(on_device.logprobs.logprob, on_host.logprobs.logprob) << "draw " << i;
      EXPECT_EQ(on_device.logprobs.top, on_host.logprobs.top) << "draw " << i;
    }
  }
}

// Products of one row, of dozens and of thousands run in different kernels; a session's bits must not show it.
TEST(CudaKernelsTest, ASessionsBitsDoNotDependOnHowManyRowsRideWithIt) {
  if (!Gpu::device().ok()) GTEST_SKIP() << Gpu::device().status().message();
  StrideHybridConfig config;
  config.vocab_size = 1000;
  config.d_model = 320;
  config.transformer.n_layer = 2;
  config.transformer.n_head = 5;
  config.transformer.n_inner = 8192;
  config.ssm.n_layer = 2;
  constexpr int32_t kMany = 80;
  for (const bool bfloat16 : {false, true}) {
    const auto runner =
        *(*LoadCudaModule())->new_runner(config, RandomWeights(config), {.slots = kMany + 1, .bfloat16 = bfloat16});
    const Ids text = RandomIds(400, 1000);
    const auto logits_of = [&](std::span<const int32_t> slots, std::span<const int32_t> ids) {
      std::vector<float> logits(slots.size() * 1000);
      runner->Step(slots, ids, logits.data());
      return logits;
    };
    // Alone: a window that grew column by column. In company: 80 windows of 65 rows at once, then a column of each.
    const int32_t alone = kMany;
    std::vector<float> expected;
    for (size_t i = 0; i < 330; ++i) expected = logits_of({&alone, 1}, std::span(text).subspan(i, 1));
    std::vector<int32_t> slots, ids;
    std::vector<SlotRunner::Chunk> chunks;
    for (int32_t slot = 0; slot < kMany; ++slot) {
      chunks.push_back({slot, std::span(text).first(329)});
      slots.push_back(slot);
      ids.push_back(text[329]);
    }
    runner->Ingest(chunks);
    std::vector<float> together = logits_of(slots, ids);
    for (int32_t slot = 0; slot < kMany; ++slot) {
      ASSERT_TRUE(std::equal(expected.begin(), expected.end(), together.begin() + slot * 1000)) << slot;
    }
    ids.assign(slots.size(), text[330]);
    together = logits_of(slots, ids);
    expected = logits_of({&alone, 1}, std::span(text).subspan(330, 1));
    ASSERT_TRUE(std::equal(expected.begin(), expected.end(), together.begin() + (kMany - 1) * 1000));
    std::vector<std::byte> a(runner->layout().bytes()), b(a.size());
    runner->Save(alone, a);
    runner->Save(0, b);
    EXPECT_EQ(a, b);
  }
}

struct PromptCase {
  std::string name;
  StrideHybridConfig config;
  std::vector<size_t> lengths;  // of a text each
};

// Writes pool over tokens alone. Both SSMs, usual and odd shapes, more strides than fit into one batch.
std::vector<PromptCase> PromptCases() {
  StrideHybridConfig config;
  config.vocab_size = 1000;
  config.d_model = 320;
  config.pool_scope = PoolScope::kTokens;
  config.transformer.n_layer = 2;
  config.transformer.n_head = 5;
  config.ssm.n_layer = 2;
  std::vector<PromptCase> cases = {{"usual", config, {901, 16 * 37, 49}}};
  config.d_model = 24;
  config.transformer.n_head = 3;
  config.n_ssm_outputs = 3;
  config.m_input_tokens = 7;
  config.stride = 2;
  cases.push_back({"manyStrides", config, {2303, 901, 90}});
  for (const TinyCase& tiny : TinyCases()) {
    if (tiny.config.pool_scope == PoolScope::kTokens) cases.push_back({tiny.name, tiny.config, {331, 8, 160}});
  }
  return cases;
}

// Such a prompt's strides go through the SSM at once; steps take a token at a time.
TEST(CudaKernelsTest, APromptOfManyStridesAtOnceIsItsTokensOneByOne) {
  if (!Gpu::device().ok()) GTEST_SKIP() << Gpu::device().status().message();
  for (const PromptCase& prompt : PromptCases()) {
    for (const bool bfloat16 : {false, true}) {
      SCOPED_TRACE(prompt.name + (bfloat16 ? ", bfloat16" : ", float32"));
      const auto texts = static_cast<int32_t>(prompt.lengths.size());
      const auto vocab = static_cast<size_t>(prompt.config.vocab_size);
      // Slots: each text at once, each token by token, the first text under observation.
      const int32_t observed = 2 * texts;
      const auto runner =
          *(*LoadCudaModule())
               ->new_runner(prompt.config, RandomWeights(prompt.config), {.slots = observed + 1, .bfloat16 = bfloat16});
      std::vector<Ids> ids;
      for (int32_t i = 0; i < texts; ++i) {
        ids.push_back(RandomIds(static_cast<int64_t>(prompt.lengths[i]) + 20, prompt.config.vocab_size, 3 + i));
      }
      const auto save = [&](int32_t slot) {
        Bytes state(runner->layout().bytes());
        runner->Save(slot, state);
        return state;
      };

      std::mt19937 random(5);
      std::vector<size_t> at(prompt.lengths.size(), 0);
      for (int round = 0; round < 9; ++round) {
        std::vector<SlotRunner::Chunk> chunks;
        for (int32_t i = 0; i < texts; ++i) {
          const size_t left = prompt.lengths[i] - at[i],
                       size = round < 8 ? std::min<size_t>(random() % 48, left) : left;
          chunks.push_back({i, std::span(ids[i]).subspan(at[i], size)});
          at[i] += size;
        }
        runner->Ingest(chunks);
      }

      std::vector<std::vector<float>> expected(prompt.lengths.size());
      for (size_t t = 0; t < *std::max_element(prompt.lengths.begin(), prompt.lengths.end()); ++t) {
        std::vector<int32_t> slots, next;
        for (int32_t i = 0; i < texts; ++i) {
          if (t >= prompt.lengths[i]) continue;
          slots.push_back(texts + i);
          next.push_back(ids[i][t]);
        }
        std::vector<float> logits(slots.size() * vocab);
        runner->Step(slots, next, logits.data());
        for (size_t j = 0; j < slots.size(); ++j) {
          expected[slots[j] - texts].assign(logits.begin() + j * vocab, logits.begin() + (j + 1) * vocab);
        }
      }

      for (int32_t i = 0; i < texts; ++i) {
        EXPECT_EQ(runner->position(i), static_cast<int64_t>(prompt.lengths[i]));
        ASSERT_EQ(save(i), save(texts + i)) << "text " << i;
        std::vector<float> logits(vocab);
        runner->Logits({&i, 1}, logits.data());
        ASSERT_EQ(logits, expected[i]) << "text " << i;
        // On from here, past the next write.
        const int32_t both[] = {i, texts + i};
        std::vector<float> pair(2 * vocab);
        for (size_t t = prompt.lengths[i]; t < ids[i].size(); ++t) {
          const int32_t same[] = {ids[i][t], ids[i][t]};
          runner->Step(both, same, pair.data());
          ASSERT_TRUE(std::equal(pair.begin(), pair.begin() + vocab, pair.begin() + vocab)) << "text " << i;
        }
      }

      std::vector<int64_t> written;
      runner->SetWriteObserver([&](const SlotRunner::WriteEvent& event) { written.push_back(event.position); });
      const std::vector<SlotRunner::Chunk> whole = {{observed, ids[0]}};
      runner->Ingest(whole);
      runner->SetWriteObserver(nullptr);
      ASSERT_EQ(written.size(), ids[0].size() / static_cast<size_t>(prompt.config.stride));
      EXPECT_EQ(written.front(), prompt.config.stride);
      EXPECT_EQ(save(observed), save(0));
    }
  }
}

// A runner whose device fails, or whose logits are no numbers.
class BrokenRunner : public SlotRunner {
 public:
  explicit BrokenRunner(bool throws) : throws_(throws), config_(TinyCases()[0].config), layout_(config_) {}
  const StrideHybridConfig& config() const override { return config_; }
  const StateLayout& layout() const override { return layout_; }
  int32_t slots() const override { return 2; }
  bool deterministic() const override { return true; }
  std::string numerics_id() const override { return "broken"; }
  int64_t position(int32_t slot) const override { return 1; }
  void Reset(int32_t slot) override {}
  void Load(int32_t slot, std::span<const std::byte> state) override {}
  void Save(int32_t slot, std::span<std::byte> state) override {}
  void Copy(int32_t from, int32_t to) override {}
  void Ingest(std::span<const Chunk> chunks) override {}
  void Step(std::span<const int32_t> slots, std::span<const int32_t> ids, float* logits) override {
    if (throws_) throw std::runtime_error("the wires are cut");
    std::fill(logits, logits + slots.size() * config_.vocab_size, std::numeric_limits<float>::quiet_NaN());
  }
  void Logits(std::span<const int32_t> slots, float* logits) override { Step(slots, slots, logits); }
  void SetWriteObserver(std::function<void(const WriteEvent&)> observer) override {}

 private:
  const bool throws_;
  const StrideHybridConfig config_;
  const StateLayout layout_;
};

TEST(TorchExecutorTest, IsDeadAfterADeviceFault) {
  const auto executor = NewTorchExecutor(std::make_unique<BrokenRunner>(true), "cpu", "float32");
  executor->BindSampling(0, Greedy(), {}, {});
  const std::vector<PlanItem> plan = {{.slot = 0, .want = Want::kSample}};
  const absl::Status fault = executor->Submit(plan).status();
  EXPECT_EQ(fault.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(fault.message()), HasSubstr("the wires are cut"));
  EXPECT_EQ(executor->Submit({}).status(), fault);
  EXPECT_EQ(executor->Poll(executor->Copy(0, 1), true, nullptr).status(), fault);
  Bytes state(executor->info().state_bytes);
  EXPECT_EQ(executor->Poll(executor->Load(1, state), true, nullptr).status(), fault);
}

TEST(TorchExecutorTest, AnItemWithoutADrawableIdFailsAloneAndTheExecutorLives) {
  const auto executor = NewTorchExecutor(std::make_unique<BrokenRunner>(false), "cpu", "float32");
  executor->BindSampling(0, Greedy(), {}, {});
  const std::vector<PlanItem> plan = {{.slot = 0, .want = Want::kSample}, {.slot = 1}};
  const absl::StatusOr<Ticket> ticket = executor->Submit(plan);
  ASSERT_TRUE(ticket.ok());
  StepResult result;
  ASSERT_TRUE(executor->Poll(*ticket, true, &result).ok());
  EXPECT_EQ(result.items[0].status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(result.items[0].id, -1);
  EXPECT_TRUE(result.items[1].status.ok());
}

RunnerOptions BundledModel() {
  RunnerOptions options;
  options.model_dir = "models/books-6m";
  options.slots = 2;
  return options;
}

TEST(NewTorchExecutorTest, OpensAModelFolderAndTakesAutoForDeviceAndDtype) {
  RunnerOptions options = BundledModel();
  options.device = options.dtype = "auto";
  std::string note;
  const auto executor = NewTorchExecutor(options, &note);
  ASSERT_TRUE(executor.ok()) << executor.status();
  EXPECT_EQ((*executor)->info().slots, 2);
  EXPECT_EQ((*executor)->info().vocab_size, 4096);
  EXPECT_EQ((*executor)->info().dtype, "float32");
  EXPECT_EQ((*executor)->info().device == "cpu", !note.empty());
}

TEST(NewTorchExecutorTest, TakesFewerSlotsOnlyWhereTheyDoNotFitAndIsAskedTo) {
  RunnerOptions options = BundledModel();
  options.fewer_slots = true;
  const auto executor = NewTorchExecutor(options);
  ASSERT_TRUE(executor.ok()) << executor.status();
  const ExecutorInfo& info = (*executor)->info();
  EXPECT_EQ(info.slots, 2);
  EXPECT_EQ(info.capacity.slot_bytes, info.slot_bytes);
  EXPECT_GT(info.capacity.fits(), 2);
  EXPECT_LE(info.capacity.work_bytes + info.capacity.fits() * info.capacity.slot_bytes, info.capacity.free_bytes);
  EXPECT_LT(info.capacity.free_bytes, info.capacity.total_bytes);
}

TEST(NewTorchExecutorTest, NamesTheOptionItsValueAndWhatIsAllowed) {
  const auto error = [](const std::function<void(RunnerOptions&)>& change) {
    RunnerOptions options = BundledModel();
    change(options);
    return NewTorchExecutor(options).status();
  };
  absl::Status status = error([](RunnerOptions& o) { o.slots = 0; });
  EXPECT_EQ(status, absl::InvalidArgumentError("slots is 0; allowed: >= 1"));
  status = error([](RunnerOptions& o) { o.slots = 2'000'000'000; });
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("slots is 2000000000: at "));
  status = error([](RunnerOptions& o) { o.dtype = "float16"; });
  EXPECT_EQ(status, absl::InvalidArgumentError("dtype is \"float16\"; allowed: auto, float32, bfloat16"));
  status = error([](RunnerOptions& o) { o.device = "tpu"; });
  EXPECT_EQ(status, absl::InvalidArgumentError("device is \"tpu\"; allowed: auto, cpu, cuda, cuda:N"));
  status = error([](RunnerOptions& o) { o.model_dir = "models/nowhere"; });
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  if (!Gpu::device().ok()) {
    EXPECT_EQ(error([](RunnerOptions& o) { o.device = "cuda"; }).code(), absl::StatusCode::kUnavailable);
  }
}

TEST(DeviceTest, ParsesWhatItAllowsAndNamesWhatItDoesNot) {
  EXPECT_EQ(ParseDevice("cuda:3")->index, 3);
  EXPECT_EQ(ParseDevice("cuda")->index, 0);
  EXPECT_EQ(ParseDevice("auto")->kind, DeviceChoice::Kind::kAuto);
  for (const char* bad : {"", "gpu", "cuda:", "cuda:-1", "cuda:1x", "cuda:99999999999", "CPU", "cpu:0"}) {
    const absl::Status status = ParseDevice(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string("\"") + bad + "\"; allowed: auto, cpu"));
  }
}

TEST(DeviceTest, AutoFallsBackToTheCpuAndSaysWhy) {
  const absl::StatusOr<Device> device = ResolveDevice("auto");
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(device->name, Gpu::device().ok() ? "cuda:0" : "cpu");
  EXPECT_EQ(device->note.empty(), Gpu::device().ok());
  EXPECT_TRUE(ResolveDevice("cpu")->note.empty());
  if (!Gpu::device().ok()) {
    EXPECT_THAT(std::string(Gpu::device().status().message()), HasSubstr("device cuda: "));
  } else {
    EXPECT_THAT(std::string(ResolveDevice("cuda:127").status().message()), HasSubstr("device index is 127"));
  }
}

}  // namespace
}  // namespace smt
