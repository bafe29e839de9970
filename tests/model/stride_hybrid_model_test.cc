// Equality of paths: Forward = reference steps = Ingest + Step, for every tiny model under both policies.
#include "model/stride_hybrid_model.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <gtest/gtest.h>

#include <cstring>
#include <span>
#include <tuple>

#include "tests/model/tiny_models.h"

namespace smt {
namespace {

constexpr double kTolerance = 1e-4;

class StrideHybridModelTest : public testing::TestWithParam<std::tuple<size_t, WindowPolicy>> {
 protected:
  StrideHybridModelTest() {
    config_ = TinyCases()[std::get<0>(GetParam())].config;
    config_.window_policy = std::get<1>(GetParam());
    model_ = RandomModel(config_);
  }

  at::Tensor Steps(WindowManager& session, std::span<const int32_t> ids) {
    std::vector<at::Tensor> logits;
    for (const int32_t id : ids) logits.push_back(model_->Step(session, id));
    return at::stack(logits);
  }
  // |Δ| ≤ 1e-4 + 1e-5 |x|, everything that a state holds.
  void ExpectSameState(const HybridState& state, const WindowManager& session) {
    std::vector<std::byte> bytes(session.layout().bytes());
    session.Save(bytes);
    const HybridState expected = UnpackState(config_, session.layout(), bytes);
    EXPECT_EQ(state.position, expected.position);
    EXPECT_EQ(MaxDifference(state.tokens, expected.tokens), 0);
    EXPECT_LE(MaxDifference(state.memory, expected.memory), kTolerance);
    ASSERT_EQ(state.ssm.conv.size(), expected.ssm.conv.size());
    for (size_t i = 0; i < state.ssm.conv.size(); ++i) {
      EXPECT_LE(MaxDifference(state.ssm.conv[i], expected.ssm.conv[i]), kTolerance);
    }
    ASSERT_EQ(state.ssm.state.size(), expected.ssm.state.size());
    for (size_t i = 0; i < state.ssm.state.size(); ++i) {
      const double magnitude = expected.ssm.state[i].abs().max().item<double>();
      EXPECT_LE(MaxDifference(state.ssm.state[i], expected.ssm.state[i]), kTolerance + 1e-5 * magnitude);
    }
  }

