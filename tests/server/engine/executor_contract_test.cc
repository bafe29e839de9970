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
#include <string>
#include <vector>

#include "model/cpu_slot_runner.h"
#include "model/torch_slot_runner.h"
#include "server/engine/cuda_executor.h"
#include "server/engine/executor.h"
#include "server/engine/torch_executor.h"
#include "server/engine/warm_up.h"
#include "tests/model/tiny_models.h"
#include "tests/server/engine/background_runner.h"
#include "tests/server/engine/executor_testing.h"

namespace smt {
namespace {

using testing::HasSubstr;

std::unique_ptr<SlotRunner> TorchRunner(const StrideHybridConfig& config, const std::string& device) {
  StrideHybridModel model = RandomModel(config);
  model->to(at::Device(device));
  return *NewTorchSlotRunner(model, {.slots = kSlots, .deterministic = true, .window_policy = std::nullopt});
}

std::unique_ptr<SlotRunner> KernelRunner(const StrideHybridConfig& config) {
  return *NewCpuSlotRunner(config, RandomWeights(config), {.slots = kSlots, .threads = 2});
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
     [](const auto& config) {
       return NewCudaExecutor(CudaKernelRunner(config, WindowDType::kFloat32), "cuda:0", "float32");
     }},
    {"CudaBfloat16", true,
     [](const auto& config) {
       return NewCudaExecutor(CudaKernelRunner(config, WindowDType::kBfloat16), "cuda:0", "bfloat16");
     }},
    {"CudaFloat16", true,
     [](const auto& config) {
       return NewCudaExecutor(CudaKernelRunner(config, WindowDType::kFloat16), "cuda:0", "float16");
     }},
    {"CudaKernelsStepwise", true,
     [](const auto& config) {
       return NewTorchExecutor(CudaKernelRunner(config, WindowDType::kBfloat16), "cuda:0", "bfloat16");
     }},
};

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

TEST_P(ExecutorTest, AWarmUpLeavesNoTrace) {
  const auto reports = Params([](SamplingParams& p) { p.seed = 4, p.top_logprobs = 2, p.frequency_penalty = 1; });
  // States and what two sessions draw, one after the other and with a word given in between.
  const auto serve = [&](std::vector<Bytes>& states) {
    std::vector<ItemResult> drawn;
    for (int32_t slot = 0; slot < kSlots; ++slot) states.push_back(Save(slot));
    for (const int32_t slot : {0, 2}) {
      executor_->BindSampling(slot, reports, {}, {});
      drawn.push_back(Run({{.slot = slot, .ids = Text(slot, 23), .want = Want::kSample}}).items[0]);
      for (int i = 0; i < 30; ++i) {
        drawn.push_back(Run({{.slot = slot, .append_last_sampled = true, .want = Want::kSample}}).items[0]);
      }
      Run({{.slot = slot, .append_last_sampled = true}});
      states.push_back(Save(slot));
    }
    return drawn;
  };
  std::vector<Bytes> cold_states, warm_states;
  const std::vector<ItemResult> cold = serve(cold_states);

  executor_ = std::get<0>(GetParam()).make(TinyCases()[std::get<1>(GetParam())].config);
  const auto report = WarmUp(*executor_, {.batches = {1, 3, kSlots, kSlots + 1}, .budget = absl::Minutes(5)});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->stopped.ok()) << report->stopped;
  EXPECT_THAT(report->batches, testing::ElementsAre(1, 3, kSlots));
  for (int32_t slot = 0; slot < kSlots; ++slot) {
    EXPECT_EQ(executor_->position(slot), 0);
    EXPECT_EQ(SubmitCode({{.slot = slot, .append_last_sampled = true}}), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(SubmitCode({{.slot = slot, .ids = Text(0, 1), .want = Want::kSample}}),
              absl::StatusCode::kInvalidArgument)
        << "something is bound";
  }
  const std::vector<ItemResult> warm = serve(warm_states);
  EXPECT_EQ(warm_states, cold_states);
  ASSERT_EQ(warm.size(), cold.size());
  for (size_t i = 0; i < warm.size(); ++i) {
    EXPECT_EQ(warm[i].id, cold[i].id) << "draw " << i;
    EXPECT_EQ(warm[i].logprobs.logprob, cold[i].logprobs.logprob) << "draw " << i;
    EXPECT_EQ(warm[i].logprobs.top, cold[i].logprobs.top) << "draw " << i;
  }
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

}  // namespace
}  // namespace smt
