#include "model/tokenizer/pre_tokenizer.h"

#include <unicode/regex.h>
#include <unicode/unistr.h>

#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/tokenizer/random_text.h"

namespace smt {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Pieces(std::string_view text) {
  std::vector<std::string> pieces;
  for (size_t begin = 0, end = 0; begin < text.size(); begin = end) {
    end = PieceEnd(text, begin);
    EXPECT_GT(end, begin);
    EXPECT_LE(end, text.size());
    if (end <= begin) break;
    pieces.emplace_back(text.substr(begin, end - begin));
  }
  return pieces;
}

TEST(PreTokenizerTest, SpacesGoToTheWordAfterThemAndContractionsStandAlone) {
  EXPECT_THAT(Pieces("Hello  world\n\nI'll go, don't!"),
              ElementsAre("Hello", " ", " world", "\n", "\n", "I", "'ll", " go", ",", " don", "'t", "!"));
  EXPECT_THAT(Pieces("abc123 456 !?x "), ElementsAre("abc", "123", " 456", " !?", "x", " "));
  EXPECT_THAT(Pieces("a \t b"), ElementsAre("a", " \t", " b"));
  EXPECT_THAT(Pieces("a\tb\t"), ElementsAre("a", "\t", "b", "\t"));
  EXPECT_THAT(Pieces(" \n\n "), ElementsAre(" \n\n "));
}

TEST(PreTokenizerTest, ContractionsAreTakenOnlyWhereAPieceStartsAndInLowerCase) {
  EXPECT_THAT(Pieces("it's it'S 's !'s 'llama 'rex 'r"),
              ElementsAre("it", "'s", " it", "'", "S", " '", "s", " !'", "s", " '", "llama", " '", "rex", " '", "r"));
  EXPECT_THAT(Pieces("'llama'rex'sss'"), ElementsAre("'ll", "ama", "'re", "x", "'s", "ss", "'"));
}

TEST(PreTokenizerTest, ClassesAreUnicodes) {
  EXPECT_THAT(Pieces("naïve日本語²Ⅷ½٣"), ElementsAre("naïve日本語", "²Ⅷ½٣"));
  EXPECT_THAT(Pieces("a\u3000\u00a0b\u200b"), ElementsAre("a", "\u3000", "\u00a0", "b", "\u200b"));
  EXPECT_THAT(Pieces("e\u0301x"), ElementsAre("e", "\u0301", "x"));  // a mark is neither letter nor number
  EXPECT_THAT(Pieces("a\x1c b"), ElementsAre("a", "\x1c", " b"));    // \s of `re`, but not White_Space
}

TEST(PreTokenizerTest, BytesThatAreNotUtf8CountAsOther) {
  EXPECT_THAT(Pieces("a\xff\xfe! \x80 b"), ElementsAre("a", "\xff\xfe!", " \x80", " b"));
  EXPECT_THAT(Pieces("\xe6\x97 \xe6\x97\xa5"), ElementsAre("\xe6\x97", " \xe6\x97\xa5"));  // 日 cut off, then whole
  EXPECT_THAT(Pieces("\xed\xa0\x80x"), ElementsAre("\xed\xa0\x80", "x"));                  // a surrogate
}

TEST(PreTokenizerTest, CutsLikeTheRegularExpression) {
  UErrorCode error = U_ZERO_ERROR;
  const std::unique_ptr<icu::RegexPattern> pattern(icu::RegexPattern::compile(
      icu::UnicodeString::fromUTF8(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+)"
                                   R"(|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)"),
      0, error));
  ASSERT_TRUE(U_SUCCESS(error)) << u_errorName(error);
  std::mt19937_64 rng(7);
  for (int round = 0; round < 20'000; ++round) {
    const std::string text = RandomText(rng, rng() % 24);
    const icu::UnicodeString wide = icu::UnicodeString::fromUTF8(text);
    const std::unique_ptr<icu::RegexMatcher> matcher(pattern->matcher(wide, error));
    std::vector<std::string> expected;
    while (matcher->find()) {
      std::string piece;
      expected.push_back(matcher->group(error).toUTF8String(piece));
    }
    ASSERT_TRUE(U_SUCCESS(error));
    ASSERT_EQ(Pieces(text), expected);
  }
}

TEST(PreTokenizerTest, PiecesCoverAnyBytes) {
  std::mt19937_64 rng(8);
  for (int round = 0; round < 2'000; ++round) {
    const std::string bytes = RandomBytes(rng, rng() % 64);
    std::string joined;
    for (const std::string& piece : Pieces(bytes)) joined += piece;
    ASSERT_EQ(joined, bytes);
  }
}

}  // namespace
}  // namespace smt
