#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "model/config_fields.h"
#include "model/state_layout.h"
#include "tests/testing/process.h"

namespace smt {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

std::string ErrorOf(std::string_view json) {
  const auto config = StrideHybridConfig::FromJson(json);
  return config.ok() ? "" : std::string(config.status().message());
}

TEST(StrideHybridConfigTest, AnEmptyObjectIsTheDefaultsAndValid) {
  const auto config = StrideHybridConfig::FromJson("{}");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(DifferingFields(*config, StrideHybridConfig()), IsEmpty());
  EXPECT_EQ(config->window(), 65);
  EXPECT_EQ(config->dt_rank(), 48);
}

TEST(StrideHybridConfigTest, TwelveViolationsAreReportedAtOnce) {
  const std::string error = ErrorOf(R"({
    "model_type": "gpt2", "vocab_size": 0, "d_model": 10.5, "n_ssm_outputs": -3, "m_input_tokens": "fifty",
    "window_policy": "jump", "pool_scope": 7, "tie_word_embeddings": "yes", "bos_token_id": -1,
    "transformer": {"n_layer": 1e3, "layer_norm_epsilon": 0},
    "ssm": {"d_conv": 0, "rms_norm_epsilon": -1e-5}})");
  EXPECT_THAT(error, HasSubstr("13 violations: "));
  for (const char* part :
       {"model_type is \"gpt2\", must be \"stride_hybrid\"", "vocab_size is 0, must be an integer in [1, 16777216]",
        "d_model is 10.5, must be an integer", "n_ssm_outputs is -3", "m_input_tokens is \"fifty\"",
        "window_policy is \"jump\", must be \"hop\" or \"slide\"", "pool_scope is 7, must be \"window\" or \"tokens\"",
        "tie_word_embeddings is \"yes\", must be true or false", "bos_token_id is -1", "transformer.n_layer is 1000.0",
        "transformer.layer_norm_epsilon is 0, must be a number in (0, 1]", "ssm.d_conv is 0",
        "ssm.rms_norm_epsilon is -1e-05"}) {
    EXPECT_THAT(error, HasSubstr(part));
  }
}

TEST(StrideHybridConfigTest, RulesBetweenFieldsNameBoth) {
  StrideHybridConfig config;
  config.stride = 51;
  EXPECT_THAT(config.Validate(), ElementsAre("stride is 51, must be at most m_input_tokens (50)"));
  config.stride = 50;
  EXPECT_THAT(config.Validate(),
              ElementsAre("stride is 50, must be less than m_input_tokens (50) under window_policy \"hop\""));
  config.window_policy = WindowPolicy::kSlide;
  EXPECT_THAT(config.Validate(), IsEmpty());

  config.transformer.n_positions = 64;
  config.transformer.n_head = 7;
  config.bos_token_id = 50257;
  EXPECT_THAT(config.Validate(),
              ElementsAre("transformer.n_positions is 64, must be at least n_ssm_outputs + m_input_tokens (65)",
                          "d_model is 768, must be a multiple of transformer.n_head (7)",
                          "bos_token_id is 50257, must be in [0, vocab_size) (vocab_size is 50257)"));
}

TEST(StrideHybridConfigTest, ABadFieldIsNotBlamedTwice) {
  EXPECT_EQ(ErrorOf(R"({"m_input_tokens": "many", "stride": 60})"),
            "1 violation: m_input_tokens is \"many\", must be an integer in [1, 65536]");
  StrideHybridConfig config;
  config.transformer.n_head = 0;
  EXPECT_THAT(config.Validate(), ElementsAre(HasSubstr("transformer.n_head is 0")));
}

TEST(StrideHybridConfigTest, HostileJsonIsRefusedWithASentence) {
  EXPECT_THAT(ErrorOf(""), HasSubstr("not JSON"));
  EXPECT_THAT(ErrorOf("{"), HasSubstr("not JSON"));
  EXPECT_THAT(ErrorOf("{\"vocab_size\": NaN}"), HasSubstr("not JSON"));
  EXPECT_THAT(ErrorOf("{\"d_model\": 1e999}"), HasSubstr("not JSON"));
  EXPECT_THAT(ErrorOf(std::string("{\"a\": \"\xff\xfe\"}")), HasSubstr("not JSON"));
  EXPECT_THAT(ErrorOf("[1, 2]"), HasSubstr("must be an object"));
  EXPECT_THAT(ErrorOf("null"), HasSubstr("must be an object"));
  EXPECT_THAT(ErrorOf(R"({"transformer": [], "ssm": 3})"), HasSubstr("ssm is 3, must be an object"));
  // Its fields are not judged besides, nor rules over them.
  EXPECT_THAT(ErrorOf(R"({"transformer": [], "d_model": 32})"), HasSubstr("1 violation: "));
  EXPECT_THAT(ErrorOf(R"({"d_model": 99999999999999999999999})"),
              HasSubstr("d_model is 9.999999999999999e+22, must be an integer"));
  EXPECT_THAT(ErrorOf(R"({"d_model": 18446744073709551615})"), HasSubstr("d_model is 18446744073709551615"));
  EXPECT_THAT(ErrorOf(R"({"d_model": -9223372036854775808})"), HasSubstr("d_model is -9223372036854775808"));
  EXPECT_THAT(ErrorOf(R"({"vocab_size": null, "stride": [], "d_model": {}})"), HasSubstr("3 violations"));
  EXPECT_THAT(ErrorOf(std::string(200000, '[')), HasSubstr("nested deeper"));
  EXPECT_THAT(ErrorOf("{\"x\": \"" + std::string(2 << 20, 'x') + "\"}"), HasSubstr("must be at most 1048576"));
  EXPECT_LT(ErrorOf("{\"window_policy\": \"" + std::string(5000, 'x') + "\"}").size(), 200u);
}

