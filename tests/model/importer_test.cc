#include "model/import/importer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "model/checkpoint.h"
#include "model/import/byte_vocabulary.h"
#include "model/import/initializer.h"
#include "model/import/presets.h"
#include "model/tokenizer/tokenizer.h"
#include "tests/model/model_folders.h"
#include "tests/testing/process.h"

namespace smt {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::HubFolders;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using testing::TempDir;
using ::testing::UnorderedElementsAre;

class ImporterTest : public ::testing::Test {
 protected:
  absl::Status Import(const HubFolders& folders) {
    folders.Write(dir_.path());
    return ImportAgain();
  }
  absl::Status ImportAgain() {
    report_ = {};
    return ImportModel(options_, &report_);
  }
  void Replace(std::string& text, const std::string& from, const std::string& to) {
    ASSERT_NE(text.find(from), std::string::npos) << from;
    text.replace(text.find(from), from.size(), to);
  }

  TempDir dir_;
  StrideHybridConfig config_ = testing::TinyConfig();
  ImportOptions options_{.gpt2_dir = dir_.file("gpt2"),
                         .mamba_dir = dir_.file("mamba"),
                         .out_dir = dir_.file("out"),
                         .n_ssm_outputs = 4,
                         .m_input_tokens = 12,
                         .stride = 4};
  ImportReport report_;
};

TEST_F(ImporterTest, TwoHubFoldersBecomeAModelWithTheirTensors) {
  const HubFolders folders = testing::MakeHubFolders(config_);
  folders.Write(dir_.path());
  testing::WriteText(dir_.file("gpt2/vocab.json"), ByteVocabularyJson());
  testing::WriteText(dir_.file("gpt2/merges.txt"), EmptyMerges());
  ASSERT_TRUE(ImportAgain().ok());
  EXPECT_THAT(report_.loaded, SizeIs(ExpectedTensors(config_).size() - 2));
  EXPECT_THAT(report_.loaded, Contains("transformer.wte.weight [257, 32] F32 from wte.weight F32"));
  EXPECT_THAT(report_.initialized, SizeIs(2));
  EXPECT_THAT(report_.missing, IsEmpty());
  EXPECT_THAT(report_.unexpected, IsEmpty());
  EXPECT_THAT(report_.ignored, SizeIs(3));
  EXPECT_THAT(report_.warnings, IsEmpty());

  const auto checkpoint = Checkpoint::Open(options_.out_dir);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const Checkpoint::Tensor& tensor : (*checkpoint)->tensors()) {
    if (tensor.name.starts_with("transformer.")) {
      EXPECT_EQ(tensor.bytes, folders.gpt2.at(tensor.name.substr(12)).bytes) << tensor.name;
    } else if (tensor.name.starts_with("ssm.")) {
      EXPECT_EQ(tensor.bytes, folders.mamba.at(tensor.name.substr(4)).bytes) << tensor.name;
    }
  }
  EXPECT_EQ((*checkpoint)->config().eos_token_id, 256);
  EXPECT_TRUE(Tokenizer::Load(options_.out_dir).ok());
}

TEST_F(ImporterTest, NamesWithPrefixesShardsAndAnUntiedHeadAreUnderstood) {
  config_.tie_word_embeddings = false;
  HubFolders folders = testing::MakeHubFolders(config_);
  testing::StoredTensors prefixed;
  for (const auto& [name, tensor] : folders.gpt2) {
    prefixed[name == "lm_head.weight" ? name : "transformer." + name] = tensor;
  }
  folders.gpt2 = prefixed;
  folders.Write(dir_.path());

  // Mamba in two shards.
  testing::StoredTensors shards[2];
  std::string index = R"({"metadata": {}, "weight_map": {)";
  size_t count = 0;
  for (const auto& [name, tensor] : folders.mamba) {
    index +=
        std::string(count ? ", " : "") + "\"" + name + "\": \"shard-" + std::to_string(count % 2) + ".safetensors\"";
    shards[count++ % 2][name] = tensor;
  }
  testing::WriteText(dir_.file("mamba/model.safetensors.index.json"), index + "}}");
  testing::WriteTensors(dir_.file("mamba/shard-0.safetensors"), shards[0]);
  testing::WriteTensors(dir_.file("mamba/shard-1.safetensors"), shards[1]);
  std::filesystem::remove(dir_.file("mamba/model.safetensors"));

  ASSERT_TRUE(ImportAgain().ok());
  EXPECT_THAT(report_.missing, IsEmpty());
  EXPECT_THAT(report_.warnings, ElementsAre(HasSubstr("has no vocab.json and merges.txt")));
  const auto checkpoint = Checkpoint::Open(options_.out_dir);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->Find("lm_head.weight")->bytes, folders.gpt2["lm_head.weight"].bytes);
}

