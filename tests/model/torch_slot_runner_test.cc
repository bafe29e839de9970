// TorchSlotRunner against Forward within rounding, and against itself bit for bit.
#include "model/torch_slot_runner.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <gtest/gtest.h>

#include <cstring>
#include <stdexcept>
#include <tuple>

#include "tests/model/tiny_models.h"

namespace smt {
namespace {

using Bytes = std::vector<std::byte>;

class TorchSlotRunnerTest : public testing::TestWithParam<std::tuple<size_t, WindowPolicy>> {
 protected:
  TorchSlotRunnerTest() {
    config_ = TinyCases()[std::get<0>(GetParam())].config;
    config_.window_policy = std::get<1>(GetParam());
    model_ = RandomModel(config_);
  }
  std::unique_ptr<SlotRunner> Runner(bool deterministic, int32_t slots = 5) {
    return *NewTorchSlotRunner(model_, {.slots = slots, .deterministic = deterministic});
  }
  std::vector<float> Step(SlotRunner& runner, const std::vector<int32_t>& slots, const std::vector<int32_t>& ids) {
    std::vector<float> logits(slots.size() * config_.vocab_size);
    runner.Step(slots, ids, logits.data());
    return logits;
  }
  std::vector<float> Logits(SlotRunner& runner, int32_t slot) {
    std::vector<float> logits(config_.vocab_size);
    runner.Logits(std::vector<int32_t>{slot}, logits.data());
    return logits;
  }
  static Bytes State(SlotRunner& runner, int32_t slot) {
    Bytes bytes(runner.layout().bytes());
    runner.Save(slot, bytes);
    return bytes;
  }
  static void Ingest(SlotRunner& runner, int32_t slot, std::span<const int32_t> ids) {
    runner.Ingest(std::vector<SlotRunner::Chunk>{{slot, ids}});
  }
  // Logits after each id, alone in slot 0 of a fresh deterministic runner.
  std::vector<std::vector<float>> Alone(const std::vector<int32_t>& ids, Bytes* state) {
    const auto runner = Runner(true);
    std::vector<std::vector<float>> logits;
    for (const int32_t id : ids) logits.push_back(Step(*runner, {0}, {id}));
    *state = State(*runner, 0);
    return logits;
  }

