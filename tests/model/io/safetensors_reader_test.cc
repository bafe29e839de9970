#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/io/float_bits.h"
#include "model/io/safetensors.h"
#include "tests/model/io/raw_safetensors.h"

namespace smt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

constexpr char kGolden[] = "tests/golden/safetensors/python.safetensors";
const std::vector<float>& GoldenValues() {  // make.py's
  static const auto& values = *new std::vector<float>{
      0.0f, -0.0f, 1.0f, -2.5f, 65504.0f, 1e-7f, 3.1415927f, 1e30f, INFINITY, -INFINITY, 1.00390625f, 0.333251953125f};
  return values;
}

// Equal bit for bit: -0 is not 0.
void ExpectSameFloats(const std::vector<float>& actual, const std::vector<float>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_EQ(std::bit_cast<uint32_t>(actual[i]), std::bit_cast<uint32_t>(expected[i])) << i << ": " << actual[i];
  }
}

TEST(SafetensorsReaderTest, ReadsWhatTheFormatsOwnLibraryWrote) {
  const absl::StatusOr<SafetensorsReader> file = SafetensorsReader::Open(kGolden);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->metadata(), ElementsAre(Pair("text", "Größe \"1\"\n")));
  EXPECT_EQ(file->tensors().size(), 9u);

  ExpectSameFloats(*file->ReadFloat32("f32"), GoldenValues());
  EXPECT_THAT(file->Find("f32")->shape, ElementsAre(3, 4));
  std::vector<float> halves, brains;
  for (const float value : GoldenValues()) {
    halves.push_back(Float16ToFloat(FloatToFloat16(value)));
    brains.push_back(BFloat16ToFloat(FloatToBFloat16(value)));
  }
  ExpectSameFloats(*file->ReadFloat32("f16"), halves);
  ExpectSameFloats(*file->ReadFloat32("bf16"), brains);
  EXPECT_THAT(*file->ReadInt64("i64"), ElementsAre(INT64_MIN, -1, 0, INT64_MAX));
  EXPECT_THAT(*file->ReadInt32("i32"), ElementsAre(INT32_MIN, INT32_MAX));
  EXPECT_THAT(*file->ReadInt64("i32"), ElementsAre(INT32_MIN, INT32_MAX));
  EXPECT_THAT(*file->ReadInt32("u8"), ElementsAre(0, 127, 255));
  EXPECT_THAT(*file->ReadFloat32("scalar"), ElementsAre(42.0f));
  EXPECT_TRUE(file->Find("scalar")->shape.empty());
  EXPECT_TRUE(file->ReadFloat32("empty")->empty());
  EXPECT_THAT(file->Find("empty")->shape, ElementsAre(0, 5));
  EXPECT_THAT(*file->ReadInt32("name with \"quotes\", \\ and ü\n"), ElementsAre(7));
}

TEST(SafetensorsReaderTest, TensorsComeInTheOrderOfTheirData) {
  const std::string bytes = RawSafetensors(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},)"
                                           R"("c":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                           R"("a":{"shape":[],"data_offsets":[3,4],"dtype":"U8"}})",
                                           "\1\2\3\4");
  const absl::StatusOr<SafetensorsReader> file = SafetensorsReader::FromBytes(bytes);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->tensors().size(), 3u);
  EXPECT_EQ(file->tensors()[0].name, "c");
  EXPECT_EQ(file->tensors()[1].name, "b");
  EXPECT_EQ(file->tensors()[2].name, "a");
  EXPECT_THAT(*file->ReadInt32("c"), ElementsAre(1, 2));
  EXPECT_EQ(*file->Bytes("a"), "\4");
}