TEST_F(ImporterTest, ATiedModelMayHaveOnlyItsHeadAndAHeadThatDiffersIsToldOf) {
  HubFolders folders = testing::MakeHubFolders(config_);
  const testing::StoredTensor embedding = folders.gpt2.at("wte.weight");
  folders.gpt2.erase("wte.weight");
  folders.gpt2["lm_head.weight"] = embedding;
  ASSERT_TRUE(Import(folders).ok());
  EXPECT_THAT(report_.loaded, Contains("transformer.wte.weight [257, 32] F32 from lm_head.weight F32"));
  EXPECT_EQ((*Checkpoint::Open(options_.out_dir))->Find("transformer.wte.weight")->bytes, embedding.bytes);

  std::filesystem::remove_all(options_.out_dir);
  folders.gpt2["wte.weight"] = embedding;
  ASSERT_TRUE(Import(folders).ok());
  EXPECT_THAT(report_.warnings, SizeIs(1));  // no tokenizer
  std::filesystem::remove_all(options_.out_dir);
  folders.gpt2["lm_head.weight"] = testing::Zeros({257, 32});
  ASSERT_TRUE(Import(folders).ok());
  EXPECT_THAT(report_.warnings, Contains(HasSubstr("lm_head.weight in")));
}

TEST_F(ImporterTest, ATokenizerThatDoesNotFitIsRefused) {
  testing::MakeHubFolders(config_).Write(dir_.path());
  testing::WriteText(dir_.file("gpt2/vocab.json"), ByteVocabularyJson());
  testing::WriteText(dir_.file("gpt2/merges.txt"), "h e\n");
  EXPECT_THAT(std::string(ImportAgain().message()), HasSubstr("gpt2/merges.txt: line 1: merges 'h' and 'e'"));
  testing::WriteText(dir_.file("gpt2/merges.txt"), EmptyMerges());
  InitOptions init{.config = config_, .out_dir = dir_.file("init"), .tokenizer_dir = dir_.file("gpt2")};
  EXPECT_TRUE(InitModel(init).ok());
  init.config.vocab_size = 256;
  init.config.bos_token_id = init.config.eos_token_id = 0;
  init.out_dir = dir_.file("init2");
  EXPECT_THAT(std::string(InitModel(init).message()), HasSubstr("vocab.json has 257 tokens, must have at most"));
}

TEST(InitModelTest, AModelThatCannotFitTheDiskIsRefusedAtOnce) {
  const TempDir dir;
  InitOptions options{.config = testing::TinyConfig(), .out_dir = dir.file("m")};
  options.config.vocab_size = 1 << 24;
  options.config.d_model = 1 << 16;
  const absl::Status status = InitModel(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("GB free"));
  EXPECT_FALSE(std::filesystem::exists(options.out_dir + "/config.json"));
}

TEST_F(ImporterTest, EverythingThatDoesNotFitIsReportedAndNothingIsWritten) {
  HubFolders folders = testing::MakeHubFolders(config_);
  folders.gpt2.erase("h.1.ln_2.bias");
  folders.gpt2["wpe.weight"] = testing::Zeros({31, 32});
  folders.gpt2["h.0.crossattention.q_attn.weight"] = testing::Zeros({32, 32});
  folders.mamba.erase("backbone.layers.0.mixer.D");
  folders.mamba["backbone.norm_f.weight"] = testing::Zeros({32}, SafetensorsDType::kF64);
  const absl::Status status = Import(folders);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("nothing was written: 2 tensors are missing and 2 have"));
  EXPECT_THAT(report_.missing, UnorderedElementsAre(HasSubstr("transformer.h.1.ln_2.bias [32] is not in"),
                                                    HasSubstr("ssm.backbone.layers.0.mixer.D [64] is not in")));
  EXPECT_THAT(report_.wrong_shape, UnorderedElementsAre(HasSubstr("transformer.wpe.weight is [31, 32]"),
                                                        HasSubstr("ssm.backbone.norm_f.weight is F64")));
  EXPECT_THAT(report_.unexpected, ElementsAre(HasSubstr("h.0.crossattention.q_attn.weight")));
  EXPECT_FALSE(std::filesystem::exists(options_.out_dir + "/config.json"));
  EXPECT_THAT(report_.ToString(), HasSubstr("missing: 2\n"));
}

