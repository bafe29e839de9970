// Mutated files, the same ones each time: whatever a file holds, opening it gives a reader whose tensors can be read
// or an error, and nothing is read outside it (AddressSanitizer sees that).
#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"
#include "model/io/safetensors.h"
#include "tests/model/io/raw_safetensors.h"

namespace smt {
namespace {

constexpr int kMutants = 40'000;

const char* const kPieces[] = {"{",
                               "}",
                               "[",
                               "]",
                               ",",
                               ":",
                               "\"",
                               "\\",
                               "0",
                               "-1",
                               "1",
                               "9223372036854775808",
                               "18446744073709551615",
                               "18446744073709551616",
                               "1e400",
                               "null",
                               "true",
                               "F32",
                               "U8",
                               "\"dtype\"",
                               "\"shape\"",
                               "\"data_offsets\"",
                               "\"__metadata__\"",
                               "{}",
                               "[]",
                               "[0,0]",
                               " ",
                               "\xff",
                               "\\u0000",
                               "\\ud800"};

std::string Seed() {
  return R"({"__metadata__":{"k":"v"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
         R"("a":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},"e":{"dtype":"I64","shape":[0],"data_offsets":[14,14]},)"
         R"("s":{"dtype":"U8","shape":[],"data_offsets":[14,15]}})";
}

void Mutate(std::mt19937_64& rng, std::string* text) {
  const size_t at = rng() % (text->size() + 1);
  switch (rng() % 7) {
    case 0:  // flip a bit
      if (at < text->size()) (*text)[at] = static_cast<char>((*text)[at] ^ 1 << rng() % 8);
      break;
    case 1:
      text->insert(at, kPieces[rng() % std::size(kPieces)]);
      break;
    case 2:  // cut something out
      text->erase(at, rng() % 12);
      break;
    case 3:  // say something twice
      text->insert(at, text->substr(rng() % (text->size() + 1), rng() % 64));
      break;
    case 4:  // a number becomes another
      if (const size_t digit = text->find_first_of("0123456789", at); digit != std::string::npos) {
        text->replace(digit, 1, std::to_string(rng() >> rng() % 64));
      }
      break;
    case 5:
      text->resize(at);
      break;
    default:
      if (at < text->size()) (*text)[at] = static_cast<char>(rng());
  }
}

// Reads every tensor in every way; returns the number of bytes they have.
uint64_t ReadEverything(const SafetensorsReader& file) {
  uint64_t bytes = 0;
  for (const TensorInfo& tensor : file.tensors()) {
    const std::string_view raw = file.Bytes(tensor);
    bytes += raw.size();
    uint8_t sum = 0;
    for (const char byte : raw) sum = static_cast<uint8_t>(sum + byte);
    EXPECT_EQ(file.Find(tensor.name), &tensor) << static_cast<int>(sum);
    if (const auto values = file.ReadFloat32(tensor.name); values.ok()) {
      EXPECT_EQ(static_cast<int64_t>(values->size()), tensor.elements);
    }
    if (const auto values = file.ReadInt64(tensor.name); values.ok()) {
      EXPECT_EQ(static_cast<int64_t>(values->size()), tensor.elements);
    }
  }
  return bytes;
}

TEST(SafetensorsMutationTest, NoMutantCrashesTheReader) {
  std::mt19937_64 rng(20250101);
  int opened = 0, refused = 0;
  for (int i = 0; i < kMutants; ++i) {
    std::string header = Seed(), data(15, 'd');
    for (uint64_t changes = rng() % 6; changes > 0; --changes) Mutate(rng, &header);
    if (rng() % 8 == 0) data.resize(rng() % 24);
    uint64_t length = header.size();
    if (rng() % 16 == 0) length = rng() % 2 == 0 ? length + rng() % 5 - 2 : rng() >> rng() % 64;
    std::string file = RawSafetensors(length, header, data);
    if (rng() % 32 == 0) file.resize(rng() % (file.size() + 1));

    // An allocation of exactly the file's size, so that AddressSanitizer sees one byte too far.
    const auto exact = std::make_unique<char[]>(file.size());
    std::copy(file.begin(), file.end(), exact.get());
    const std::string_view bytes(exact.get(), file.size());
    const absl::StatusOr<SafetensorsReader> reader = SafetensorsReader::FromBytes(bytes);
    if (reader.ok()) {
      ++opened;
      EXPECT_EQ(8 + length + ReadEverything(*reader), file.size()) << header;
    } else {
      ++refused;
      EXPECT_TRUE(reader.status().code() == absl::StatusCode::kInvalidArgument ||
                  reader.status().code() == absl::StatusCode::kDataLoss)
          << reader.status();
      EXPECT_LT(reader.status().message().size(), 1000u) << header;
    }
  }
  // Both outcomes are common, or the mutations test nothing.
  EXPECT_GT(opened, kMutants / 20);
  EXPECT_GT(refused, kMutants / 2);
}

}  // namespace
}  // namespace smt
