// The bundled model against golden tensors that an independent implementation made (tests/golden/books-6m): Forward,
// steps and greedy ids of every runner.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "model/io/safetensors.h"
#include "model/runners.h"
#include "model/stride_hybrid_model.h"
#include "tests/model/tiny_models.h"

namespace smt {
namespace {

constexpr char kModel[] = "models/books-6m";
constexpr char kFixture[] = "tests/golden/books-6m/fixture.safetensors";

class ReferenceFixtureTest : public testing::TestWithParam<WindowPolicy> {
 protected:
  void SetUp() override {
    absl::StatusOr<StrideHybridModel> model = LoadStrideHybridModel(kModel, {.window_policy = GetParam()});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *model;
    absl::StatusOr<SafetensorsReader> fixture = SafetensorsReader::Open(kFixture);
    ASSERT_TRUE(fixture.ok()) << fixture.status();
    fixture_ = std::make_unique<SafetensorsReader>(*fixture);
    ids_ = *fixture_->ReadInt32("input_ids");
    greedy_ = *fixture_->ReadInt32(std::string("greedy_") + std::string(Name(GetParam())));
  }
  at::Tensor Golden(const std::string& name) {
    std::vector<float> values = *fixture_->ReadFloat32(name);
    return at::from_blob(values.data(), (*fixture_->Get(name))->shape, at::kFloat).clone();
  }
  at::Tensor GoldenLogits() { return Golden(std::string("logits_") + std::string(Name(GetParam()))); }

  // Every greedy id is the argmax of what it follows, or within 2e-3 of it.
  void ExpectGreedy(SlotRunner& runner) {
    std::vector<float> logits(runner.config().vocab_size);
    const int32_t slot = 0;
    runner.Ingest(std::vector<SlotRunner::Chunk>{{slot, ids_}});
    for (size_t i = 0; i < greedy_.size(); ++i) {
      if (i == 0) {
        runner.Logits({&slot, 1}, logits.data());
      } else {
        runner.Step({&slot, 1}, {&greedy_[i - 1], 1}, logits.data());
      }
      EXPECT_LE(*std::max_element(logits.begin(), logits.end()) - logits[greedy_[i]], 2e-3) << "greedy id " << i;
    }
  }

