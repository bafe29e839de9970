#include "tests/benchmarks/window_tally.h"

#include <gtest/gtest.h>

namespace smt::bench {
namespace {

TEST(WindowTallyTest, CountsOnlyWhatComesWithinTheWindow) {
  WindowTally tally(2);
  tally.TurnBegins(0, 0.5);
  tally.Arrives(0, 1000, 0.9);  // it is not open yet
  tally.Open(1, 3);
  tally.Arrives(0, 10, 1.0);
  tally.TurnBegins(1, 1.5);
  tally.Arrives(1, 30, 2.5);
  tally.Arrives(0, 1000, 3.0);
  const WindowTally::Figures figures = tally.Sum();
  EXPECT_NEAR(figures.tokens_per_s, 20, 1e-6);
  EXPECT_NEAR(figures.tokens_a_message, 20, 1e-6);
  EXPECT_EQ(figures.turns, 1) << "the other's first token came before";
  EXPECT_NEAR(figures.first_token_p50, 1.0, 1e-6);
}

TEST(WindowTallyTest, GapsAreThoseWithinATurn) {
  WindowTally tally(1);
  tally.Open(0, 100);
  for (int turn = 0; turn < 2; ++turn) {
    const double call = 10 * turn + 1;
    tally.TurnBegins(0, call);
    for (int i = 1; i <= 3; ++i) tally.Arrives(0, 1, call + 0.25 * i);
    tally.Arrives(0, 0, call + 3);  // text alone
  }
  const WindowTally::Figures figures = tally.Sum();
  EXPECT_NEAR(figures.gap_p50, 0.25, 1e-6);
  EXPECT_NEAR(figures.gap_p99, 0.25, 1e-6) << "what lies between turns is not one";
  EXPECT_NEAR(figures.first_token_p99, 0.25, 1e-6);
  EXPECT_EQ(figures.turns, 2);
}

TEST(WindowTallyTest, AllHaveBegunWhenEachHasHadAToken) {
  WindowTally tally(2);
  tally.TurnBegins(0, 1);
  tally.Arrives(0, 1, 1);
  tally.Arrives(0, 1, 2);
  tally.Arrives(1, 0, 2);
  EXPECT_FALSE(tally.all_began());
  tally.Arrives(1, 1, 3);
  EXPECT_TRUE(tally.all_began());
  EXPECT_EQ(tally.Sum().turns, 0) << "no window was opened";
}

}  // namespace
}  // namespace smt::bench
