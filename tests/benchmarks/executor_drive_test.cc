// The benchmarks' way of driving an executor, on one whose every mistake in use fails the test.
#include "tests/benchmarks/executor_drive.h"

#include <gtest/gtest.h>

#include <memory>
#include <numeric>

#include "tests/benchmarks/slot_churn.h"
#include "tests/server/engine/fake_executor.h"

namespace smt::bench {
namespace {

class ExecutorDriveTest : public testing::TestWithParam<FakeExecutor::Options> {
 protected:
  std::shared_ptr<FakeControl> control_ = std::make_shared<FakeControl>();
  FakeExecutor executor_{GetParam(), control_};
  ExecutorDrive drive_{executor_};
  const std::vector<int32_t> slots_ = SlotRange(0, 4);
};

TEST_P(ExecutorDriveTest, CountsEachIdOnceHoweverManyItemsWereDeferred) {
  ASSERT_TRUE(drive_.Fill(slots_, 20).ok());
  const auto stretch = drive_.Draw(slots_, 8, 40);
  ASSERT_TRUE(stretch.ok()) << stretch.status();
  EXPECT_EQ(stretch->tokens + stretch->deferred, 4 * 40);
  EXPECT_EQ(stretch->deferred > 0, GetParam().defer > 0);
  EXPECT_LE(stretch->intervals.size(), static_cast<size_t>(stretch->tokens));
  EXPECT_GE(stretch->intervals.size(), static_cast<size_t>(stretch->tokens) - 4);
  EXPECT_EQ(stretch->steps.size(), 40U);
  EXPECT_NEAR(std::accumulate(stretch->steps.begin(), stretch->steps.end(), 0.0), stretch->seconds, 1e-9);
  EXPECT_GT(stretch->seconds, 0);
  EXPECT_LE(stretch->longest_gap, stretch->seconds);
}

TEST_P(ExecutorDriveTest, FillsToLengthsAsAsked) {
  if (GetParam().defer > 0) return;  // the fake absorbs anew what it deferred
  ASSERT_TRUE(drive_.Fill(slots_, 20).ok());
  for (const int32_t slot : slots_) EXPECT_EQ(executor_.position(slot), 20 + slot % executor_.info().stride);
  ASSERT_TRUE(drive_.Fill(slots_, 20, [](int32_t slot) { return 3 * slot; }).ok());
  for (const int32_t slot : slots_) EXPECT_EQ(executor_.position(slot), 20 + 3 * slot);
}

TEST_P(ExecutorDriveTest, GoesOnWithSessionsThatWereSavedAndLoaded) {
  ASSERT_TRUE(drive_.Fill(slots_, 20).ok());
  std::vector<std::byte> state(FakeExecutor::kStateBytes);
  for (const int32_t slot : slots_) {
    ASSERT_TRUE(drive_.Wait(executor_.Save(slot, state)).ok());
    ASSERT_TRUE(drive_.Wait(executor_.Load(slot, state)).ok());
  }
  ASSERT_TRUE(drive_.Begin(slots_).ok());
  const auto stretch = drive_.Draw(slots_, 1, 10);
  ASSERT_TRUE(stretch.ok()) << stretch.status();
  EXPECT_GT(stretch->tokens, 0);
}

TEST_P(ExecutorDriveTest, StepsMayTakeTurnsAmongResidentSessions) {
  ASSERT_TRUE(drive_.Fill(slots_, 20).ok());
  const auto turn = [&](int64_t step) { return std::span(slots_).subspan(step / 3 % 2 * 2, 2); };
  const auto stretch = drive_.Draw(turn, 6, 12);
  ASSERT_TRUE(stretch.ok()) << stretch.status();
  EXPECT_EQ(stretch->tokens + stretch->deferred, 2 * 12);
}

TEST_P(ExecutorDriveTest, AFaultEndsTheStretchWithItsStatus) {
  ASSERT_TRUE(drive_.Fill(slots_, 20).ok());
  int steps = 0;
  const auto stretch = drive_.Draw(slots_, 1, 10, [&] {
    if (++steps == 5) control_->FailNextSubmit();
    return absl::OkStatus();
  });
  EXPECT_EQ(stretch.status().code(), absl::StatusCode::kInternal);
}

TEST_P(ExecutorDriveTest, ChurnSavesAndLoadsBesideDrawing) {
  ASSERT_TRUE(drive_.Fill(SlotRange(0, 6), 20).ok());
  SlotChurn churn(executor_, SlotRange(4, 2), 1e9);  // as often as can be
  const auto stretch = drive_.Draw(slots_, 1, 40, [&] { return churn.Tick(); });
  ASSERT_TRUE(stretch.ok()) << stretch.status();
  ASSERT_TRUE(churn.Finish().ok());
  EXPECT_GT(churn.done(), 5);
  EXPECT_LE(churn.done(), 2 * 41);
}

INSTANTIATE_TEST_SUITE_P(
    Executors, ExecutorDriveTest,
    testing::Values(FakeExecutor::Options{.slots = 6}, FakeExecutor::Options{.slots = 6, .max_in_flight = 2},
                    FakeExecutor::Options{.slots = 6, .max_in_flight = 3, .defer = 0.3, .late_transfers = 0.5}),
    [](const auto& info) { return info.index == 0   ? "OneInFlight"
                                  : info.index == 1 ? "TwoInFlight"
                                                    : "Deferring"; });

}  // namespace
}  // namespace smt::bench
