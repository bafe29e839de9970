// CpuSlotRunner against the golden fixture, against LibTorch's Forward and reference, and against itself bit for bit.
#include "model/cpu_slot_runner.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <tuple>

#include "model/checkpoint.h"
#include "model/io/safetensors.h"
#include "tests/model/tiny_models.h"

namespace smt {
namespace {

using Bytes = std::vector<std::byte>;
using Floats = std::vector<float>;

Bytes State(SlotRunner& runner, int32_t slot) {
  Bytes bytes(runner.layout().bytes());
  runner.Save(slot, bytes);
  return bytes;
}
Floats Step(SlotRunner& runner, const std::vector<int32_t>& slots, const std::vector<int32_t>& ids) {
  Floats logits(slots.size() * runner.config().vocab_size);
  runner.Step(slots, ids, logits.data());
  return logits;
}
Floats Logits(SlotRunner& runner, int32_t slot) {
  Floats logits(runner.config().vocab_size);
  runner.Logits(std::vector<int32_t>{slot}, logits.data());
  return logits;
}
void Ingest(SlotRunner& runner, int32_t slot, std::span<const int32_t> ids) {
  runner.Ingest(std::vector<SlotRunner::Chunk>{{slot, ids}});
}
bool SameBits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class CpuSlotRunnerTest : public testing::TestWithParam<std::tuple<size_t, WindowPolicy>> {
 protected:
  CpuSlotRunnerTest() {
    config_ = TinyCases()[std::get<0>(GetParam())].config;
    config_.window_policy = std::get<1>(GetParam());
    model_ = RandomModel(config_);
    source_ = [this](const std::string& name, const std::vector<int64_t>& shape) -> absl::StatusOr<Floats> {
      for (const auto& parameter : model_->named_parameters()) {
        if (parameter.key() != name) continue;
        if (parameter.value().sizes() != at::IntArrayRef(shape)) return absl::InvalidArgumentError(name);
        const at::Tensor value = parameter.value().contiguous();
        return Floats(value.data_ptr<float>(), value.data_ptr<float>() + value.numel());
      }
      return absl::NotFoundError(name);
    };
  }
  std::unique_ptr<SlotRunner> Runner(int threads = 1, const ops::Kernels* kernels = nullptr) {
    auto runner = NewCpuSlotRunner(config_, source_, {.slots = 6, .threads = threads, .kernels = kernels});
    EXPECT_TRUE(runner.ok()) << runner.status();
    return *std::move(runner);
  }
  // Logits after each id, alone in a fresh runner.
  std::vector<Floats> Alone(const std::vector<int32_t>& ids, Bytes* state, const ops::Kernels* kernels = nullptr) {
    const auto runner = Runner(1, kernels);
    std::vector<Floats> logits;
    for (const int32_t id : ids) logits.push_back(Step(*runner, {0}, {id}));
    *state = State(*runner, 0);
    return logits;
  }

  at::NoGradGuard no_grad_;
  StrideHybridConfig config_;
  StrideHybridModel model_{nullptr};
  WeightSource source_;
};

TEST_P(CpuSlotRunnerTest, StepsAndWritesAreThoseOfForward) {
  const std::vector<int32_t> ids = RandomIds(150, config_.vocab_size);
  const ForwardResult forward = model_->Forward(AsTensor(ids));
  const auto runner = Runner();
  int64_t writes = 0;
  runner->SetWriteObserver([&](const SlotRunner::WriteEvent& event) {
    EXPECT_EQ(event.slot, 2);
    EXPECT_EQ(event.position, (writes + 1) * config_.stride);
    const auto tensor = [](std::span<const float> values) {
      return at::from_blob(const_cast<float*>(values.data()), {static_cast<int64_t>(values.size())});
    };
    EXPECT_LE(MaxDifference(tensor(event.pool_weights), forward.aux.pool_weights[0][writes]), 1e-4);
    EXPECT_LE(MaxDifference(tensor(event.ssm_output), forward.aux.ssm_outputs[0][writes]), 1e-4);
    ++writes;
  });
  for (size_t i = 0; i < ids.size(); ++i) {
    Floats logits = Step(*runner, {2}, {ids[i]});
    ASSERT_LE(
        MaxDifference(at::from_blob(logits.data(), {config_.vocab_size}), forward.logits[0][static_cast<int64_t>(i)]),
        1e-4)
        << "after " << i + 1 << " tokens";
  }
  EXPECT_EQ(runner->position(2), 150);
  EXPECT_EQ(runner->position(1), 0);
  EXPECT_EQ(writes, 150 / config_.stride);
}

TEST_P(CpuSlotRunnerTest, SessionsAtDifferentPhasesAreBitForBitAsAlone) {
  const auto runner = Runner(3);
  std::vector<std::vector<int32_t>> texts;
  std::vector<std::vector<Floats>> alone;
  std::vector<Bytes> states(5);
  for (uint32_t i = 0; i < 5; ++i) {
    texts.push_back(RandomIds(40 + 5 * i, config_.vocab_size, 10 + i));
    alone.push_back(Alone(texts[i], &states[i]));
    Ingest(*runner, static_cast<int32_t>(i), std::span(texts[i]).first(3 * i));
  }
  for (size_t t = 0; t < 60; ++t) {
    std::vector<int32_t> slots, ids;
    for (size_t i = 0; i < 5; ++i) {
      const size_t at = static_cast<size_t>(runner->position(static_cast<int32_t>(i)));
      if (at == texts[i].size() || (t + i) % 4 == 3) continue;  // sometimes a session sits a step out
      slots.push_back(static_cast<int32_t>(i));
      ids.push_back(texts[i][at]);
    }
    if (slots.empty()) continue;
    const Floats logits = Step(*runner, slots, ids);
    for (size_t j = 0; j < slots.size(); ++j) {
      const Floats row(logits.begin() + j * config_.vocab_size, logits.begin() + (j + 1) * config_.vocab_size);
      const size_t at = static_cast<size_t>(runner->position(slots[j])) - 1;
      ASSERT_TRUE(SameBits(row, alone[slots[j]][at])) << "slot " << slots[j] << " after " << at + 1;
    }
  }
}

TEST_P(CpuSlotRunnerTest, EveryInstructionSetGivesTheSameBits) {
  const std::vector<int32_t> ids = RandomIds(60, config_.vocab_size);
  Bytes expected_state;
  const std::vector<Floats> expected = Alone(ids, &expected_state, ops::ScalarKernels());
  for (const ops::Kernels* kernels : {ops::Avx2Kernels(), ops::Avx512Kernels()}) {
    if (kernels == nullptr) continue;
    Bytes state;
    const std::vector<Floats> logits = Alone(ids, &state, kernels);
    for (size_t i = 0; i < ids.size(); ++i) ASSERT_TRUE(SameBits(logits[i], expected[i])) << kernels->name << " " << i;
    EXPECT_EQ(state, expected_state);
  }
}

TEST_P(CpuSlotRunnerTest, IngestInAnyChunksIsStepping) {
  const std::vector<int32_t> ids = RandomIds(90, config_.vocab_size);
  Bytes state;
  const std::vector<Floats> alone = Alone(ids, &state);
  for (const size_t chunk : {1, 2, 7, 16, 89, 90}) {
    const auto runner = Runner(2);
    for (size_t at = 0; at < ids.size(); at += chunk) {
      // Company that ends elsewhere.
      const std::span<const int32_t> part = std::span(ids).subspan(at, std::min(chunk, ids.size() - at));
      runner->Ingest(std::vector<SlotRunner::Chunk>{{1, part}, {3, part.first(part.size() / 2)}});
    }
    EXPECT_EQ(State(*runner, 1), state) << "chunks of " << chunk;
    EXPECT_TRUE(SameBits(Logits(*runner, 1), alone.back())) << "chunks of " << chunk;
  }
}

TEST_P(CpuSlotRunnerTest, ASavedLoadedOrCopiedStateGoesOnBitForBit) {
  const std::vector<int32_t> ids = RandomIds(70, config_.vocab_size);
  Bytes final_state;
  const std::vector<Floats> alone = Alone(ids, &final_state);
  for (size_t cut = 1; cut < ids.size(); cut += 5) {
    const auto first = Runner(), second = Runner();
    for (size_t i = 0; i < cut; ++i) Step(*first, {0}, {ids[i]});
    second->Load(4, State(*first, 0));
    EXPECT_EQ(second->position(4), static_cast<int64_t>(cut));
    EXPECT_TRUE(SameBits(Logits(*second, 4), alone[cut - 1])) << "cut at " << cut;
    first->Copy(0, 5);
    first->Reset(0);
    second->Load(2, State(*first, 5));
    for (size_t i = cut; i < ids.size(); ++i) {
      ASSERT_TRUE(SameBits(Step(*first, {5}, {ids[i]}), alone[i])) << "copied at " << cut << ", after " << i + 1;
      const Floats both = Step(*second, {4, 2}, {ids[i], ids[i]});
      ASSERT_TRUE(SameBits(Floats(both.begin(), both.begin() + config_.vocab_size), alone[i])) << "cut at " << cut;
    }
    EXPECT_EQ(State(*first, 5), final_state);
    EXPECT_EQ(State(*second, 2), final_state);
    EXPECT_EQ(State(*first, 0), Bytes(first->layout().bytes()));
  }
}

TEST_P(CpuSlotRunnerTest, RefusesWhatItCannotServeAndChangesNothing) {
  const auto runner = Runner();
  Ingest(*runner, 0, RandomIds(20, config_.vocab_size));
  const Bytes before = State(*runner, 0);
  const int32_t v = static_cast<int32_t>(config_.vocab_size);
  EXPECT_THROW(Ingest(*runner, 0, std::vector<int32_t>{1, v}), std::invalid_argument);
  EXPECT_THROW(Step(*runner, {0}, {-1}), std::invalid_argument);
  EXPECT_THROW(Step(*runner, {6}, {1}), std::invalid_argument);
  EXPECT_THROW(Logits(*runner, 1), std::invalid_argument);  // empty
  EXPECT_THROW(runner->Load(0, Bytes(before.size() - 1)), std::invalid_argument);
  Bytes hostile = before;
  runner->layout().tokens(std::span<std::byte>(hostile))[0] = v;
  EXPECT_THROW(runner->Load(0, hostile), std::invalid_argument);
  hostile = before;
  runner->layout().position(std::span<std::byte>(hostile)) = -1;
  EXPECT_THROW(runner->Load(0, hostile), std::invalid_argument);
  EXPECT_EQ(State(*runner, 0), before);
}

INSTANTIATE_TEST_SUITE_P(TinyModels, CpuSlotRunnerTest,
                         testing::Combine(testing::Range<size_t>(0, TinyCases().size()),
                                          testing::Values(WindowPolicy::kHop, WindowPolicy::kSlide)),
                         [](const auto& info) {
                           return TinyCases()[std::get<0>(info.param)].name +
                                  (std::get<1>(info.param) == WindowPolicy::kHop ? "Hop" : "Slide");
                         });

class GoldenTest : public testing::TestWithParam<WindowPolicy> {
 protected:
  GoldenTest()
      : checkpoint_(*Checkpoint::Open("models/books-6m")),
        fixture_(*SafetensorsReader::Open("tests/golden/books-6m/fixture.safetensors")) {}
  std::unique_ptr<SlotRunner> Runner(bool bfloat16 = false) {
    StrideHybridConfig config = checkpoint_->config();
    config.window_policy = GetParam();
    const WeightSource source = [this](const std::string& name, const std::vector<int64_t>& shape) {
      return checkpoint_->Float32(name, shape);
    };
    return *NewCpuSlotRunner(config, source, {.slots = 2, .bfloat16 = bfloat16});
  }
  std::string Suffix() const { return std::string(Name(GetParam())); }