TEST(StrideHybridConfigTest, EveryFieldSurvivesTheRoundTrip) {
  StrideHybridConfig config;
  config.vocab_size = 300;
  config.d_model = 24;
  config.n_ssm_outputs = 3;
  config.m_input_tokens = 9;
  config.stride = 9;
  config.window_policy = WindowPolicy::kSlide;
  config.pool_scope = PoolScope::kTokens;
  config.tie_word_embeddings = false;
  config.bos_token_id = 0;
  config.eos_token_id = 299;
  config.transformer = {TransformerKind::kSimple, 2, 3, 12, 77, 0.1 + 0.2};
  config.ssm = {SsmKind::kSimple, 5, 6, 7, 8, 9, 1e-300};
  const std::string json = config.ToJson();
  const auto again = StrideHybridConfig::FromJson(json);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_THAT(DifferingFields(config, *again), IsEmpty());
  EXPECT_EQ(again->ToJson(), json);
  // Every field is written: none equals the default, so a forgotten one would differ.
  EXPECT_THAT(DifferingFields(config, StrideHybridConfig()), SizeIs(23));
}

TEST(StrideHybridConfigTest, UnknownKeysAreIgnoredWithAWarning) {
  std::vector<std::string> warnings;
  const auto config = StrideHybridConfig::FromJson(
      R"({"strid": 3, "ssm": {"d_stat": 4}, "notes": {"a": 1}, "eos_token_id": 0})", &warnings);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->stride, 16);
  EXPECT_THAT(warnings,
              ElementsAre("notes is not a known field and is ignored", "ssm.d_stat is not a known field and is ignored",
                          "strid is not a known field and is ignored"));
}

TEST(StrideHybridConfigTest, UnwiseValuesAreWarnedOf) {
  StrideHybridConfig config;
  config.eos_token_id = 50256;
  EXPECT_THAT(config.Warnings(), IsEmpty());
  config.stride = 1;
  EXPECT_THAT(config.Warnings(), Contains(HasSubstr("stride is 1")));
  config.stride = 49;
  EXPECT_THAT(config.Warnings(), Contains(HasSubstr("starts with only 1 token")));
  config.stride = 16;
  config.transformer.n_head = 256;
  EXPECT_THAT(config.Warnings(), Contains(HasSubstr("odd head width")));
  config.transformer.n_head = 1;
  EXPECT_THAT(config.Warnings(), Contains(HasSubstr("wider than 256")));
}

TEST(StrideHybridConfigTest, LoadNamesThePath) {
  const testing::TempDir dir;
  const auto missing = StrideHybridConfig::Load(dir.path());
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr(dir.file("config.json")));
  std::ofstream(dir.file("config.json")) << "{\"stride\": 0}";
  const auto bad = StrideHybridConfig::Load(dir.path());
  EXPECT_EQ(bad.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(bad.status().message()), HasSubstr(dir.file("config.json") + ": 1 violation: stride is 0"));
  EXPECT_FALSE(StrideHybridConfig::Load("/dev").ok());
}

TEST(StrideHybridConfigTest, TheBundledModelIsRead) {
  std::vector<std::string> warnings;
  const auto config = StrideHybridConfig::Load("models/books-6m", &warnings);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(warnings, IsEmpty());
  EXPECT_EQ(config->d_model, 256);
  EXPECT_EQ(config->ssm.dt_rank, 16);
  EXPECT_EQ(config->bos_token_id, 0);
  EXPECT_THAT(config->Summary(), HasSubstr("window W 65: n 15 memory vectors + m 50 tokens, a write every s 16"));
}

TEST(FingerprintTextTest, ServingFieldsAndSpelledOutDefaultsDoNotChangeIt) {
  StrideHybridConfig config;
  const std::string text = FingerprintText(config);
  config.window_policy = WindowPolicy::kSlide;
  config.eos_token_id = 3;
  config.ssm.dt_rank = 48;
  config.transformer.n_inner = 3072;
  EXPECT_EQ(FingerprintText(config), text);
  config.pool_scope = PoolScope::kTokens;
  EXPECT_NE(FingerprintText(config), text);
}

}  // namespace
}  // namespace smt
