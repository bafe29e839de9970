// Gradients flow through everything, and are right: finite differences in float64.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/log_softmax.h>
#include <gtest/gtest.h>

#include "tests/model/tiny_models.h"

namespace smt {
namespace {

// Mean negative log-likelihood of the next token.
at::Tensor Loss(StrideHybridModel& model, const at::Tensor& ids, const HybridState* initial = nullptr) {
  const int64_t length = ids.size(1);
  const at::Tensor logits = model->Forward(ids, initial).logits.narrow(1, 0, length - 1);
  return -at::log_softmax(logits, -1).gather(2, ids.narrow(1, 1, length - 1).unsqueeze(2)).mean();
}

class GradientTest : public testing::TestWithParam<size_t> {};

TEST_P(GradientTest, EveryParameterGetsTheSlopeThatFiniteDifferencesMeasure) {
  for (const WindowPolicy policy : {WindowPolicy::kHop, WindowPolicy::kSlide}) {
    StrideHybridConfig config = TinyCases()[GetParam()].config;
    config.window_policy = policy;
    StrideHybridModel model = RandomModel(config);
    model->to(at::kDouble);
    model->set_window_dtype(at::kDouble);
    const at::Tensor ids = AsTensor(RandomIds(4 * config.stride + 3, config.vocab_size));
    Loss(model, ids).backward();
    at::NoGradGuard no_grad;
    for (auto& item : model->named_parameters()) {
      at::Tensor parameter = item.value();
      ASSERT_TRUE(parameter.grad().defined()) << item.key();
      // The element with the largest slope, so that there is something to measure.
      const at::Tensor gradient = parameter.grad().flatten();
      const int64_t at = gradient.abs().argmax().item<int64_t>();
      const at::Tensor element = parameter.view({-1}).select(0, at);
      const double value = element.item<double>(), step = 1e-5;
      element.fill_(value + step);
      const double above = Loss(model, ids).item<double>();
      element.fill_(value - step);
      const double below = Loss(model, ids).item<double>();
      element.fill_(value);
      const double slope = gradient[at].item<double>();
      EXPECT_NEAR((above - below) / (2 * step), slope, 1e-6 + 1e-5 * std::abs(slope)) << item.key();
      EXPECT_GT(std::abs(slope), 1e-9) << item.key();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, GradientTest, testing::Range<size_t>(0, TinyCases().size()),
                         [](const auto& info) { return TinyCases()[info.param].name; });

TEST(Gradient, FlowsBackThroughTheStateAndStopsWhereItIsDetached) {
  const StrideHybridConfig config = TinyCases()[0].config;
  StrideHybridModel model = RandomModel(config);
  const at::Tensor ids = AsTensor(RandomIds(40, config.vocab_size));
  // in_proj acts at writes only. The second part has no write of its own, so a slope can only come through the state.
  const auto slope = [&](bool detached) {
    model->zero_grad();
    const ForwardResult first = model->Forward(ids.narrow(1, 0, 36), nullptr, {.logits = false});
    const HybridState state = detached ? Detach(first.aux.final_state) : first.aux.final_state;
    const at::Tensor loss = Loss(model, ids.narrow(1, 36, 3), &state);
    loss.backward();
    const at::Tensor gradient = model->named_parameters()["ssm.backbone.layers.0.mixer.in_proj.weight"].grad();
    return gradient.defined() ? gradient.abs().sum().item<double>() : 0.0;
  };
  EXPECT_GT(slope(false), 1e-6);
  EXPECT_EQ(slope(true), 0);
}

TEST(Gradient, FloatParametersTrainUnderABfloat16Window) {
  const StrideHybridConfig config = TinyCases()[0].config;
  StrideHybridModel exact = RandomModel(config), rounded = RandomModel(config);
  rounded->set_window_dtype(at::kBFloat16);
  const at::Tensor ids = AsTensor(RandomIds(40, config.vocab_size));
  Loss(exact, ids).backward();
  Loss(rounded, ids).backward();
  for (auto& item : rounded->named_parameters()) {
    EXPECT_EQ(item.value().grad().scalar_type(), at::kFloat) << item.key();
    const at::Tensor expected = exact->named_parameters()[item.key()].grad();
    EXPECT_LE(MaxDifference(item.value().grad(), expected), 0.02 + 0.1 * expected.abs().max().item<double>())
        << item.key();
  }
}

}  // namespace
}  // namespace smt
