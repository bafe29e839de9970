#include "model/cost_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "model/parameter_statistics.h"
#include "model/tensor_names.h"

namespace smt {
namespace {

using ::testing::HasSubstr;

TEST(CostModelTest, ThePublishedNumbersComeOut) {
  const CostModel cost{StrideHybridConfig()};
  const CostModel::Published p = cost.PublishedNumbers(4096);
  EXPECT_EQ(p.window_attention, 3'244'800);
  EXPECT_EQ(p.pooling, 2'396'160);
  EXPECT_EQ(p.ssm, 36'864);
  EXPECT_NEAR(p.total, 5.7e6, 0.05e6);
  EXPECT_NEAR(p.full_attention, 12.9e9, 0.05e9);
  EXPECT_NEAR(p.full_attention / p.total, 2300, 50);
  EXPECT_EQ(p.window_activations, 49'920);
  EXPECT_NEAR(p.full_activations / p.window_activations, 63, 0.5);
  const std::string report = cost.Report();
  for (const char* figure :
       {"3.24M", "2.40M", "0.037M", "5.68M", "12.9G", "about 2300 times", "49,920 floats", "63 times"}) {
    EXPECT_THAT(report, HasSubstr(figure));
  }
}

// A model so small that a person can count it.
StrideHybridConfig Countable() {
  StrideHybridConfig config;
  config.vocab_size = 11;
  config.d_model = 2;
  config.n_ssm_outputs = 1;
  config.m_input_tokens = 4;
  config.stride = 2;
  config.transformer = {TransformerKind::kSimple, 1, 1, 5, 3, 1e-5};
  config.ssm = {SsmKind::kSimple, 1, 1, 1, 1, 1, 1e-5};
  return config;
}

TEST(CostModelTest, MultiplyAddsAreWhatCountingByHandGives) {
  const CostModel cost(Countable());
  // Write: keys of 5 rows 5*4, query 4, scores and sum 2*5*2; SSM in and out 2*4, decay and skip 2*2.
  EXPECT_EQ(cost.Write().multiply_adds, 20 + 4 + 20 + 8 + 4);
  EXPECT_EQ(cost.Ingest().multiply_adds, 56 / 2.0);
  // A row that sees k rows: projections 4*4, attention 2*k*2, MLP 2*2*3. Head 22.
  const auto row = [](double k) { return 16 + 4 * k + 12; };
  EXPECT_EQ(cost.CachedGpt2(9).multiply_adds, row(10) + 22);
  EXPECT_EQ(cost.Slide().multiply_adds, row(1) + row(2) + row(3) + row(4) + row(5) + 22 + 28);
  // Hop: every second token refills rows 1-3, the other adds one column that sees 4 rows.
  EXPECT_EQ(cost.Hop().multiply_adds, (row(1) + row(2) + row(3) + row(4)) / 2 + 22 + 28);
}

TEST(CostModelTest, HopIsCheaperThanSlideAndLengthOnlyMattersToTheCachedTransformer) {
  const CostModel cost{StrideHybridConfig()};
  EXPECT_LT(cost.Hop().multiply_adds * 4, cost.Slide().multiply_adds);
  EXPECT_LT(cost.Ingest().multiply_adds * 20, cost.Hop().multiply_adds);
  EXPECT_GT(cost.CachedGpt2(100000).session_bytes, 50 * cost.CachedGpt2(1000).session_bytes);
  EXPECT_EQ(CostModel(StrideHybridConfig(), 2).Hop().weight_bytes * 2, cost.Hop().weight_bytes);
}

TEST(ParameterStatisticsTest, PublishedModelsHaveTheirPublishedSizes) {
  const ParameterStatistics p = CountParameters(StrideHybridConfig());
  EXPECT_EQ(p.of(ModelPart::kTokenEmbedding) + p.of(ModelPart::kPositionEmbedding) + p.of(ModelPart::kTransformer),
            124'439'808);                                       // GPT-2 small
  EXPECT_EQ(p.of(ModelPart::kSsm), 129'135'360 - 50280 * 768);  // Mamba-130M less its (tied) embedding
  EXPECT_EQ(p.of(ModelPart::kPooling), 2 * 768 * 768);
  EXPECT_EQ(p.of(ModelPart::kHead), 0);
}

TEST(ExpectedTensorsTest, NamesAreUniqueForEveryKindAndAnUntiedHeadIsOneTensorMore) {
  for (const TransformerKind transformer : {TransformerKind::kGpt2, TransformerKind::kSimple}) {
    for (const SsmKind ssm : {SsmKind::kMamba, SsmKind::kSimple}) {
      StrideHybridConfig config;
      config.transformer.kind = transformer;
      config.ssm.kind = ssm;
      std::set<std::string> names;
      const auto tied = ExpectedTensors(config);
      for (const TensorSpec& spec : tied) EXPECT_TRUE(names.insert(spec.name).second) << spec.name;
      config.tie_word_embeddings = false;
      EXPECT_EQ(ExpectedTensors(config).size(), tied.size() + 1);
    }
  }
}

}  // namespace
}  // namespace smt
