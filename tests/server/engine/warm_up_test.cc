// What a warm-up asks of an executor, and what becomes of it when time runs out, a draw fails or the device does. That
// it leaves no trace is in the executors' contract.
#include "server/engine/warm_up.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/server/engine/fake_executor.h"

namespace smt {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int32_t kSlots = 6, kStride = 4;

// Keeps the phases of each step that draws in all its slots.
class PhasesExecutor final : public FakeExecutor {
 public:
  using FakeExecutor::FakeExecutor;
  absl::StatusOr<Ticket> Submit(std::span<const PlanItem> plan) override {
    std::multiset<int64_t> step;
    for (const PlanItem& item : plan) {
      if (item.append_last_sampled) step.insert(position(item.slot) % kStride);
    }
    if (!step.empty()) phases.push_back(step);
    return FakeExecutor::Submit(plan);
  }
  std::vector<std::multiset<int64_t>> phases;
};

class WarmUpTest : public testing::Test {
 protected:
  absl::StatusOr<WarmUpReport> Run(std::vector<int32_t> batches, FakeExecutor::Options options = {},
                                   WarmUpOptions how = {}) {
    options.slots = kSlots;
    options.stride = kStride;
    executor_ = std::make_unique<PhasesExecutor>(options, control_);
    how.batches = std::move(batches);
    return WarmUp(*executor_, how);
  }
  std::vector<int64_t> Positions() const {
    std::vector<int64_t> positions;
    for (int32_t slot = 0; slot < kSlots; ++slot) positions.push_back(executor_->position(slot));
    return positions;
  }
  // Steps that draw once more in `batch` slots.
  int64_t StepsOf(size_t batch) const {
    return std::count_if(executor_->phases.begin(), executor_->phases.end(),
                         [&](const auto& phases) { return phases.size() == batch; });
  }

  const std::shared_ptr<FakeControl> control_ = std::make_shared<FakeControl>();
  std::unique_ptr<PhasesExecutor> executor_;
};

TEST_F(WarmUpTest, EachBatchGoesThroughThreeStridesWithStepsInFlight) {
  for (const int32_t in_flight : {1, 2}) {
    const auto report = Run({2, 1, 5, kSlots + 1}, {.max_in_flight = in_flight});
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_TRUE(report->stopped.ok());
    EXPECT_THAT(report->batches, ElementsAre(2, 1, 5));
    for (const size_t batch : {1, 2, 5}) EXPECT_EQ(StepsOf(batch), 3 * (kStride + 1)) << batch;
    EXPECT_EQ(StepsOf(kSlots + 1), 0);
    EXPECT_THAT(Positions(), Each(0));
  }
}

TEST_F(WarmUpTest, PhasesAreSpreadEvenly) {
  ASSERT_TRUE(Run({4}).ok());
  EXPECT_THAT(executor_->phases, Each(std::multiset<int64_t>{0, 1, 2, 3}));
  ASSERT_TRUE(Run({2}).ok());
  for (const auto& phases : executor_->phases) EXPECT_EQ(*phases.rbegin() - *phases.begin(), kStride / 2);
}

TEST_F(WarmUpTest, WhatIsDeferredIsAskedForAgain) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const auto report = Run({1, 4, 6}, {.max_in_flight = 2, .defer = 0.4, .seed = seed});
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_THAT(report->batches, ElementsAre(1, 4, 6));
    EXPECT_THAT(Positions(), Each(0));
  }
}

TEST_F(WarmUpTest, NoBatchesAreNothingToDo) {
  for (const std::vector<int32_t>& batches : {std::vector<int32_t>{}, {kSlots + 1}}) {
    const auto report = Run(batches);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_THAT(report->batches, IsEmpty());
    EXPECT_THAT(control_->batches(), IsEmpty());
  }
}

TEST_F(WarmUpTest, EndsWithItsBudgetWhereverThatIs) {
  size_t most = 0;
  for (int budget = 1; budget < 120; ++budget) {
    absl::Time now = absl::UnixEpoch();
    const auto report = Run({1, 4}, {.max_in_flight = 2},
                            {.budget = absl::Seconds(budget), .now = [&now] { return now += absl::Seconds(1); }});
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->stopped.ok(), report->batches.size() == 2);
    if (!report->stopped.ok()) {
      EXPECT_EQ(report->stopped, absl::DeadlineExceededError("the " + std::to_string(budget) + "s for it are used up"));
    }
    EXPECT_GE(report->batches.size(), most) << "with more time";
    most = report->batches.size();
    EXPECT_THAT(Positions(), Each(0));
  }
  EXPECT_EQ(most, 2u);
}

TEST_F(WarmUpTest, ADrawThatFailsEndsItAndNotTheExecutor) {
  for (const int64_t draws : {0, 1, 5, 40}) {
    control_->FailDraw(draws);
    const auto report = Run({1, 4}, {.max_in_flight = 2});
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->stopped, absl::InternalError("every logit is NaN"));
    EXPECT_THAT(Positions(), Each(0));
  }
}

TEST_F(WarmUpTest, AFaultOfTheDeviceIsTold) {
  for (const bool throws : {false, true}) {
    control_->FailNextSubmit(throws);
    EXPECT_EQ(Run({1, 4}, {.max_in_flight = 2}).status(), absl::InternalError("injected fault at a submit"));
    control_->FailNextPoll(throws);
    EXPECT_EQ(Run({1, 4}, {.max_in_flight = 2}).status(), absl::InternalError("injected fault at a poll"));
  }
}

TEST_F(WarmUpTest, ADeviceThatHangsIsLeftWhereItIs) {
  std::unique_ptr<Executor> executor = std::make_unique<FakeExecutor>(FakeExecutor::Options(), control_);
  ASSERT_TRUE(WarmUpWithin(absl::Seconds(60), executor, {.batches = {1, 2}}).ok());
  ASSERT_NE(executor, nullptr);
  executor = std::make_unique<FakeExecutor>(FakeExecutor::Options(), control_);
  control_->HangIn(FakeControl::Call::kPoll);
  EXPECT_EQ(WarmUpWithin(absl::Milliseconds(100), executor, {.batches = {1, 2}}).status(),
            absl::DeadlineExceededError("it has not answered for 100ms"));
  EXPECT_EQ(executor, nullptr);
  control_->EndHang();
}

}  // namespace
}  // namespace smt