  const std::shared_ptr<const Checkpoint> checkpoint_;
  const SafetensorsReader fixture_;
};

double Largest(std::span<const float> a, std::span<const float> b) {
  double largest = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) largest = std::max<double>(largest, std::abs(a[i] - b[i]));
  return largest;
}

TEST_P(GoldenTest, LogitsWritesAndStateOfTheBundledModelAreThoseOfTheFixture) {
  const auto runner = Runner();
  const std::vector<int32_t> ids = *fixture_.ReadInt32("input_ids");
  const Floats logits = *fixture_.ReadFloat32("logits_" + Suffix()), outputs = *fixture_.ReadFloat32("ssm_outputs"),
               weights = *fixture_.ReadFloat32("pool_weights");
  size_t write = 0;
  runner->SetWriteObserver([&](const SlotRunner::WriteEvent& event) {
    EXPECT_LE(Largest(event.ssm_output, std::span(outputs).subspan(write * 256, 256)), 1e-4);
    EXPECT_LE(Largest(event.pool_weights, std::span(weights).subspan(write * 65, 65)), 1e-4);
    ++write;
  });
  for (size_t i = 0; i < ids.size(); ++i) {
    ASSERT_LE(Largest(Step(*runner, {0}, {ids[i]}), std::span(logits).subspan(i * 4096, 4096)), 1e-3) << i;
  }
  EXPECT_EQ(write, 12u);
  const Bytes state = State(*runner, 0);
  const auto compare = [&](std::span<const float> actual, const std::string& name, size_t layer) {
    const Floats expected = *fixture_.ReadFloat32(name + std::to_string(layer));
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(actual[layer * expected.size() + i], expected[i], 1e-4 + 1e-5 * std::abs(expected[i])) << name;
    }
  };
  for (size_t layer = 0; layer < 3; ++layer) {
    compare(runner->layout().conv(std::span<const std::byte>(state)), "ssm_conv.", layer);
    compare(runner->layout().state(std::span<const std::byte>(state)), "ssm_state.", layer);
  }
}

