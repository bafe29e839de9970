#include "tests/benchmarks/stream_load.h"

#include <gtest/gtest.h>

namespace smt::bench {
namespace {

TEST(StreamTallyTest, CountsOnlyWhileAllStreamsRun) {
  StreamTally tally(2);
  tally.Add(0, 1, 0.0);
  tally.Add(0, 1000, 0.5);  // the other has not begun
  tally.Add(1, 1, 1.0);
  for (int i = 1; i <= 10; ++i) {
    tally.Add(0, 5, 1.0 + 0.1 * i);
    tally.Add(1, 5, 1.0 + 0.1 * i);
  }
  tally.Add(1, 1000, 2.5);  // the other has ended
  EXPECT_NEAR(tally.Rate(), 100, 1e-6);
}

TEST(StreamTallyTest, TakesTheWholeTimeWhereStreamsHardlyRanTogether) {
  StreamTally tally(2);
  for (int i = 0; i <= 10; ++i) tally.Add(0, 1, 0.1 * i);
  for (int i = 0; i <= 10; ++i) tally.Add(1, 1, 1.0 + 0.1 * i);
  EXPECT_NEAR(tally.Rate(), 21 / 2.0, 1e-6);
}

TEST(StreamTallyTest, AStreamThatGaveNothingMakesTheRateZero) {
  StreamTally tally(2);
  tally.Add(0, 1, 0.0);
  EXPECT_EQ(tally.Rate(), 0);
}

}  // namespace
}  // namespace smt::bench