TEST_F(ImporterTest, ModelsThatComputeSomethingElseAreRefusedWithAllReasons) {
  HubFolders folders = testing::MakeHubFolders(config_);
  Replace(folders.gpt2_config, "gelu_new", "relu");
  Replace(folders.gpt2_config, "\"n_head\":2", "\"n_head\":\"two\"");
  Replace(folders.gpt2_config, "\"n_embd\"", "\"scale_attn_by_inverse_layer_idx\":true,\"width\"");
  const std::string error(Import(folders).message());
  EXPECT_THAT(error, HasSubstr("gpt2/config.json: 4 violations"));
  EXPECT_THAT(error, HasSubstr("activation_function is \"relu\", must be \"gelu_new\" or \"gelu_pytorch_tanh\""));
  EXPECT_THAT(error, HasSubstr("n_head is \"two\""));
  EXPECT_THAT(error, HasSubstr("scale_attn_by_inverse_layer_idx is true, must be false"));
  EXPECT_THAT(error, HasSubstr("n_embd is missing"));

  folders = testing::MakeHubFolders(config_);
  Replace(folders.mamba_config, "\"use_bias\":false", "\"use_bias\":true");
  Replace(folders.mamba_config, "\"intermediate_size\":64", "\"intermediate_size\":9223372036854775807");
  EXPECT_THAT(std::string(Import(folders).message()), HasSubstr("use_bias is true, must be false"));
  Replace(folders.mamba_config, "\"use_bias\":true", "\"use_bias\":false");
  EXPECT_THAT(std::string(Import(folders).message()), HasSubstr("intermediate_size is 9223372036854775807"));
}

TEST_F(ImporterTest, WidthsMustBeEqual) {
  HubFolders folders = testing::MakeHubFolders(config_);
  Replace(folders.mamba_config, "\"hidden_size\":32", "\"hidden_size\":48");
  Replace(folders.mamba_config, "\"intermediate_size\":64", "\"intermediate_size\":96");
  const absl::Status status = Import(folders);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("is 32, hidden_size of"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("is 48; they must be equal"));
}

TEST_F(ImporterTest, AWindowThatDoesNotFitThePositionsIsRefused) {
  options_.m_input_tokens = 40;
  options_.stride = 41;
  const std::string error(Import(testing::MakeHubFolders(config_)).message());
  EXPECT_THAT(error, HasSubstr("2 violations"));
  EXPECT_THAT(error, HasSubstr("transformer.n_positions is 32, must be at least"));
}

