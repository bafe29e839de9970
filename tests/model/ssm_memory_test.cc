#include "model/ssm_memory.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/stack.h>
#include <gtest/gtest.h>

#include "tests/model/tiny_models.h"

namespace smt {
namespace {

class SsmMemoryTest : public testing::TestWithParam<size_t> {
 protected:
  SsmMemoryTest() : config_(TinyCases()[GetParam()].config), model_(RandomModel(config_)) {}
  // [batch, steps, D] of pooled vectors' size.
  at::Tensor Inputs(int64_t batch, int64_t steps) {
    return model_->Embed(AsTensor(RandomIds(batch * steps, config_.vocab_size))).view({batch, steps, config_.d_model});
  }

  at::NoGradGuard no_grad_;
  StrideHybridConfig config_;
  StrideHybridModel model_;
};

TEST_P(SsmMemoryTest, ScanGivesTheNumbersOfSteppingFromAnyState) {
  for (const int64_t steps : {1, 2, 3, 63, 64, 65, 200}) {
    const at::Tensor inputs = Inputs(2, steps);
    SsmState state = model_->ssm->Scan(Inputs(2, 5), model_->ssm->InitialState(2, at::kFloat)).state;
    const SsmResult scanned = model_->ssm->Scan(inputs, state);
    std::vector<at::Tensor> outputs;
    for (int64_t i = 0; i < steps; ++i) {
      const SsmResult step = model_->ssm->Step(inputs.select(1, i), state);
      outputs.push_back(step.output);
      state = step.state;
    }
    EXPECT_LE(MaxDifference(scanned.output, at::stack(outputs, 1)), 2e-5) << steps << " steps";
    for (size_t i = 0; i < state.conv.size(); ++i) EXPECT_LE(MaxDifference(scanned.state.conv[i], state.conv[i]), 2e-5);
    for (size_t i = 0; i < state.state.size(); ++i) {
      EXPECT_LE(MaxDifference(scanned.state.state[i], state.state[i]), 2e-5);
    }
  }
}

TEST_P(SsmMemoryTest, StepsLeaveTheStateTheyStartFromAlone) {
  const SsmState state = model_->ssm->InitialState(1, at::kFloat);
  const at::Tensor input = Inputs(1, 1).select(1, 0);
  const at::Tensor first = model_->ssm->Step(input, state).output;
  EXPECT_EQ(MaxDifference(model_->ssm->Step(input, state).output, first), 0);
}

INSTANTIATE_TEST_SUITE_P(All, SsmMemoryTest, testing::Range<size_t>(0, TinyCases().size()),
                         [](const auto& info) { return TinyCases()[info.param].name; });

TEST(Mamba, TheConvolutionStateHoldsTheLastInputsOldestFirstWithZerosBeforeTheStart) {
  at::NoGradGuard no_grad;
  const StrideHybridConfig config = TinyCases()[0].config;  // d_conv 4
  StrideHybridModel model = RandomModel(config);
  const at::Tensor inputs = model->Embed(AsTensor({1, 2, 3, 4, 5}));
  SsmState state = model->ssm->InitialState(1, at::kFloat);
  std::vector<at::Tensor> entered;  // the newest column after each step
  for (int64_t t = 0; t < 5; ++t) {
    state = model->ssm->Step(inputs.select(1, t), state).state;
    entered.push_back(state.conv[0].select(2, 3));
    for (int64_t tap = 0; tap < 4; ++tap) {
      const int64_t of = t - 3 + tap;
      const at::Tensor expected = of < 0 ? entered[0] * 0 : entered[of];
      EXPECT_EQ(MaxDifference(state.conv[0].select(2, tap), expected), 0) << "tap " << tap << " at " << t;
    }
  }
  EXPECT_GT(MaxDifference(entered[0], entered[1]), 1e-3);
}

}  // namespace
}  // namespace smt