  at::NoGradGuard no_grad_;
  StrideHybridModel model_{nullptr};
  std::unique_ptr<SafetensorsReader> fixture_;
  std::vector<int32_t> ids_, greedy_;
};

TEST_P(ReferenceFixtureTest, ForwardGivesTheGoldenTensors) {
  const ForwardResult result = model_->Forward(AsTensor(ids_));
  EXPECT_LE(MaxDifference(result.logits.select(0, 0), GoldenLogits()), 1e-3);
  EXPECT_LE(MaxDifference(result.aux.ssm_outputs.select(0, 0), Golden("ssm_outputs")), 1e-4);
  EXPECT_LE(MaxDifference(result.aux.pool_weights.select(0, 0), Golden("pool_weights")), 1e-4);
  const SsmState& ssm = result.aux.final_state.ssm;
  for (size_t i = 0; i < ssm.conv.size(); ++i) {
    const at::Tensor conv = Golden("ssm_conv." + std::to_string(i)), state = Golden("ssm_state." + std::to_string(i));
    EXPECT_LE(((ssm.conv[i].select(0, 0) - conv).abs() - 1e-5 * conv.abs()).max().item<double>(), 1e-4);
    EXPECT_LE(((ssm.state[i].select(0, 0) - state).abs() - 1e-5 * state.abs()).max().item<double>(), 1e-4);
  }
}

TEST_P(ReferenceFixtureTest, ReferenceStepsGiveTheGoldenLogits) {
  WindowManager session(model_->config(), *model_->ssm);
  const at::Tensor golden = GoldenLogits();
  for (size_t i = 0; i < ids_.size(); ++i) {
    ASSERT_LE(MaxDifference(model_->Step(session, ids_[i]), golden.select(0, i)), 1e-3) << "after " << i + 1;
  }
}

TEST_P(ReferenceFixtureTest, EveryRunnerGivesTheGoldenLogitsAndGreedyIds) {
  const at::Tensor golden = GoldenLogits();
  for (const auto impl : {RunnerOptions::Impl::kTorch, RunnerOptions::Impl::kCpuKernels}) {
    for (const bool deterministic : {true, false}) {
      const auto runner = NewSlotRunner(
          {.model_dir = kModel, .deterministic = deterministic, .slots = 2, .window_policy = GetParam(), .impl = impl});
      ASSERT_TRUE(runner.ok()) << runner.status();
      SCOPED_TRACE((*runner)->numerics_id());
      std::vector<float> logits(4096);
      for (size_t i = 0; i < ids_.size(); ++i) {
        (*runner)->Step(std::vector<int32_t>{1}, {&ids_[i], 1}, logits.data());
        ASSERT_LE(MaxDifference(at::from_blob(logits.data(), {4096}), golden.select(0, i)), 1e-3) << "after " << i + 1;
      }
      ExpectGreedy(**runner);
    }
  }
}

TEST_P(ReferenceFixtureTest, GenerateGoesOnGreedilyAsTheGoldenIds) {
  const auto ids = model_->Generate(ids_, {.sampling = {.temperature = 0}, .max_tokens = 64});
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(*ids, greedy_);
}

TEST_P(ReferenceFixtureTest, ABfloat16WindowStaysNear) {
  const auto rounded = LoadStrideHybridModel(kModel, {.dtype = at::kBFloat16, .window_policy = GetParam()});
  ASSERT_TRUE(rounded.ok()) << rounded.status();
  StrideHybridModel model = *rounded;
  const ForwardResult result = model->Forward(AsTensor(ids_));
  const at::Tensor difference = (result.logits.select(0, 0) - GoldenLogits()).abs();
  EXPECT_GT(difference.max().item<double>(), 1e-3);  // it is bfloat16 indeed
  EXPECT_LT(difference.mean().item<double>(), 0.05);
  EXPECT_LE(MaxDifference(result.aux.ssm_outputs.select(0, 0), Golden("ssm_outputs")), 1e-4);
}

INSTANTIATE_TEST_SUITE_P(BothPolicies, ReferenceFixtureTest, testing::Values(WindowPolicy::kHop, WindowPolicy::kSlide),
                         [](const auto& info) { return info.param == WindowPolicy::kHop ? "Hop" : "Slide"; });

TEST(NewSlotRunner, TheOptionsPoolScopeWinsOverTheConfigs) {
  const std::vector<int32_t> ids = RandomIds(150, 4096);
  at::NoGradGuard no_grad;
  absl::StatusOr<StrideHybridModel> model = LoadStrideHybridModel(kModel, {.pool_scope = PoolScope::kTokens});
  ASSERT_TRUE(model.ok()) << model.status();
  const at::Tensor expected = (*model)->Forward(AsTensor(ids)).aux.ssm_outputs[0];
  for (const auto impl : {RunnerOptions::Impl::kTorch, RunnerOptions::Impl::kCpuKernels}) {
    const auto runner =
        NewSlotRunner({.model_dir = kModel, .slots = 1, .pool_scope = PoolScope::kTokens, .impl = impl});
    ASSERT_TRUE(runner.ok()) << runner.status();
    EXPECT_EQ((*runner)->config().pool_scope, PoolScope::kTokens);
    int64_t writes = 0;
    (*runner)->SetWriteObserver([&](const SlotRunner::WriteEvent& event) {
      const at::Tensor output =
          at::from_blob(const_cast<float*>(event.ssm_output.data()), {static_cast<int64_t>(event.ssm_output.size())});
      EXPECT_LE(MaxDifference(output, expected[writes++]), 1e-4);
    });
    (*runner)->Ingest(std::vector<SlotRunner::Chunk>{{0, ids}});
    EXPECT_EQ(writes, expected.size(0));
  }
}

TEST(NewSlotRunner, NamesTheOptionItRefuses) {
  EXPECT_EQ(NewSlotRunner({.model_dir = kModel, .dtype = "int8"}).status().message(),
            "dtype is \"int8\", allowed float32, bfloat16 or float16");
  EXPECT_EQ(NewSlotRunner({.model_dir = kModel, .slots = 0}).status().message(), "slots is 0, allowed 1 or more");
  EXPECT_EQ(NewSlotRunner({.model_dir = kModel, .device = "tpu", .impl = RunnerOptions::Impl::kTorch}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(NewSlotRunner({.model_dir = "models/none"}).status().code(), absl::StatusCode::kNotFound);
}

TEST(Generate, RefusesWhatItCannotGoOnFrom) {
  const auto runner = NewSlotRunner({.model_dir = kModel, .slots = 1});
  ASSERT_TRUE(runner.ok());
  EXPECT_EQ(Generate(**runner, 0, {}, {}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Generate(**runner, 0, std::vector<int32_t>{4096}, {}).status().message(),
            "prompt id 0 is 4096, allowed 0 to 4095");
  EXPECT_EQ(Generate(**runner, 0, std::vector<int32_t>{1}, {.max_tokens = -1}).status().message(),
            "max_tokens is -1, allowed 0 or more");
}

TEST(Generate, TheSeedAndThePositionAloneDecideWhatIsDrawn) {
  const auto runner = NewSlotRunner({.model_dir = kModel, .slots = 2});
  ASSERT_TRUE(runner.ok());
  const std::vector<int32_t> prompt = {0, 70, 80, 90};
  GenerateOptions options = {.sampling = {.temperature = 1.0f, .top_k = 50, .top_p = 0.95f, .seed = 7},
                             .max_tokens = 20};
  const std::vector<int32_t> whole = *Generate(**runner, 0, prompt, options);
  ASSERT_EQ(whole.size(), 20u);
  // In two parts: the second begins with the id drawn last, which the first did not absorb.
  options.max_tokens = 8;
  std::vector<int32_t> parts = *Generate(**runner, 1, prompt, options);
  options.max_tokens = 12;
  const std::vector<int32_t> rest = *Generate(**runner, 1, std::vector<int32_t>{parts.back()}, options);
  parts.insert(parts.end(), rest.begin(), rest.end());
  EXPECT_EQ(parts, whole);
  options.stop_ids = {whole[3]};
  options.max_tokens = 20;
  (*runner)->Reset(0);
  const std::vector<int32_t> stopped = *Generate(**runner, 0, prompt, options);
  EXPECT_EQ(stopped.back(), whole[3]);
  EXPECT_LE(stopped.size(), 4u);
}

}  // namespace
}  // namespace smt
