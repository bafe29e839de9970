#include "model/tokenizer/tokenizer.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/tokenizer/random_text.h"

namespace smt {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kGpt2[] = "tests/golden/gpt2-tokenizer";

const Tokenizer& Gpt2() {
  static const Tokenizer& tokenizer = *new Tokenizer(*Tokenizer::Load(kGpt2));
  return tokenizer;
}

std::string Shortened(const std::string& text) { return text.substr(0, 200); }

TEST(TokenizerTest, EncodesEveryGoldenTextAsGpt2Does) {
  std::ifstream file(std::string(kGpt2) + "/vectors.json");
  const nlohmann::json vectors = nlohmann::json::parse(file);
  ASSERT_GE(vectors.size(), 50u);
  for (const nlohmann::json& vector : vectors) {
    const auto text = vector.at("text").get<std::string>();
    const auto ids = vector.at("ids").get<std::vector<int32_t>>();
    EXPECT_EQ(Gpt2().Encode(text), ids) << Shortened(text);
    EXPECT_EQ(*Gpt2().Decode(ids), text);
  }
}

TEST(TokenizerTest, AnyBytesComeBackEqual) {
  std::mt19937_64 rng(5);
  for (int round = 0; round < 3'000; ++round) {
    const std::string bytes = RandomBytes(rng, rng() % 200);
    ASSERT_EQ(*Gpt2().Decode(Gpt2().Encode(bytes)), bytes);
    ASSERT_EQ(*Gpt2().Decode(Gpt2().Encode(bytes, {.parse_special = true})), bytes);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const std::string one(1, static_cast<char>(byte));
    const std::vector<int32_t> ids = Gpt2().Encode(one);
    ASSERT_EQ(ids.size(), 1u);
    EXPECT_EQ(Gpt2().token_bytes()[ids[0]], one);
  }
}

TEST(TokenizerTest, BundledModelsTokenizerLoadsAndIsLossless) {
  const absl::StatusOr<Tokenizer> tokenizer = Tokenizer::Load("models/books-6m");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(tokenizer->vocab_size(), 4096);
  EXPECT_EQ(tokenizer->IdOf("<|endoftext|>"), 0);
  std::mt19937_64 rng(6);
  const std::string bytes = RandomBytes(rng, 100'000);
  EXPECT_EQ(*tokenizer->Decode(tokenizer->Encode(bytes)), bytes);
}

TEST(TokenizerTest, SpecialTokensAreTextUnlessAskedFor) {
  const int32_t end = 50256;
  EXPECT_EQ(Gpt2().IdOf("<|endoftext|>"), end);
  EXPECT_TRUE(Gpt2().IsSpecial(end));
  EXPECT_FALSE(Gpt2().IsSpecial(0));
  EXPECT_FALSE(Gpt2().IsSpecial(-1));
  EXPECT_FALSE(Gpt2().IsSpecial(50257));
  EXPECT_EQ(Gpt2().IdOf("the"), std::nullopt);
  EXPECT_EQ(Gpt2().IdOf(""), std::nullopt);
  EXPECT_THAT(Gpt2().Encode("a<|endoftext|>b"), Each(testing::Ne(end)));
  EXPECT_THAT(Gpt2().Encode("<|endoftext|>"), Each(testing::Ne(end)));
  EXPECT_THAT(Gpt2().Encode("a<|endoftext|><|endoftext|>b<|endoftext", {.parse_special = true}),
              testing::Contains(end).Times(2));
  // Text before a special token is cut as if it ended there: both spaces are one piece.
  const std::vector<int32_t> spaces = Gpt2().Encode("  ");
  std::vector<int32_t> expected = spaces;
  expected.push_back(end);
  EXPECT_EQ(Gpt2().Encode("  <|endoftext|>", {.parse_special = true}), expected);
}

TEST(TokenizerTest, MarkedTokensAreFoundLeftmostThenLongest) {
  absl::StatusOr<Tokenizer> tokenizer = Tokenizer::Load(kGpt2);
  ASSERT_TRUE(tokenizer.ok());
  const int32_t hello = tokenizer->Encode("hello")[0], hell = tokenizer->Encode("hell")[0];
  const int32_t o = tokenizer->Encode("o")[0];
  ASSERT_TRUE(tokenizer->MarkSpecial(hell).ok());
  EXPECT_THAT(tokenizer->Encode("hello", {.parse_special = true}), ElementsAre(hell, o));
  ASSERT_TRUE(tokenizer->MarkSpecial(hello).ok());
  ASSERT_TRUE(tokenizer->MarkSpecial(hello).ok());  // again changes nothing
  EXPECT_THAT(tokenizer->Encode("hellohello", {.parse_special = true}), ElementsAre(hello, hello));
  EXPECT_THAT(tokenizer->Encode("hello"), ElementsAre(hello));
  const absl::Status outside = tokenizer->MarkSpecial(50257);
  EXPECT_EQ(outside.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(outside.message()), HasSubstr("is 50257; allowed are the vocabulary's ids, 0 to 50256"));
}

TEST(TokenizerTest, DecodeRefusesIdsOutsideTheVocabulary) {
  for (const int32_t bad : {-1, 50257, INT32_MAX, INT32_MIN}) {
    const absl::Status status = Gpt2().Decode({1, bad}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("ids[1] is " + std::to_string(bad) + "; allowed are the vocabulary's ids, 0 to 50256"));
  }
}

// Ten megabytes each. A quadratic step anywhere would take hours and run into the test's time limit.
TEST(TokenizerTest, LongInputsOfEveryKindAreEncodedWithoutLoss) {
  constexpr size_t kSize = 10'000'000;
  std::mt19937_64 rng(9);
  std::string words;
  while (words.size() < kSize) words += RandomText(rng, 50) + " It was the best of times, it was the worst of times. ";
  std::string letters(kSize, 'a');
  std::string mixed;
  while (mixed.size() < kSize) mixed.push_back(static_cast<char>('a' + rng() % 26));
  for (const std::string& text :
       {words, letters, mixed, std::string(kSize, ' '), std::string(kSize, '\n'), std::string(kSize, '\'')}) {
    const std::vector<int32_t> ids = Gpt2().Encode(text);
    EXPECT_LE(ids.size(), text.size());
    EXPECT_TRUE(*Gpt2().Decode(ids) == text);
  }
  const std::string invalid(kSize, '\xe6');
  EXPECT_TRUE(*Gpt2().Decode(Gpt2().Encode(invalid)) == invalid);
}

TEST(TokenizerTest, ThreadsShareOneTokenizer) {
  std::mt19937_64 rng(10);
  const std::string text = RandomText(rng, 20'000);
  const std::vector<int32_t> expected = Gpt2().Encode(text);
  std::vector<std::vector<int32_t>> results(4);
  std::vector<std::thread> threads;
  for (std::vector<int32_t>& result : results) threads.emplace_back([&] { result = Gpt2().Encode(text); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(results, Each(expected));
}

}  // namespace
}  // namespace smt
