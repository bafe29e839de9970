// Files that no writer makes: each is refused with a sentence that names the place, the value and what is allowed.
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/io/safetensors.h"
#include "tests/model/io/raw_safetensors.h"

namespace smt {
namespace {

using ::testing::HasSubstr;
constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kDataLoss = absl::StatusCode::kDataLoss;

struct Hostile {
  const char* name;
  std::string file;
  absl::StatusCode code;
  std::string message;  // a part of it
};

void PrintTo(const Hostile& hostile, std::ostream* out) { *out << hostile.name; }

// A file with one tensor "a" of four data bytes, whose fields are given.
std::string OneTensor(const std::string& fields) { return RawSafetensors("{\"a\":{" + fields + "}}", "abcd"); }

// One with two tensors of U8, given their offsets, and `size` bytes of data.
std::string TwoTensors(const std::string& a, const std::string& b, const std::string& shape_a,
                       const std::string& shape_b, size_t size) {
  return RawSafetensors(R"({"a":{"dtype":"U8","shape":)" + shape_a + R"(,"data_offsets":)" + a +
                            R"(},"b":{"dtype":"U8","shape":)" + shape_b + R"(,"data_offsets":)" + b + "}}",
                        std::string(size, 'x'));
}

std::string Repeat(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

std::string NameOf(const testing::TestParamInfo<Hostile>& info) { return info.param.name; }

class SafetensorsHostileTest : public testing::TestWithParam<Hostile> {};

TEST_P(SafetensorsHostileTest, IsRefusedWithAReason) {
  const absl::Status status = SafetensorsReader::FromBytes(GetParam().file, "f.safetensors").status();
  EXPECT_EQ(status.code(), GetParam().code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
  EXPECT_THAT(std::string(status.message()), testing::StartsWith("f.safetensors: "));
  EXPECT_LT(status.message().size(), 700u);
}

const char kOffsets[] = R"("data_offsets":[0,4])";
const std::string kGood = std::string(R"("dtype":"U8","shape":[4],)") + kOffsets;

INSTANTIATE_TEST_SUITE_P(
    Framing, SafetensorsHostileTest,
    testing::Values(
        Hostile{"Empty", "", kDataLoss, "0 bytes"}, Hostile{"SevenBytes", "1234567", kDataLoss, "7 bytes"},
        Hostile{"HugeHeader", RawSafetensors(UINT64_MAX, "{}", ""), kInvalid,
                "length is 18446744073709551615; at most 100000000"},
        Hostile{"HeaderJustOverTheLimit", RawSafetensors(100'000'001, "{}", ""), kInvalid, "at most 100000000"},
        Hostile{"HeaderPastTheEnd", RawSafetensors(3, "{}", ""), kDataLoss, "length is 3, but only 2 bytes"},
        Hostile{"NoHeader", RawSafetensors(0, "", ""), kInvalid, "does not begin with '{'"},
        Hostile{"LeadingSpace", RawSafetensors(" {}", ""), kInvalid, "does not begin with '{'"},
        Hostile{"AnotherFormat", std::string("PK\3\4\0\0\0\0", 8) + "abc", kDataLoss, "only 3 bytes follow"},
        Hostile{"BytesWithoutTensor", RawSafetensors("{}", "x"), kDataLoss, "the file holds 1"},
        Hostile{"TrailingBytes", OneTensor(kGood) + "x", kDataLoss, "end at byte 4 of the data, but the file holds 5"},
        Hostile{"Truncated", OneTensor(kGood).substr(0, OneTensor(kGood).size() - 1), kDataLoss,
                "tensor 'a': data_offsets [0, 4] end past the file's 3 bytes"}),
    NameOf);

INSTANTIATE_TEST_SUITE_P(
    Json, SafetensorsHostileTest,
    testing::Values(
        Hostile{"NotJson", RawSafetensors("{nonsense", ""), kInvalid, "header is not JSON, at its byte 3"},
        Hostile{"CutOff", RawSafetensors(R"({"a":{"dtype":"U8")", ""), kInvalid, "header is not JSON"},
        Hostile{"TwoValues", RawSafetensors("{}{}", ""), kInvalid, "header is not JSON, at its byte 3"},
        Hostile{"NotUtf8", RawSafetensors("{\"\xff\":{}}", ""), kInvalid, "header is not JSON"},
        Hostile{"ZeroBytesAsPadding", RawSafetensors(std::string("{}\0\0", 4), ""), kInvalid,
                "header is not JSON, at its byte 3: a zero byte"},
        Hostile{"DeepArrays", RawSafetensors("{\"a\":" + Repeat("[", 1'000'000), ""), kInvalid,
                "tensor 'a' is an array; allowed is an object"},
        Hostile{"DeepObjects", RawSafetensors(Repeat("{\"a\":", 1'000'000), ""), kInvalid,
                "field 'a' is nested deeper than 16 levels"},
        Hostile{"DeepUnknownField", RawSafetensors("{\"a\":{\"z\":" + Repeat("[", 1'000'000), ""), kInvalid,
                "field 'z' is nested deeper than 16 levels"},
        Hostile{"TensorTwice", RawSafetensors("{\"a\":{" + kGood + "},\"a\":{" + kGood + "}}", "abcd"), kInvalid,
                "tensor 'a' is named twice"},
        Hostile{"TensorTwiceInOtherSpelling",
                RawSafetensors("{\"a\":{" + kGood + "},\"\\u0061\":{" + kGood + "}}", "abcd"), kInvalid,
                "tensor 'a' is named twice"},
        Hostile{"FieldTwice", OneTensor(kGood + "," + kOffsets), kInvalid, "tensor 'a': data_offsets is given twice"},
        Hostile{"MetadataTwice", RawSafetensors(R"({"__metadata__":{},"__metadata__":{}})", ""), kInvalid,
                "tensor '__metadata__' is named twice"},
        Hostile{"MetadataKeyTwice", RawSafetensors(R"({"__metadata__":{"k":"1","k":"2"}})", ""), kInvalid,
                "__metadata__ 'k' is given twice"},
        Hostile{"MetadataNumber", RawSafetensors(R"({"__metadata__":{"k":1}})", ""), kInvalid,
                "__metadata__ 'k' is 1; allowed is a string"},
        Hostile{"MetadataNested", RawSafetensors(R"({"__metadata__":{"k":{}}})", ""), kInvalid,
                "__metadata__ 'k' is an object; allowed is a string"},
        Hostile{"MetadataList", RawSafetensors(R"({"__metadata__":[]})", ""), kInvalid,
                "__metadata__ is an array; allowed is an object"},
        Hostile{"TensorIsANumber", RawSafetensors(R"({"a":7})", ""), kInvalid, "tensor 'a' is 7; allowed is an object"},
        Hostile{"LongNameIsCut", RawSafetensors("{\"" + std::string(1'000'000, 'n') + "\":7}", ""), kInvalid,
                "nnn…' is 7"},
        Hostile{"LongValueIsCut", OneTensor("\"shape\":\"" + std::string(1'000'000, 'v') + "\""), kInvalid, "vvv"},
        Hostile{"ControlBytesAreEscaped", RawSafetensors(R"({"\u001b[2J\n":7})", ""), kInvalid, R"('\x1b[2J\n' is 7)"}),
    NameOf);

INSTANTIATE_TEST_SUITE_P(
    Fields, SafetensorsHostileTest,
    testing::Values(
        Hostile{"NoDtype", OneTensor(std::string(R"("shape":[4],)") + kOffsets), kInvalid,
                "tensor 'a': dtype is missing"},
        Hostile{"NoShape", OneTensor(std::string(R"("dtype":"U8",)") + kOffsets), kInvalid,
                "tensor 'a': shape is missing"},
        Hostile{"NoOffsets", OneTensor(R"("dtype":"U8","shape":[4])"), kInvalid, "tensor 'a': data_offsets is missing"},
        Hostile{"UnknownDtype", OneTensor(R"("dtype":"F12")"), kInvalid, "dtype is 'F12'; allowed are BOOL, F4"},
        Hostile{"DtypeNumber", OneTensor(R"("dtype":1)"), kInvalid, "dtype is 1; allowed is a string"},
        Hostile{"ShapeNumber", OneTensor(R"("shape":4)"), kInvalid, "shape is 4; allowed is a list"},
        Hostile{"ShapeNegative", OneTensor(R"("shape":[-4])"), kInvalid,
                "shape is -4; allowed is a list of whole numbers"},
        Hostile{"ShapeFraction", OneTensor(R"("shape":[4.0])"), kInvalid, "shape is 4.0"},
        Hostile{"ShapePastInt64", OneTensor(R"("shape":[9223372036854775808])"), kInvalid,
                "shape is 9223372036854775808"},
        Hostile{"ShapePastUint64", OneTensor(R"("shape":[99999999999999999999])"), kInvalid,
                "shape is 99999999999999999999"},
        Hostile{"ShapeNested", OneTensor(R"("shape":[[4]])"), kInvalid, "shape is an array"},
        Hostile{"ShapeHoldsObject", OneTensor(R"("shape":[{"dtype":"U8"}])"), kInvalid, "shape is an object"},
        Hostile{"ShapeTooManyDimensions", OneTensor("\"shape\":[1" + Repeat(",1", 64) + "]"), kInvalid,
                "shape has more than 64 dimensions"},
        Hostile{"ProductOverflows",
                OneTensor(R"("dtype":"U8","shape":[4294967296,4294967296],)" + std::string(kOffsets)), kInvalid,
                "shape [4294967296, 4294967296] of U8 takes more than 2^63 - 1 bits"},
        Hostile{"ProductWrapsToTheRightSize",
                OneTensor(R"("dtype":"U8","shape":[4611686018427387905,4],)" + std::string(kOffsets)), kInvalid,
                "takes more than 2^63 - 1 bits"},
        Hostile{"ZeroHidesOverflow",
                OneTensor(R"("dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0])"), kInvalid,
                "takes more than 2^63 - 1 bits"},
        Hostile{"BytesOverflow", OneTensor(R"("dtype":"F64","shape":[4611686018427387904],)" + std::string(kOffsets)),
                kInvalid, "takes more than 2^63 - 1 bits"},
        Hostile{"PartsOfBytes", OneTensor(R"("dtype":"F4","shape":[7],)" + std::string(kOffsets)), kInvalid,
                "does not fill whole bytes"},
        Hostile{"SizeTooSmall", OneTensor(R"("dtype":"F32","shape":[2],)" + std::string(kOffsets)), kInvalid,
                "hold 4 bytes, but dtype F32 with shape [2] takes 8"},
        Hostile{"SizeTooLarge", OneTensor(R"("dtype":"U8","shape":[],)" + std::string(kOffsets)), kInvalid,
                "hold 4 bytes, but dtype U8 with shape [] takes 1"}),
    NameOf);

INSTANTIATE_TEST_SUITE_P(
    Offsets, SafetensorsHostileTest,
    testing::Values(
        Hostile{"Negative", OneTensor(R"("data_offsets":[-4,0])"), kInvalid,
                "data_offsets is -4; allowed is [begin, end]"},
        Hostile{"Fraction", OneTensor(R"("data_offsets":[0,4e0])"), kInvalid, "data_offsets is 4e0"},
        Hostile{"PastUint64", OneTensor(R"("data_offsets":[0,18446744073709551616])"), kInvalid,
                "data_offsets is 18446744073709551616"},
        Hostile{"One", OneTensor(R"("data_offsets":[0])"), kInvalid, "data_offsets has 1 numbers"},
        Hostile{"Three", OneTensor(R"("data_offsets":[0,4,8])"), kInvalid, "more than two numbers"},
        Hostile{"Text", OneTensor(R"("data_offsets":"0-4")"), kInvalid,
                "data_offsets is '0-4'; allowed is [begin, end]"},
        Hostile{"Reversed", OneTensor(R"("dtype":"U8","shape":[4],"data_offsets":[4,0])"), kInvalid,
                "data_offsets is [4, 0]; begin may not be past end"},
        Hostile{"EndsAtTheEndOfTheWorld",
                OneTensor(R"("dtype":"U8","shape":[4],"data_offsets":[18446744073709551611,18446744073709551615])"),
                kDataLoss, "end past the file's 4 bytes"},
        Hostile{"OutOfRange", OneTensor(R"("dtype":"U8","shape":[4],"data_offsets":[1,5])"), kDataLoss,
                "data_offsets [1, 5] end past the file's 4 bytes"},
        Hostile{"HoleAtTheStart", OneTensor(R"("dtype":"U8","shape":[3],"data_offsets":[1,4])"), kInvalid,
                "tensor 'a': data_offsets [1, 4] leave a gap; what comes before ends at 0"},
        Hostile{"HoleBetween", TwoTensors("[0,2]", "[3,4]", "[2]", "[1]", 4), kInvalid,
                "tensor 'b': data_offsets [3, 4] leave a gap; what comes before ends at 2"},
        Hostile{"Overlap", TwoTensors("[0,3]", "[2,4]", "[3]", "[2]", 4), kInvalid,
                "tensor 'b': data_offsets [2, 4] overlap those of tensor 'a', which end at 3"},
        Hostile{"Inside", TwoTensors("[0,4]", "[1,2]", "[4]", "[1]", 4), kInvalid,
                "tensor 'b': data_offsets [1, 2] overlap"},
        Hostile{"Same", TwoTensors("[0,4]", "[0,4]", "[4]", "[4]", 4), kInvalid, "overlap"},
        Hostile{"EmptyInside", TwoTensors("[0,4]", "[2,2]", "[4]", "[0]", 4), kInvalid, "overlap"},
        Hostile{"EmptyOutside", TwoTensors("[0,4]", "[9,9]", "[4]", "[0]", 4), kDataLoss,
                "end past the file's 4 bytes"}),
    NameOf);

}  // namespace
}  // namespace smt
