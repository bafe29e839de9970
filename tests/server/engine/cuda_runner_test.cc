// What only our CUDA kernels promise; skipped, saying why, where there is no GPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "model/cuda/abi.h"
#include "model/cuda_plugin.h"
#include "server/engine/cuda_executor.h"
#include "server/engine/torch_executor.h"
#include "tests/model/tiny_models.h"
#include "tests/server/engine/executor_testing.h"

namespace smt {
namespace {

using testing::HasSubstr;

constexpr std::pair<WindowDType, const char*> kDTypes[] = {
    {WindowDType::kFloat32, "float32"}, {WindowDType::kBfloat16, "bfloat16"}, {WindowDType::kFloat16, "float16"}};

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

TEST(CudaTimesTest, SomeStepsAreMeasuredInAllTheirPhases) {
  if (!Gpu::device().ok()) GTEST_SKIP() << Gpu::device().status().message();
  const StrideHybridConfig& config = TinyCases()[0].config;
  const auto executor = NewCudaExecutor(CudaKernelRunner(config, WindowDType::kBfloat16), "cuda:0", "bfloat16");
  const Ids prompt = {1, 2, 3};
  int measured = 0, writes = 0;
  constexpr int kSteps = 1024, kTimedEvery = 101;
  for (int step = 0; step < kSteps; ++step) {
    std::vector<PlanItem> plan;
    for (int32_t slot = 0; slot < kSlots; ++slot) {
      if (step == 0) executor->BindSampling(slot, Seeded(1), {}, {});
      plan.push_back({.slot = slot, .append_last_sampled = step > 0, .want = Want::kSample});
      if (step == 0) plan.back().ids = std::span(prompt).first(static_cast<size_t>(1 + slot % 3));
    }
    const auto ticket = executor->Submit(plan);
    ASSERT_TRUE(ticket.ok()) << ticket.status();
    StepResult result;
    ASSERT_TRUE(executor->Poll(*ticket, true, &result).ok());
    const StepTimings& t = result.timings;
    EXPECT_EQ(t.decode > 0, t.sample > 0);
    for (const double seconds : {t.decode, t.write, t.sample}) EXPECT_TRUE(seconds >= 0 && seconds < 1) << seconds;
    measured += t.decode > 0;
    writes += t.write > 0;
  }
  EXPECT_GE(measured, kSteps / kTimedEvery - 1);
  EXPECT_LE(measured, kSteps / kTimedEvery + 1);
  EXPECT_GT(writes, 0);
}

// A vocabulary as wide as GPT-2's, where the device's sampler has many ids a thread and weights that are equal; the
// host's sampler draws from logits of the same kernels.
TEST(CudaSamplerTest, DrawsAndReportsWhatTheHostDoesFromAWideVocabulary) {
  if (!Gpu::device().ok()) GTEST_SKIP() << Gpu::device().status().message();
  StrideHybridConfig config = TinyCases()[0].config;
  config.vocab_size = 50257;
  const auto device = NewCudaExecutor(CudaKernelRunner(config, WindowDType::kBfloat16), "cuda:0", "any");
  const auto host = NewTorchExecutor(CudaKernelRunner(config, WindowDType::kBfloat16), "cuda:0", "any");
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

// Rounding to 8 and to 11 bits moves logits by about 2^-9 and 2^-12 of their size, which grows through the layers.
TEST(CudaKernelsTest, WindowsOfSixteenBitsAreAsNearToFloat32AsTheirNumbers) {
  if (!Gpu::device().ok()) GTEST_SKIP() << Gpu::device().status().message();
  StrideHybridConfig config;
  config.vocab_size = 1000;
  config.d_model = 256;
  config.transformer.n_layer = 3;
  config.transformer.n_head = 4;
  config.ssm.n_layer = 2;
  const WeightSource weights = RandomWeights(config);
  const Ids text = RandomIds(60, 1000);
  std::vector<std::vector<float>> logits;
  for (const auto& [dtype, name] : kDTypes) {
    const auto runner = *(*LoadCudaModule())->new_runner(config, weights, {.slots = 1, .dtype = dtype});
    EXPECT_THAT(runner->numerics_id(), HasSubstr(name));
    std::vector<float>& all = logits.emplace_back();
    const int32_t slot = 0;
    for (const int32_t id : text) {
      all.resize(all.size() + 1000);
      runner->Step({&slot, 1}, {&id, 1}, all.data() + all.size() - 1000);
    }
  }
  const auto distance = [&](size_t i) {
    double difference = 0, size = 0;
    for (size_t at = 0; at < logits[0].size(); ++at) {
      difference += std::pow(logits[i][at] - logits[0][at], 2);
      size += std::pow(logits[0][at], 2);
    }
    return std::sqrt(difference / size);
  };
  const double bfloat16 = distance(1), float16 = distance(2);
  EXPECT_LT(bfloat16, 0.03);
  EXPECT_GT(bfloat16, 1e-4);  // it is rounded at all
  EXPECT_LT(float16, bfloat16 / 3);
  EXPECT_GT(float16, 1e-5);
}

TEST(CudaKernelsTest, Float16RefusesWeightsThatItCannotHold) {
  if (!Gpu::device().ok()) GTEST_SKIP() << Gpu::device().status().message();
  const StrideHybridConfig config = TinyCases()[0].config;
  const WeightSource large = [random = RandomWeights(config)](
                                 const std::string& name,
                                 const std::vector<int64_t>& shape) -> absl::StatusOr<std::vector<float>> {
    absl::StatusOr<std::vector<float>> values = random(name, shape);
    if (values.ok() && name == "transformer.wte.weight") values->back() = 70'000;
    return values;
  };
  const auto make = [&](WindowDType dtype) {
    return (*LoadCudaModule())->new_runner(config, large, {.slots = 1, .dtype = dtype}).status();
  };
  EXPECT_TRUE(make(WindowDType::kBfloat16).ok());
  EXPECT_EQ(make(WindowDType::kFloat16),
            absl::InvalidArgumentError(
                "transformer.wte.weight has 70000, which float16 cannot hold (up to 65504); bfloat16 and float32 can"));
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
  for (const auto& [dtype, name] : kDTypes) {
    const auto runner =
        *(*LoadCudaModule())->new_runner(config, RandomWeights(config), {.slots = kMany + 1, .dtype = dtype});
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
    for (const auto& [dtype, name] : kDTypes) {
      SCOPED_TRACE(prompt.name + ", " + name);
      const auto texts = static_cast<int32_t>(prompt.lengths.size());
      const auto vocab = static_cast<size_t>(prompt.config.vocab_size);
      // Slots: each text at once, each token by token, the first text under observation.
      const int32_t observed = 2 * texts;
      const auto runner =
          *(*LoadCudaModule())
               ->new_runner(prompt.config, RandomWeights(prompt.config), {.slots = observed + 1, .dtype = dtype});
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

}  // namespace
}  // namespace smt
