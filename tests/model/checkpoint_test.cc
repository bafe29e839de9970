#include "model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "model/base/sha256.h"
#include "model/import/importer.h"
#include "model/import/initializer.h"
#include "tests/model/model_folders.h"
#include "tests/testing/process.h"

namespace smt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::StoredTensors;
using testing::TempDir;

class CheckpointTest : public ::testing::Test {
 protected:
  // A folder of TinyConfig with `tensors`.
  void Write(const StoredTensors& tensors) {
    testing::WriteText(dir_.file("config.json"), config_.ToJson());
    testing::WriteTensors(dir_.file("model.safetensors"), tensors);
  }
  StoredTensors Good() const {
    return testing::RandomTensors(config_, [](const TensorSpec& spec) { return spec.name; });
  }
  std::string Error() const {
    const auto opened = Checkpoint::Open(dir_.path());
    return opened.ok() ? "" : std::string(opened.status().message());
  }
  std::string Fingerprint() const {
    const auto opened = Checkpoint::Open(dir_.path());
    EXPECT_TRUE(opened.ok()) << opened.status();
    return opened.ok() ? (*opened)->Fingerprint() : "";
  }

  TempDir dir_;
  StrideHybridConfig config_ = testing::TinyConfig();
};

TEST_F(CheckpointTest, WeightsAreReadAsStored) {
  StoredTensors tensors = Good();
  Write(tensors);
  const auto opened = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  const Checkpoint& checkpoint = **opened;
  EXPECT_THAT(checkpoint.warnings(), IsEmpty());
  const std::vector<TensorSpec> specs = ExpectedTensors(config_);
  ASSERT_EQ(checkpoint.tensors().size(), specs.size());
  for (size_t i = 0; i < specs.size(); ++i) {
    EXPECT_EQ(checkpoint.tensors()[i].name, specs[i].name);
    EXPECT_EQ(checkpoint.tensors()[i].bytes, tensors[specs[i].name].bytes);
    const auto values = checkpoint.Float32(specs[i].name, specs[i].shape);
    ASSERT_TRUE(values.ok()) << values.status();
    EXPECT_EQ(*values, InitialValues(specs[i], config_, 5)) << specs[i].name;
  }
  EXPECT_EQ(checkpoint.Find("transformer.wte.bias"), nullptr);
  EXPECT_EQ(checkpoint.Float32("nothing", {1}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(checkpoint.Float32("transformer.wte.weight", {1}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(CheckpointTest, EveryTensorThatDoesNotFitIsListedAtOnce) {
  StoredTensors tensors = Good();
  tensors.erase("pooling.key.weight");
  tensors["transformer.ln_f.bias"] = testing::Zeros({33});
  tensors["ssm.backbone.norm_f.weight"] = testing::Zeros({32}, SafetensorsDType::kI32);
  tensors["transformer.h.2.ln_1.bias"] = testing::Zeros({32});
  Write(tensors);
  EXPECT_EQ(Error(), dir_.file("model.safetensors") +
                         " does not fit config.json: 4 tensors: transformer.ln_f.bias is [33], must be [32]; "
                         "pooling.key.weight [32, 32] is missing; ssm.backbone.norm_f.weight is I32, must be F32, F16 "
                         "or BF16; transformer.h.2.ln_1.bias [32] is not expected");
}

TEST_F(CheckpointTest, CausalMasksAndACopyOfATiedHeadAreIgnoredWithAWarning) {
  StoredTensors tensors = Good();
  tensors["transformer.h.0.attn.bias"] = testing::Zeros({1, 1, 32, 32}, SafetensorsDType::kU8);
  tensors["transformer.h.1.attn.masked_bias"] = testing::Zeros({});
  tensors["lm_head.weight"] = testing::Zeros({257, 32});
  Write(tensors);
  const auto opened = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_THAT((*opened)->warnings(),
              ::testing::UnorderedElementsAre("transformer.h.0.attn.bias is not needed and is ignored",
                                              "transformer.h.1.attn.masked_bias is not needed and is ignored",
                                              "lm_head.weight is not needed and is ignored"));
  config_.tie_word_embeddings = false;
  testing::WriteText(dir_.file("config.json"), config_.ToJson());
  const auto untied = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(untied.ok()) << untied.status();
  EXPECT_NE((*untied)->Find("lm_head.weight"), nullptr);
}

TEST_F(CheckpointTest, MissingFilesAreNamed) {
  EXPECT_EQ(Checkpoint::Open(dir_.path()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Error(), HasSubstr("config.json"));
  testing::WriteText(dir_.file("config.json"), config_.ToJson());
  EXPECT_EQ(Checkpoint::Open(dir_.path()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Error(), HasSubstr("model.safetensors"));
}

TEST_F(CheckpointTest, AFileCutShortIsDamageNotACrash) {
  Write(Good());
  const auto size = std::filesystem::file_size(dir_.file("model.safetensors"));
  for (const uintmax_t keep : {size - 1, size / 2, uintmax_t{100}, uintmax_t{7}, uintmax_t{0}}) {
    std::filesystem::resize_file(dir_.file("model.safetensors"), keep);
    EXPECT_EQ(Checkpoint::Open(dir_.path()).status().code(), absl::StatusCode::kDataLoss) << keep;
  }
}

TEST_F(CheckpointTest, ValuesThatAreNotFiniteAreFoundInEveryDtype) {
  for (const SafetensorsDType dtype : {SafetensorsDType::kF32, SafetensorsDType::kF16, SafetensorsDType::kBF16}) {
    StoredTensors tensors = Good();
    std::vector<float> values(32, 65504.0f);
    tensors["transformer.ln_f.weight"] = {dtype, {32}, *EncodeFloats(dtype, values)};
    if (dtype == SafetensorsDType::kBF16) tensors["transformer.ln_f.weight"].bytes = std::string(64, '\x7f');
    Write(tensors);
    EXPECT_THAT((*Checkpoint::Open(dir_.path()))->ValuesNotFinite(), IsEmpty());
    values[31] = -std::numeric_limits<float>::infinity();
    values[3] = std::numeric_limits<float>::quiet_NaN();
    tensors["transformer.ln_f.weight"] = {dtype, {32}, *EncodeFloats(dtype, values)};
    Write(tensors);
    EXPECT_THAT((*Checkpoint::Open(dir_.path()))->ValuesNotFinite(),
                ElementsAre(HasSubstr("transformer.ln_f.weight has values that are not finite")));
  }
}

TEST_F(CheckpointTest, TheFingerprintChangesWithAnyTensorByteShapeFieldOrTokenizerFile) {
  StoredTensors tensors = Good();
  Write(tensors);
  const std::string before = Fingerprint();
  EXPECT_EQ(before.size(), 64u);
  EXPECT_EQ(Fingerprint(), before);
  for (const TensorSpec& spec : ExpectedTensors(config_)) {
    std::string& bytes = tensors[spec.name].bytes;
    for (const size_t at : {size_t{0}, bytes.size() - 1}) {
      bytes[at] = static_cast<char>(bytes[at] ^ 1);
      Write(tensors);
      EXPECT_NE(Fingerprint(), before) << spec.name << " byte " << at;
      bytes[at] = static_cast<char>(bytes[at] ^ 1);
    }
  }
  Write(tensors);
  EXPECT_EQ(Fingerprint(), before);

  testing::WriteText(dir_.file("merges.txt"), "#version: 0.2\n");
  const std::string with_merges = Fingerprint();
  EXPECT_NE(with_merges, before);
  testing::WriteText(dir_.file("merges.txt"), "#version: 0.3\n");
  EXPECT_NE(Fingerprint(), with_merges);
  std::filesystem::remove(dir_.file("merges.txt"));

  config_.stride = 3;
  testing::WriteText(dir_.file("config.json"), config_.ToJson());
  EXPECT_NE(Fingerprint(), before);
}

TEST_F(CheckpointTest, TheFingerprintDoesNotChangeWithThePolicyTheSpellingOrTheOrderInTheFile) {
  Write(Good());
  const std::string before = Fingerprint();
  config_.window_policy = WindowPolicy::kSlide;
  config_.eos_token_id = 7;
  config_.transformer.n_inner = 128;  // what 0 means
  testing::WriteText(dir_.file("config.json"), config_.ToJson());
  EXPECT_EQ(Fingerprint(), before);
}

TEST(Sha256Test, KnownDigestsComeOut) {
  Sha256 empty;
  EXPECT_EQ(empty.HexDigest(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  Sha256 abc;
  abc.Add("a");
  abc.Add("bc");
  EXPECT_EQ(abc.HexDigest(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Sha256Test, PiecesDoNotRunIntoEachOther) {
  Sha256 a, b;
  a.AddPiece("ab");
  a.AddPiece("c");
  b.AddPiece("a");
  b.AddPiece("bc");
  EXPECT_NE(a.HexDigest(), b.HexDigest());
}

}  // namespace
}  // namespace smt
