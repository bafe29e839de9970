#include "model/window_manager.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "tests/model/tiny_models.h"

namespace smt {
namespace {

using testing::ElementsAre;

std::vector<int64_t> Values(const at::Tensor& t) {
  const at::Tensor flat = t.to(at::kLong).contiguous();
  return {flat.data_ptr<int64_t>(), flat.data_ptr<int64_t>() + flat.numel()};
}

// n = 3, m = 7, s = 4. Every write pushes the vector (t, t, ...).
class WindowManagerTest : public testing::Test {
 protected:
  WindowManagerTest() : config_(TinyCases()[0].config), model_(RandomModel(config_)), manager_(config_, *model_->ssm) {}
  void AppendUpTo(WindowManager& manager, int64_t t) {
    while (manager.position() < t) {
      manager.Append(static_cast<int32_t>((manager.position() + 1) % 37));
      if (!WritesAt(config_, manager.position())) continue;
      SsmState state = model_->ssm->InitialState(1, at::kFloat);
      for (at::Tensor& layer : state.conv) layer.fill_(0.5 * manager.position());
      for (at::Tensor& layer : state.state) layer.fill_(-manager.position());
      manager.Push({at::full({1, config_.d_model}, manager.position(), at::kFloat), state});
    }
  }
  std::vector<std::byte> Save(const WindowManager& manager) {
    std::vector<std::byte> bytes(manager.layout().bytes());
    manager.Save(bytes);
    return bytes;
  }

  at::NoGradGuard no_grad_;
  StrideHybridConfig config_;
  StrideHybridModel model_;
  WindowManager manager_;
};

TEST_F(WindowManagerTest, HopKeepsTheLastTokensOfAWriteAndGrowsUntilTheNext) {
  AppendUpTo(manager_, 3);
  EXPECT_THAT(Values(manager_.LogitsWindow(WindowPolicy::kHop).ids), ElementsAre(1, 2, 3));
  AppendUpTo(manager_, 4);  // a write: m - s = 3 stay
  EXPECT_THAT(Values(manager_.LogitsWindow(WindowPolicy::kHop).ids), ElementsAre(2, 3, 4));
  AppendUpTo(manager_, 7);
  EXPECT_THAT(Values(manager_.LogitsWindow(WindowPolicy::kHop).ids), ElementsAre(2, 3, 4, 5, 6, 7));
  AppendUpTo(manager_, 20);
  EXPECT_THAT(Values(manager_.LogitsWindow(WindowPolicy::kHop).ids), ElementsAre(18, 19, 20));
}

TEST_F(WindowManagerTest, SlideAndWritesSeeTheLastTokens) {
  AppendUpTo(manager_, 5);
  EXPECT_THAT(Values(manager_.LogitsWindow(WindowPolicy::kSlide).ids), ElementsAre(1, 2, 3, 4, 5));
  AppendUpTo(manager_, 30);
  EXPECT_THAT(Values(manager_.LogitsWindow(WindowPolicy::kSlide).ids), ElementsAre(24, 25, 26, 27, 28, 29, 30));
  EXPECT_THAT(Values(manager_.WriteWindow().ids), ElementsAre(24, 25, 26, 27, 28, 29, 30));
}

TEST_F(WindowManagerTest, MemoryIsLeftAlignedOldestFirstAndMaskedBeyond) {
  AppendUpTo(manager_, 9);
  WindowBatch window = manager_.LogitsWindow(WindowPolicy::kSlide);
  EXPECT_THAT(Values(window.memory.select(2, 0).narrow(1, 0, 2)), ElementsAre(4, 8));
  EXPECT_THAT(Values(window.mask), ElementsAre(1, 1, 0, 1, 1, 1, 1, 1, 1, 1));
  AppendUpTo(manager_, 22);  // writes at 4, 8, 12, 16, 20; three stay
  window = manager_.LogitsWindow(WindowPolicy::kHop);
  EXPECT_THAT(Values(window.memory.select(2, 0)), ElementsAre(12, 16, 20));
  EXPECT_THAT(Values(window.ids), ElementsAre(18, 19, 20, 21, 22));
  EXPECT_THAT(Values(window.last), ElementsAre(7));
}

TEST_F(WindowManagerTest, SavesTheLayoutThatStateLayoutDescribes) {
  AppendUpTo(manager_, 22);
  const std::vector<std::byte> bytes = Save(manager_);
  const StateLayout& layout = manager_.layout();
  const std::span<const std::byte> view(bytes);
  EXPECT_EQ(layout.position(view), 22);
  EXPECT_THAT(layout.tokens(view), ElementsAre(16, 17, 18, 19, 20, 21, 22));
  const int64_t d = config_.d_model;
  EXPECT_EQ(layout.memory(view)[0], 12);
  EXPECT_EQ(layout.memory(view)[d], 16);
  EXPECT_EQ(layout.memory(view)[3 * d - 1], 20);
  EXPECT_EQ(layout.conv(view).back(), 10);
  EXPECT_EQ(layout.state(view).front(), -20);
}

TEST_F(WindowManagerTest, ALoadedSessionGoesOnAsTheSavedOneWhereverItWas) {
  for (int64_t t = 0; t <= 24; ++t) {
    AppendUpTo(manager_, t);
    WindowManager loaded(config_, *model_->ssm);
    AppendUpTo(loaded, 13);  // dirt
    loaded.Load(Save(manager_));
    EXPECT_EQ(Save(loaded), Save(manager_)) << "at " << t;
    WindowManager fork(config_, *model_->ssm);
    fork.ForkFrom(manager_);
    AppendUpTo(loaded, t + 11);
    AppendUpTo(fork, t + 11);
    EXPECT_EQ(Save(loaded), Save(fork)) << "at " << t;
  }
}

TEST_F(WindowManagerTest, EqualHistoriesHaveEqualBytesWhateverTheSlotHeldBefore) {
  AppendUpTo(manager_, 50);
  manager_.Reset();
  AppendUpTo(manager_, 6);
  WindowManager fresh(config_, *model_->ssm);
  AppendUpTo(fresh, 6);
  EXPECT_EQ(Save(manager_), Save(fresh));
}

TEST_F(WindowManagerTest, AFailedLoadLeavesTheSessionAlone) {
  AppendUpTo(manager_, 6);
  const std::vector<std::byte> before = Save(manager_);
  std::vector<std::byte> bad = before;
  manager_.layout().tokens(std::span(bad))[2] = -5;
  EXPECT_THROW(manager_.Load(bad), std::invalid_argument);
  EXPECT_EQ(Save(manager_), before);
}

}  // namespace
}  // namespace smt
