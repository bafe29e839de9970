#include "model/tokenizer/bpe.h"

#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace smt {
namespace {

using ::testing::ElementsAre;

// The algorithm as GPT-2's encoder.py has it.
std::vector<int32_t> MergeByTheBook(const std::vector<MergeRule>& rules, std::vector<int32_t> word) {
  std::map<std::pair<int32_t, int32_t>, size_t> ranks;
  for (size_t i = 0; i < rules.size(); ++i) ranks[{rules[i].left, rules[i].right}] = i;
  while (true) {
    size_t best = rules.size();
    for (size_t i = 0; i + 1 < word.size(); ++i) {
      const auto found = ranks.find({word[i], word[i + 1]});
      if (found != ranks.end()) best = std::min(best, found->second);
    }
    if (best == rules.size()) return word;
    std::vector<int32_t> merged;
    for (size_t i = 0; i < word.size(); ++i) {
      if (i + 1 < word.size() && word[i] == rules[best].left && word[i + 1] == rules[best].right) {
        merged.push_back(rules[best].result);
        ++i;
      } else {
        merged.push_back(word[i]);
      }
    }
    word = merged;
  }
}

// Over `letters` letters; in the order of training, or shuffled, where a rule can precede those that make its parts.
std::vector<MergeRule> RandomRules(std::mt19937_64& rng, int letters, int count, bool shuffled) {
  std::vector<std::string> tokens;
  std::map<std::string, int32_t> ids;
  for (int i = 0; i < letters; ++i) {
    tokens.emplace_back(1, static_cast<char>('a' + i));
    ids[tokens.back()] = i;
  }
  std::map<std::pair<int32_t, int32_t>, MergeRule> seen;
  std::vector<MergeRule> rules;
  for (int i = 0; i < count; ++i) {
    const auto left = static_cast<int32_t>(rng() % tokens.size()), right = static_cast<int32_t>(rng() % tokens.size());
    const std::string result = tokens[left] + tokens[right];
    if (result.size() > 12 || seen.contains({left, right})) continue;
    const auto [entry, is_new] = ids.emplace(result, static_cast<int32_t>(tokens.size()));
    if (is_new) tokens.push_back(result);
    rules.push_back({left, right, entry->second});
    seen[{left, right}] = rules.back();
  }
  if (shuffled) std::shuffle(rules.begin(), rules.end(), rng);
  return rules;
}

TEST(BpeTest, BothWaysMergeByTheBook) {
  std::mt19937_64 rng(3);
  for (int round = 0; round < 400; ++round) {
    const int letters = 1 + static_cast<int>(rng() % 4);
    const std::vector<MergeRule> rules = RandomRules(rng, letters, static_cast<int>(rng() % 40), round % 2 == 1);
    const BpeMerges merges(rules);
    for (int i = 0; i < 20; ++i) {
      std::vector<int32_t> word(rng() % 100);
      for (int32_t& id : word) id = static_cast<int32_t>(rng() % letters);
      const std::vector<int32_t> expected = MergeByTheBook(rules, word);
      std::vector<int32_t> by_short = word, by_long = word, by_size = word;
      merges.MergeShort(&by_short);
      merges.MergeLong(&by_long);
      merges.Merge(&by_size);
      ASSERT_EQ(by_short, expected);
      ASSERT_EQ(by_long, expected);
      ASSERT_EQ(by_size, expected);
    }
  }
}

TEST(BpeTest, OverlappingPairsMergeFromTheLeft) {
  const BpeMerges merges({{0, 0, 1}});
  std::vector<int32_t> ids = {0, 0, 0};
  merges.MergeLong(&ids);
  EXPECT_THAT(ids, ElementsAre(1, 0));
}

TEST(BpeTest, NothingAndOneStayAsTheyAre) {
  const BpeMerges merges({{0, 0, 1}});
  std::vector<int32_t> none, one = {0};
  merges.MergeShort(&none);
  merges.MergeLong(&none);
  merges.MergeShort(&one);
  merges.MergeLong(&one);
  EXPECT_TRUE(none.empty());
  EXPECT_THAT(one, ElementsAre(0));
}

}  // namespace
}  // namespace smt