TEST(SafetensorsReaderTest, MisalignedDataIsReadAsAlignedIs) {
  // One byte before the floats, and a header of every length modulo 8.
  for (int padding = 0; padding < 8; ++padding) {
    const float values[] = {1.5f, -3.25f};
    std::string data = "x";
    data.append(reinterpret_cast<const char*>(values), sizeof values);
    const std::string header = R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                               R"("f":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})" +
                               std::string(padding, ' ');
    const absl::StatusOr<SafetensorsReader> file = SafetensorsReader::FromString(RawSafetensors(header, data));
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_THAT(*file->ReadFloat32("f"), ElementsAre(1.5f, -3.25f));
  }
}

TEST(SafetensorsReaderTest, UnknownFieldsAreSkippedWhateverTheyHold) {
  const std::string bytes =
      RawSafetensors(R"({"a":{"dtype":"U8","note":{"dtype":[1,{"shape":null}],"x":-1.5},"shape":[1],"n":true,)"
                     R"("data_offsets":[0,1]},"__metadata__":{"shape":"s"}})",
                     "\7");
  const absl::StatusOr<SafetensorsReader> file = SafetensorsReader::FromBytes(bytes);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(*file->ReadInt32("a"), ElementsAre(7));
  EXPECT_THAT(file->metadata(), ElementsAre(Pair("shape", "s")));
}

TEST(SafetensorsReaderTest, EmptyFileOfTensorsIsValid) {
  const absl::StatusOr<SafetensorsReader> file = SafetensorsReader::FromString(RawSafetensors("{}", ""));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(file->tensors().empty());
}

TEST(SafetensorsReaderTest, CopiesKeepTheBytesAlive) {
  absl::StatusOr<SafetensorsReader> file =
      SafetensorsReader::FromString(RawSafetensors(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "\7"));
  ASSERT_TRUE(file.ok());
  const SafetensorsReader copy = *file;
  file = absl::UnknownError("gone");
  EXPECT_EQ(*copy.Bytes("a"), "\7");
}

TEST(SafetensorsReaderTest, WrongUseIsRefusedByName) {
  const absl::StatusOr<SafetensorsReader> file = SafetensorsReader::Open(kGolden);
  ASSERT_TRUE(file.ok());
  const absl::Status missing = file->ReadFloat32("f33").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("python.safetensors: has no tensor 'f33'"));
  EXPECT_THAT(std::string(file->ReadFloat32("i32").status().message()),
              HasSubstr("tensor 'i32' has dtype I32; allowed are F32, F16 and BF16"));
  EXPECT_THAT(std::string(file->ReadInt64("f32").status().message()), HasSubstr("allowed are I64, I32 and U8"));
  EXPECT_THAT(std::string(file->ReadInt32("i64").status().message()),
              HasSubstr("holds -9223372036854775808 at index 0"));
  EXPECT_THAT(std::string(file->Get("f32", {4, 3}).status().message()),
              HasSubstr("tensor 'f32' has shape [3, 4]; required is [4, 3]"));
  EXPECT_TRUE(file->Get("f32", {3, 4}).ok());
  float too_few[11];
  EXPECT_THAT(std::string(file->ReadFloat32(*file->Find("f32"), absl::MakeSpan(too_few)).message()),
              HasSubstr("12 elements, but there is room for 11"));
  EXPECT_EQ(SafetensorsReader::Open("no/such/file").status().code(), absl::StatusCode::kNotFound);
}

TEST(SafetensorsReaderTest, ReadsTheBundledModelAndItsFixture) {
  const absl::StatusOr<SafetensorsReader> model = SafetensorsReader::Open("models/books-6m/model.safetensors");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(model->Find("transformer.wte.weight")->shape, ElementsAre(4096, 256));
  const absl::StatusOr<SafetensorsReader> fixture =
      SafetensorsReader::Open("tests/golden/books-6m/fixture.safetensors");
  ASSERT_TRUE(fixture.ok()) << fixture.status();
  EXPECT_EQ(fixture->ReadInt32("input_ids")->size(), 200u);
  EXPECT_EQ(fixture->ReadFloat32("logits_hop")->size(), 200u * 4096);
  EXPECT_TRUE(fixture->metadata().contains("text"));
}

}  // namespace
}  // namespace smt