  at::NoGradGuard no_grad_;
  StrideHybridConfig config_;
  StrideHybridModel model_{nullptr};
};

TEST_P(TorchSlotRunnerTest, StepsGiveTheLogitsOfForward) {
  const std::vector<int32_t> ids = RandomIds(150, config_.vocab_size);
  const at::Tensor expected = model_->Forward(AsTensor(ids)).logits.select(0, 0);
  for (const bool deterministic : {true, false}) {
    const auto runner = Runner(deterministic);
    for (size_t i = 0; i < ids.size(); ++i) {
      std::vector<float> logits = Step(*runner, {2}, {ids[i]});
      ASSERT_LE(MaxDifference(at::from_blob(logits.data(), {config_.vocab_size}), expected.select(0, i)), 1e-4)
          << "after " << i + 1 << " tokens";
    }
    EXPECT_EQ(runner->position(2), 150);
    EXPECT_EQ(runner->position(1), 0);
  }
}

TEST_P(TorchSlotRunnerTest, SessionsAtDifferentPhasesAreBitForBitAsAlone) {
  std::vector<std::vector<int32_t>> texts;
  std::vector<std::vector<std::vector<float>>> alone;
  std::vector<Bytes> states(5);
  for (size_t i = 0; i < 5; ++i) {
    texts.push_back(RandomIds(40 + 3 * i, config_.vocab_size, 20 + i));
    alone.push_back(Alone(texts[i], &states[i]));
  }
  const auto runner = Runner(true);
  for (size_t step = 0; step < 70; ++step) {
    std::vector<int32_t> slots, ids;
    for (size_t i = 5; i-- > 0;) {  // in another order than the slots'
      if (step < 2 * i || step - 2 * i >= texts[i].size()) continue;
      slots.push_back(static_cast<int32_t>(4 - i));
      ids.push_back(texts[i][step - 2 * i]);
    }
    if (slots.empty()) continue;
    const std::vector<float> logits = Step(*runner, slots, ids);
    for (size_t row = 0; row < slots.size(); ++row) {
      const size_t i = 4 - slots[row];
      ASSERT_EQ(std::memcmp(&logits[row * config_.vocab_size], alone[i][step - 2 * i].data(), config_.vocab_size * 4),
                0)
          << "session " << i << " at step " << step;
    }
  }
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(State(*runner, 4 - i), states[i]);
}

TEST_P(TorchSlotRunnerTest, HowIdsAreSplitOverIngestAndStepChangesNoBit) {
  const std::vector<int32_t> ids = RandomIds(61, config_.vocab_size, 31);
  Bytes expected_state;
  const auto alone = Alone(ids, &expected_state);
  for (const size_t prompt : {1, 2, 7, 24, 25, 60, 61}) {
    const auto runner = Runner(true);
    const std::vector<int32_t> other = RandomIds(70, config_.vocab_size, 32);
    size_t at = 0;
    for (const size_t chunk : {size_t{1}, size_t{5}, size_t{0}, prompt}) {
      const size_t count = std::min(chunk, prompt - at);
      const std::vector<SlotRunner::Chunk> chunks = {{3, std::span(other).first(count)},
                                                     {1, std::span(ids).subspan(at, count)}};
      runner->Ingest(chunks);
      runner->Reset(3);
      at += count;
    }
    EXPECT_EQ(Logits(*runner, 1), alone[prompt - 1]) << "prompt of " << prompt;
    EXPECT_EQ(Logits(*runner, 1), alone[prompt - 1]) << "asked again";
    for (size_t i = prompt; i < ids.size(); ++i) ASSERT_EQ(Step(*runner, {1}, {ids[i]}), alone[i]);
    EXPECT_EQ(State(*runner, 1), expected_state);
  }
}

TEST_P(TorchSlotRunnerTest, ALoadedOrCopiedSessionGoesOnBitForBit) {
  const std::vector<int32_t> ids = RandomIds(50, config_.vocab_size, 41);
  Bytes expected_state;
  const auto alone = Alone(ids, &expected_state);
  const auto runner = Runner(true);
  for (size_t i = 0; i < ids.size(); ++i) {
    // Moves to another slot after every token, by bytes and by copy in turn; what was there before is dirt.
    const int32_t from = i % 5, to = (i + 1) % 5;
    ASSERT_EQ(Step(*runner, {from}, {ids[i]}), alone[i]) << "after " << i + 1 << " tokens";
    if (i % 2 == 0) {
      runner->Load(to, State(*runner, from));
    } else {
      runner->Copy(from, to);
    }
    ASSERT_EQ(State(*runner, to), State(*runner, from));
    Step(*runner, {from}, {0});
  }
  EXPECT_EQ(State(*runner, 0), expected_state);
}

TEST_P(TorchSlotRunnerTest, TheWriteObserverSeesWhatForwardReports) {
  const std::vector<int32_t> ids = RandomIds(70, config_.vocab_size, 51);
  const ForwardAux aux = model_->Forward(AsTensor(ids)).aux;
  const auto runner = Runner(false);
  int64_t writes = 0;
  runner->SetWriteObserver([&](const SlotRunner::WriteEvent& event) {
    ++writes;
    EXPECT_EQ(event.slot, 4);
    EXPECT_EQ(event.position, writes * config_.stride);
    const at::Tensor weights = at::from_blob(const_cast<float*>(event.pool_weights.data()), {config_.window()});
    const at::Tensor output = at::from_blob(const_cast<float*>(event.ssm_output.data()), {config_.d_model});
    EXPECT_LE(MaxDifference(weights, aux.pool_weights.select(0, 0).select(0, writes - 1)), 1e-4);
    EXPECT_LE(MaxDifference(output, aux.ssm_outputs.select(0, 0).select(0, writes - 1)), 1e-4);
  });
  Ingest(*runner, 4, std::span(ids).first(33));
  for (size_t i = 33; i < ids.size(); ++i) Step(*runner, {4}, {ids[i]});
  EXPECT_EQ(writes, 70 / config_.stride);
}

TEST_P(TorchSlotRunnerTest, AResetSlotIsLikeANewOne) {
  const auto runner = Runner(true);
  const Bytes empty = State(*runner, 0);
  const std::vector<int32_t> ids = RandomIds(30, config_.vocab_size, 61);
  Ingest(*runner, 0, ids);
  EXPECT_NE(State(*runner, 0), empty);
  runner->Reset(0);
  EXPECT_EQ(State(*runner, 0), empty);
  EXPECT_THROW(Logits(*runner, 0), std::invalid_argument);
}

TEST_P(TorchSlotRunnerTest, RefusesIdsAndStatesThatCannotBe) {
  const auto runner = Runner(true);
  EXPECT_THROW(Step(*runner, {0}, {37}), std::invalid_argument);
  EXPECT_THROW(Step(*runner, {0}, {-1}), std::invalid_argument);
  Ingest(*runner, 0, std::vector<int32_t>{1, 2});
  Bytes state = State(*runner, 0);
  EXPECT_THROW(runner->Load(1, std::span(state).first(10)), std::invalid_argument);
  runner->layout().tokens(std::span(state))[1] = 37;
  EXPECT_THROW(runner->Load(1, state), std::invalid_argument);
  runner->layout().tokens(std::span(state))[1] = 3;
  runner->layout().position(std::span(state)) = -2;
  EXPECT_THROW(runner->Load(1, state), std::invalid_argument);
  EXPECT_EQ(runner->position(1), 0);
}

std::string CaseName(const testing::TestParamInfo<std::tuple<size_t, WindowPolicy>>& info) {
  return TinyCases()[std::get<0>(info.param)].name + (std::get<1>(info.param) == WindowPolicy::kHop ? "Hop" : "Slide");
}
INSTANTIATE_TEST_SUITE_P(All, TorchSlotRunnerTest,
                         testing::Combine(testing::Range<size_t>(0, TinyCases().size()),
                                          testing::Values(WindowPolicy::kHop, WindowPolicy::kSlide)),
                         CaseName);

TEST(TorchSlotRunner, NamesTheOptionItRefuses) {
  StrideHybridConfig config = TinyCases()[0].config;
  EXPECT_EQ(NewTorchSlotRunner(RandomModel(config), {.slots = 0}).status().message(), "slots is 0, allowed 1 or more");
  config.stride = config.m_input_tokens;
  config.window_policy = WindowPolicy::kSlide;
  const auto runner = NewTorchSlotRunner(RandomModel(config), {.window_policy = WindowPolicy::kHop});
  EXPECT_EQ(runner.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(TorchSlotRunner, ABfloat16WindowStaysNearAndLeavesTheMemoryPathExact) {
  at::NoGradGuard no_grad;
  const StrideHybridConfig config = TinyCases()[0].config;
  const std::vector<int32_t> ids = RandomIds(60, config.vocab_size);
  StrideHybridModel exact = RandomModel(config), rounded = RandomModel(config);
  rounded->set_window_dtype(at::kBFloat16);
  rounded->StoreInWindowDtype();
  const auto a = *NewTorchSlotRunner(exact, {.slots = 1}), b = *NewTorchSlotRunner(rounded, {.slots = 1});
  std::vector<float> x(config.vocab_size), y(config.vocab_size);
  double largest = 0;
  for (const int32_t id : ids) {
    a->Step(std::vector<int32_t>{0}, std::vector<int32_t>{id}, x.data());
    b->Step(std::vector<int32_t>{0}, std::vector<int32_t>{id}, y.data());
    for (size_t i = 0; i < x.size(); ++i) largest = std::max<double>(largest, std::abs(x[i] - y[i]));
  }
  EXPECT_GT(largest, 0);
  EXPECT_LT(largest, 0.2);
  Bytes p(a->layout().bytes()), q(a->layout().bytes());
  a->Save(0, p);
  b->Save(0, q);
  EXPECT_EQ(p, q);
}

}  // namespace
}  // namespace smt
