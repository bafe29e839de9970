#include "model/tokenizer/incremental_decoder.h"

#include <unicode/unistr.h>

#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/model/tokenizer/random_text.h"

namespace smt {
namespace {

constexpr char kBad[] = "\uFFFD";

// ICU's conversion, which puts one U+FFFD for each maximal invalid part, as the Unicode standard recommends.
std::string ByIcu(const std::string& bytes) {
  std::string out;
  return icu::UnicodeString::fromUTF8(bytes).toUTF8String(out);
}

const std::vector<std::string>& NoTokens() {
  static const std::vector<std::string> none;
  return none;
}

TEST(IncrementalDecoderTest, HoldsAPartialCharacterBackUntilItIsWhole) {
  const std::vector<std::string> tokens = {"a", "\xf0\x9f", "\x98", "\x80!", "é"};
  IncrementalDecoder decoder(tokens);
  EXPECT_EQ(decoder.Push(0), "a");
  EXPECT_EQ(decoder.Push(1), "");
  EXPECT_EQ(decoder.Push(2), "");
  EXPECT_EQ(decoder.pending(), "\xf0\x9f\x98");
  EXPECT_EQ(decoder.Push(3), "\xf0\x9f\x98\x80!");
  EXPECT_EQ(decoder.pending(), "");
  EXPECT_EQ(decoder.Push(4), "é");
  EXPECT_EQ(decoder.Flush(), "");
}

TEST(IncrementalDecoderTest, ReplacesAsSoonAsNothingCanMakeItValid) {
  IncrementalDecoder decoder(NoTokens());
  EXPECT_EQ(decoder.PushBytes("\xff"), kBad);
  EXPECT_EQ(decoder.PushBytes("\xe6\x97"), "");
  EXPECT_EQ(decoder.PushBytes("x"), std::string(kBad) + "x");
  EXPECT_EQ(decoder.PushBytes("\xe0"), "");
  EXPECT_EQ(decoder.PushBytes("\x80"), std::string(kBad) + kBad);  // overlong: the second byte fits nowhere
  EXPECT_EQ(decoder.PushBytes("\xc3"), "");
  EXPECT_EQ(decoder.PushBytes("\xc3"), kBad);
  EXPECT_EQ(decoder.PushBytes("\xa9"), "é");
}

TEST(IncrementalDecoderTest, FlushReplacesWhatIsHeldBackAndStartsAnew) {
  IncrementalDecoder decoder(NoTokens());
  EXPECT_EQ(decoder.PushBytes("\xed"), "");
  EXPECT_EQ(decoder.Flush(), kBad);
  EXPECT_EQ(decoder.Flush(), "");
  EXPECT_EQ(decoder.PushBytes("\xee"), "");
  EXPECT_EQ(decoder.PushBytes("\xbf\xbf"), "\xee\xbf\xbf");  // no trace of ED's narrower range
}

TEST(IncrementalDecoderTest, IdsWithoutBytesAddNothing) {
  const std::vector<std::string> tokens = {"\xc3"};
  IncrementalDecoder decoder(tokens);
  EXPECT_EQ(decoder.Push(0), "");
  EXPECT_EQ(decoder.Push(1), "");
  EXPECT_EQ(decoder.Push(-1), "");
  EXPECT_EQ(decoder.PushBytes("\xa9"), "é");
}

TEST(IncrementalDecoderTest, AnyBytesInAnyPartsGiveWhatIcuGives) {
  std::mt19937_64 rng(11);
  for (int round = 0; round < 20'000; ++round) {
    const std::string bytes = RandomBytes(rng, rng() % 40);
    IncrementalDecoder decoder(NoTokens());
    std::string out;
    for (size_t begin = 0; begin < bytes.size();) {
      const size_t length = 1 + rng() % 4;
      const std::string part = decoder.PushBytes(std::string_view(bytes).substr(begin, length));
      ASSERT_EQ(part, ByIcu(part));  // valid by itself
      ASSERT_LE(decoder.pending().size(), 3u);
      out += part;
      begin += length;
    }
    out += decoder.Flush();
    ASSERT_EQ(out, ByIcu(bytes));
  }
}

TEST(IncrementalDecoderTest, EveryThreeBytesGiveWhatIcuGives) {
  // All leading bytes with all that distinguish continuations.
  const int edges[] = {0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc2, 0xe0, 0xed, 0xf0, 0xf4, 0xff};
  for (int first = 0; first < 256; ++first) {
    for (const int second : edges) {
      for (const int third : edges) {
        const std::string bytes = {static_cast<char>(first), static_cast<char>(second), static_cast<char>(third)};
        IncrementalDecoder decoder(NoTokens());
        std::string out = decoder.PushBytes(bytes);
        out += decoder.Flush();
        ASSERT_EQ(out, ByIcu(bytes)) << first << " " << second << " " << third;
      }
    }
  }
}

}  // namespace
}  // namespace smt