  at::NoGradGuard no_grad_;
  StrideHybridConfig config_;
  StrideHybridModel model_{nullptr};
};

TEST_P(StrideHybridModelTest, ForwardGivesTheLogitsAndStateOfSteppingTokenByToken) {
  const std::vector<int32_t> ids = RandomIds(200, config_.vocab_size);
  WindowManager session(config_, *model_->ssm);
  const at::Tensor stepped = Steps(session, ids);
  const ForwardResult forward = model_->Forward(AsTensor(ids));
  EXPECT_LE(MaxDifference(forward.logits.select(0, 0), stepped), kTolerance);
  ExpectSameState(forward.aux.final_state, session);
  EXPECT_EQ(forward.aux.ssm_outputs.size(1), 200 / config_.stride);
  EXPECT_EQ(forward.aux.pool_weights.sizes(), (std::vector<int64_t>{1, 200 / config_.stride, config_.window()}));
  EXPECT_GT(stepped.std().item<double>(), 0.1);  // or equality would say little
}

TEST_P(StrideHybridModelTest, ForwardOfFiveHundredTokensStaysWithinTolerance) {
  const std::vector<int32_t> ids = RandomIds(512, config_.vocab_size, 9);
  WindowManager session(config_, *model_->ssm);
  EXPECT_LE(MaxDifference(model_->Forward(AsTensor(ids)).logits.select(0, 0), Steps(session, ids)), kTolerance);
}

TEST_P(StrideHybridModelTest, IngestThenStepGivesTheLogitsOfForwardWhereverThePromptEnds) {
  const int64_t s = config_.stride, m = config_.m_input_tokens;
  const std::vector<int32_t> ids = RandomIds(5 * s + 2 * m + 9, config_.vocab_size, 3);
  const at::Tensor logits = model_->Forward(AsTensor(ids)).logits.select(0, 0);
  for (const int64_t prompt : {int64_t{0}, int64_t{1}, s - 1, s, s + 1, m, 5 * s - 1, 5 * s, 5 * s + 1, 5 * s + m}) {
    WindowManager session(config_, *model_->ssm);
    model_->Ingest(session, std::span(ids).first(prompt));
    const at::Tensor stepped = Steps(session, std::span(ids).subspan(prompt, m + 3));
    EXPECT_LE(MaxDifference(logits.narrow(0, prompt, m + 3), stepped), kTolerance) << "prompt of " << prompt;
  }
}

TEST_P(StrideHybridModelTest, ForwardGoesOnFromTheStateOfAnotherForward) {
  const int64_t s = config_.stride;
  const std::vector<int32_t> ids = RandomIds(90, config_.vocab_size, 4);
  const at::Tensor all = AsTensor(ids);
  const ForwardResult whole = model_->Forward(all);
  for (const int64_t cut : {int64_t{1}, s - 1, s, s + 1, 6 * s - 1, 6 * s, 6 * s + 1, int64_t{89}}) {
    if (cut < 1 || cut > 89) continue;
    const ForwardResult head = model_->Forward(all.narrow(1, 0, cut));
    const ForwardResult tail = model_->Forward(all.narrow(1, cut, 90 - cut), &head.aux.final_state);
    EXPECT_LE(MaxDifference(whole.logits, at::cat({head.logits, tail.logits}, 1)), kTolerance) << "cut at " << cut;
    EXPECT_LE(MaxDifference(whole.aux.ssm_outputs, at::cat({head.aux.ssm_outputs, tail.aux.ssm_outputs}, 1)),
              kTolerance);
    EXPECT_LE(MaxDifference(whole.aux.pool_weights, at::cat({head.aux.pool_weights, tail.aux.pool_weights}, 1)),
              kTolerance);
    EXPECT_EQ(tail.aux.final_state.position, 90);
  }
}

TEST_P(StrideHybridModelTest, HowManyWindowsGoTogetherChangesNothingButRounding) {
  const at::Tensor ids = AsTensor(RandomIds(60, config_.vocab_size, 5));
  const at::Tensor all = model_->Forward(ids).logits;
  for (const int64_t rows : {1, 70}) {
    EXPECT_LE(MaxDifference(all, model_->Forward(ids, nullptr, {.rows_at_once = rows}).logits), 1e-5);
  }
}

TEST_P(StrideHybridModelTest, RowsOfABatchAreTheSameAsAlone) {
  const at::Tensor a = AsTensor(RandomIds(50, config_.vocab_size, 6)),
                   b = AsTensor(RandomIds(50, config_.vocab_size, 7));
  const ForwardResult both = model_->Forward(at::cat({a, b}, 0));
  EXPECT_LE(MaxDifference(both.logits, at::cat({model_->Forward(a).logits, model_->Forward(b).logits}, 0)), 1e-5);
}

TEST_P(StrideHybridModelTest, SlotsAtDifferentPhasesStepTogetherAsAlone) {
  const std::vector<std::vector<int32_t>> texts = {RandomIds(40, config_.vocab_size, 11),
                                                   RandomIds(33, config_.vocab_size, 12),
                                                   RandomIds(29, config_.vocab_size, 13)};
  BatchedWindowManager slots(config_, *model_->ssm, 3, at::kCPU);
  std::vector<at::Tensor> expected;
  for (const auto& text : texts) expected.push_back(model_->Forward(AsTensor(text)).logits.select(0, 0));
  // The i-th session joins at step 3 i and leaves when its text ends.
  for (size_t step = 0; step < 46; ++step) {
    std::vector<int32_t> active, ids;
    for (size_t i = 0; i < texts.size(); ++i) {
      if (step < 3 * i || step - 3 * i >= texts[i].size()) continue;
      active.push_back(static_cast<int32_t>(i));
      ids.push_back(texts[i][step - 3 * i]);
    }
    if (active.empty()) continue;
    const at::Tensor logits = model_->Step(slots, active, ids);
    for (size_t row = 0; row < active.size(); ++row) {
      const size_t i = active[row];
      EXPECT_LE(MaxDifference(logits.select(0, row), expected[i].select(0, step - 3 * i)), kTolerance);
    }
  }
}

TEST_P(StrideHybridModelTest, BothPoliciesHaveTheSameMemoryStream) {
  const at::Tensor ids = AsTensor(RandomIds(80, config_.vocab_size, 8));
  const ForwardResult hop = model_->Forward(ids, nullptr, {.policy = WindowPolicy::kHop});
  const ForwardResult slide = model_->Forward(ids, nullptr, {.policy = WindowPolicy::kSlide});
  EXPECT_EQ(MaxDifference(hop.aux.ssm_outputs, slide.aux.ssm_outputs), 0);
  EXPECT_EQ(MaxDifference(hop.aux.pool_weights, slide.aux.pool_weights), 0);
}

TEST_P(StrideHybridModelTest, PoolWeightsOfEachWriteSumToOne) {
  const at::Tensor weights = model_->Forward(AsTensor(RandomIds(80, config_.vocab_size, 8))).aux.pool_weights;
  EXPECT_LE((weights.sum(-1) - 1).abs().max().item<double>(), 1e-5);
}

std::string CaseName(const testing::TestParamInfo<std::tuple<size_t, WindowPolicy>>& info) {
  return TinyCases()[std::get<0>(info.param)].name + (std::get<1>(info.param) == WindowPolicy::kHop ? "Hop" : "Slide");
}
INSTANTIATE_TEST_SUITE_P(All, StrideHybridModelTest,
                         testing::Combine(testing::Range<size_t>(0, TinyCases().size()),
                                          testing::Values(WindowPolicy::kHop, WindowPolicy::kSlide)),
                         CaseName);

TEST(StrideHybridModel, SlideAllowsAStrideOfAllTokens) {
  at::NoGradGuard no_grad;
  StrideHybridConfig config = TinyCases()[0].config;
  config.window_policy = WindowPolicy::kSlide;
  config.stride = config.m_input_tokens;
  StrideHybridModel model = RandomModel(config);
  const std::vector<int32_t> ids = RandomIds(50, config.vocab_size);
  WindowManager session(config, *model->ssm);
  const at::Tensor logits = model->Forward(AsTensor(ids)).logits.select(0, 0);
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_LE(MaxDifference(model->Step(session, ids[i]), logits.select(0, i)), kTolerance);
  }
}

TEST(StrideHybridModel, ForwardOfNoTokensLeavesTheStateAsItWas) {
  at::NoGradGuard no_grad;
  StrideHybridModel model = RandomModel(TinyCases()[0].config);
  const ForwardResult first = model->Forward(AsTensor(RandomIds(17, 37)));
  const ForwardResult empty = model->Forward(AsTensor({}), &first.aux.final_state);
  EXPECT_EQ(empty.logits.sizes(), (std::vector<int64_t>{1, 0, 37}));
  EXPECT_EQ(empty.aux.final_state.position, 17);
  EXPECT_EQ(MaxDifference(empty.aux.final_state.memory, first.aux.final_state.memory), 0);
}

TEST(StrideHybridModel, MemoryReachesFurtherThanTheWindow) {
  at::NoGradGuard no_grad;
  const StrideHybridConfig config = TinyCases()[0].config;
  StrideHybridModel model = RandomModel(config);
  std::vector<int32_t> ids = RandomIds(60, config.vocab_size);
  const at::Tensor before = model->Forward(AsTensor(ids)).logits.select(1, 59);
  ids[0] = (ids[0] + 1) % 37;  // out of every window since long, and out of the memory ring's strides
  EXPECT_GT(MaxDifference(before, model->Forward(AsTensor(ids)).logits.select(1, 59)), 1e-6);
}

}  // namespace
}  // namespace smt