TEST_F(ImporterTest, MissingFilesAndHostileIndicesAreNamed) {
  EXPECT_EQ(ImportAgain().code(), absl::StatusCode::kNotFound);
  testing::MakeHubFolders(config_).Write(dir_.path());
  std::filesystem::remove(dir_.file("gpt2/model.safetensors"));
  testing::WriteText(dir_.file("gpt2/pytorch_model.bin"), "");
  EXPECT_THAT(std::string(ImportAgain().message()), HasSubstr("pytorch_model.bin is not read"));
  const std::string index = dir_.file("gpt2/model.safetensors.index.json");
  for (const char* text : {"", "[]", R"({"weight_map": 3})", R"({"weight_map": {"a": "../mamba/model.safetensors"}})",
                           R"({"weight_map": {"a": 7}})"}) {
    testing::WriteText(index, text);
    EXPECT_EQ(ImportAgain().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  testing::WriteText(index, R"({"weight_map": {"a": "absent.safetensors"}})");
  EXPECT_EQ(ImportAgain().code(), absl::StatusCode::kNotFound);
}

TEST_F(ImporterTest, AFolderThatHoldsAModelIsNeverOverwritten) {
  ASSERT_TRUE(Import(testing::MakeHubFolders(config_)).ok());
  EXPECT_EQ(ImportAgain().code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(ImporterTest, AConvolutionWithoutBiasGetsZerosAndMatricesAreConvertedOnRequest) {
  HubFolders folders = testing::MakeHubFolders(config_);
  Replace(folders.mamba_config, "\"use_conv_bias\":true", "\"use_conv_bias\":false");
  for (int i = 0; i < 2; ++i) folders.mamba.erase("backbone.layers." + std::to_string(i) + ".mixer.conv1d.bias");
  options_.matrix_dtype = SafetensorsDType::kBF16;
  ASSERT_TRUE(Import(folders).ok());
  EXPECT_THAT(report_.initialized, SizeIs(4));
  const auto checkpoint = Checkpoint::Open(options_.out_dir);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(*(*checkpoint)->Float32("ssm.backbone.layers.1.mixer.conv1d.bias", {64}), std::vector<float>(64, 0.0f));
  for (const TensorSpec& spec : ExpectedTensors(config_)) {
    EXPECT_EQ((*checkpoint)->Find(spec.name)->dtype,
              StoredInModelDtype(spec.role) ? SafetensorsDType::kBF16 : SafetensorsDType::kF32)
        << spec.name;
  }
}

TEST(InitModelTest, PresetsAreValidAndTheSmallOnesOpen) {
  for (const Preset& preset : Presets()) {
    EXPECT_THAT(preset.config.Validate(), IsEmpty()) << preset.name;
    if (!preset.byte_vocabulary) continue;
    const TempDir dir;
    InitOptions options{.config = preset.config, .out_dir = dir.file("m"), .byte_vocabulary = true};
    ASSERT_TRUE(InitModel(options).ok());
    const auto checkpoint = Checkpoint::Open(options.out_dir);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_THAT((*checkpoint)->ValuesNotFinite(), IsEmpty());
    const auto tokenizer = Tokenizer::Load(options.out_dir);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ(tokenizer->vocab_size(), preset.config.vocab_size);
    std::string all_bytes;
    for (int byte = 0; byte < 256; ++byte) all_bytes += static_cast<char>(byte);
    EXPECT_EQ(*tokenizer->Decode(tokenizer->Encode(all_bytes)), all_bytes);
    EXPECT_THAT(tokenizer->Encode(all_bytes), SizeIs(256));
  }
}

TEST(InitModelTest, TheSeedDecidesEveryWeight) {
  const TempDir dir;
  InitOptions options{.config = testing::TinyConfig(), .seed = 7};
  std::string fingerprints[3];
  for (int i = 0; i < 3; ++i) {
    options.out_dir = dir.file("m" + std::to_string(i));
    options.seed = i == 2 ? 8 : 7;
    ASSERT_TRUE(InitModel(options).ok());
    fingerprints[i] = (*Checkpoint::Open(options.out_dir))->Fingerprint();
  }
  EXPECT_EQ(fingerprints[0], fingerprints[1]);
  EXPECT_NE(fingerprints[0], fingerprints[2]);
}

TEST(InitialValuesTest, EachRoleHasItsPublishedDistribution) {
  const StrideHybridConfig config = testing::TinyConfig();
  const auto of = [&](const std::string& name) {
    for (const TensorSpec& spec : ExpectedTensors(config)) {
      if (spec.name == name) return InitialValues(spec, config, 1);
    }
    ADD_FAILURE() << name;
    return std::vector<float>(1);
  };
  const auto deviation = [](const std::vector<float>& values) {
    double sum = 0;
    for (const float value : values) sum += static_cast<double>(value) * value;
    return std::sqrt(sum / static_cast<double>(values.size()));
  };
  EXPECT_NEAR(deviation(of("transformer.wte.weight")), 0.02, 0.002);
  EXPECT_NEAR(deviation(of("transformer.wpe.weight")), 0.01, 0.002);
  EXPECT_NEAR(deviation(of("transformer.h.0.mlp.c_proj.weight")), 0.01, 0.002);
  EXPECT_EQ(of("transformer.ln_f.weight"), std::vector<float>(32, 1.0f));
  const std::vector<float> a_log = of("ssm.backbone.layers.0.mixer.A_log");
  for (size_t i = 0; i < a_log.size(); ++i) EXPECT_FLOAT_EQ(std::exp(a_log[i]), static_cast<float>(1 + i % 4));
  for (const float bias : of("ssm.backbone.layers.1.mixer.dt_proj.bias")) {
    const double dt = std::log1p(std::exp(static_cast<double>(bias)));
    EXPECT_GE(dt, 0.00099);
    EXPECT_LE(dt, 0.101);
  }
  const std::vector<float> query = of("pooling.query.weight");
  for (size_t i = 0; i < 32; ++i) EXPECT_NEAR(query[i * 33], 1, 0.1);
  EXPECT_LT(std::abs(query[1]), 0.1);
}

}  // namespace
}  // namespace smt
