#include "server/engine/prompt_feed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace smt {
namespace {

using ::testing::ElementsAre;

struct Taken {
  std::vector<int32_t> ids, targets;
  Want want;
  bool operator==(const Taken&) const = default;
};

std::vector<Taken> TakeAll(PromptFeed feed, int64_t budget, int64_t score_budget) {
  std::vector<Taken> all;
  while (!feed.done() && all.size() < 100) {
    const PromptFeed::Item item = feed.Next(budget, score_budget);
    all.push_back({{item.ids.begin(), item.ids.end()}, {item.targets.begin(), item.targets.end()}, item.want});
    feed.Advance(item);
  }
  return all;
}

const std::vector<int32_t> kPrompt = {1, 2, 3, 4, 5};

TEST(PromptFeed, CutsByBudgetAndDrawsWithTheLastChunk) {
  EXPECT_THAT(TakeAll(PromptFeed({8, 9}, kPrompt, {.draw = true}), 3, 1),
              ElementsAre(Taken{{8, 9, 1}, {}, Want::kNothing}, Taken{{2, 3, 4}, {}, Want::kNothing},
                          Taken{{5}, {}, Want::kSample}));
  EXPECT_THAT(TakeAll(PromptFeed({}, kPrompt, {}), 100, 1), ElementsAre(Taken{kPrompt, {}, Want::kNothing}));
}

TEST(PromptFeed, DrawsFromThePresentPositionWhenNothingIsLeftToAbsorb) {
  EXPECT_THAT(TakeAll(PromptFeed({}, {}, {.draw = true}), 3, 1), ElementsAre(Taken{{}, {}, Want::kSample}));
  EXPECT_TRUE(PromptFeed({}, {}, {}).done());
}

TEST(PromptFeed, ScoresAllButTheFirst) {
  EXPECT_THAT(TakeAll(PromptFeed({8, 9}, kPrompt, {.draw = true, .score = true}), 10, 3),
              ElementsAre(Taken{{8, 9}, {}, Want::kNothing}, Taken{{1, 2, 3}, {2, 3, 4}, Want::kScore},
                          Taken{{4}, {5}, Want::kScore}, Taken{{5}, {}, Want::kSample}));
}

TEST(PromptFeed, ScoresTheFirstAfterTheLogsLastId) {
  EXPECT_THAT(TakeAll(PromptFeed({8, 9}, kPrompt, {.score = true, .score_first = true}), 10, 10),
              ElementsAre(Taken{{8}, {}, Want::kNothing}, Taken{{9, 1, 2, 3, 4}, {1, 2, 3, 4, 5}, Want::kScore},
                          Taken{{5}, {}, Want::kNothing}));
}

TEST(PromptFeed, ScoresTheFirstAtThePresentPositionWhenTheLogIsAbsorbed) {
  EXPECT_THAT(TakeAll(PromptFeed({}, std::vector<int32_t>{1, 2}, {.score = true, .score_first = true}), 10, 10),
              ElementsAre(Taken{{}, {1}, Want::kScore}, Taken{{1}, {2}, Want::kScore}, Taken{{2}, {}, Want::kNothing}));
}

TEST(PromptFeed, CountsOnlyThePromptAsProgress) {
  PromptFeed feed({8, 9, 10}, kPrompt, {.score = true, .score_first = true});
  PromptFeed::Item item = feed.Next(2, 2);
  feed.Advance(item);
  EXPECT_EQ(feed.prompt_done(), 0);
  item = feed.Next(2, 2);
  EXPECT_EQ(feed.FirstTarget(item), 0);
  feed.Advance(item);
  EXPECT_EQ(feed.prompt_done(), 1);
  item = feed.Next(2, 2);
  EXPECT_EQ(feed.FirstTarget(item), 2);
  EXPECT_THAT(feed.rest(), ElementsAre(2, 3, 4, 5));
}

}  // namespace
}  // namespace smt