TEST_P(GoldenTest, GreedyContinuationIsTheArgmaxOrNearlySo) {
  const auto runner = Runner();
  const std::vector<int32_t> ids = *fixture_.ReadInt32("input_ids"), greedy = *fixture_.ReadInt32("greedy_" + Suffix());
  Ingest(*runner, 0, ids);
  Floats logits = Logits(*runner, 0);
  for (const int32_t id : greedy) {
    EXPECT_GE(logits[id], *std::max_element(logits.begin(), logits.end()) - 2e-3);
    logits = Step(*runner, {0}, {id});
  }
}

TEST_P(GoldenTest, Bfloat16WindowsStayNearFloat32OnesAndKeepTheMemoryPathFloat32) {
  // The bundled matrices are bfloat16 already, so only positions and inputs round, and those are bfloat16 too, but for
  // memory vectors.
  const auto full = Runner(false), half = Runner(true);
  const std::vector<int32_t> ids = *fixture_.ReadInt32("input_ids");
  Ingest(*full, 0, ids);
  Ingest(*half, 0, ids);
  EXPECT_EQ(State(*full, 0), State(*half, 0));
  EXPECT_LE(Largest(Logits(*full, 0), Logits(*half, 0)), 0.1);
  EXPECT_NE(full->numerics_id(), half->numerics_id());
}

INSTANTIATE_TEST_SUITE_P(Policies, GoldenTest, testing::Values(WindowPolicy::kHop, WindowPolicy::kSlide),
                         [](const auto& info) { return std::string(Name(info.param)); });

TEST(NewCpuSlotRunnerTest, NamesWhatIsWrong) {
  const WeightSource none = [](const std::string& name, const std::vector<int64_t>&) {
    return absl::StatusOr<Floats>(absl::NotFoundError(name));
  };
  const StrideHybridConfig& config = TinyCases()[0].config;
  EXPECT_EQ(NewCpuSlotRunner(config, none, {.slots = 0}).status().message(), "slots is 0; allowed: >= 1");
  EXPECT_EQ(NewCpuSlotRunner(config, none, {.threads = -1}).status().message(), "threads is -1; allowed: >= 0");
  EXPECT_EQ(NewCpuSlotRunner(config, none, {}).status(), absl::NotFoundError("transformer.wte.weight"));
}

}  // namespace
}  // namespace smt
