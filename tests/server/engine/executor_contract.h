// The suite that every Executor goes through (server/engine/executor.h), on each implementation and on small random
// models of odd shapes. What is promised stands by theme: executor_contract_test.cc, executor_draw_test.cc,
// executor_state_test.cc. The GPU's turn is skipped, saying why, where there is none.
#pragma once

#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <ostream>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "server/engine/executor.h"
#include "tests/model/tiny_models.h"
#include "tests/server/engine/executor_testing.h"

namespace smt {

struct Implementation {
  std::string name;
  bool gpu;
  std::function<std::unique_ptr<Executor>(const StrideHybridConfig& config)> make;
};
// Without it a failing test would name its parameter in raw bytes.
inline void PrintTo(const Implementation& implementation, std::ostream* out) { *out << implementation.name; }

class ExecutorTest : public testing::TestWithParam<std::tuple<Implementation, size_t>> {
 protected:
  void SetUp() override {
    const auto& [implementation, model] = GetParam();
    if (implementation.gpu && !Gpu::device().ok()) GTEST_SKIP() << Gpu::device().status().message();
    executor_ = implementation.make(TinyCases()[model].config);
    text_ = RandomIds(80, executor_->info().vocab_size);
  }

  // Until nothing is deferred any more.
  StepResult Run(const std::vector<PlanItem>& plan) {
    const absl::StatusOr<Ticket> ticket = executor_->Submit(plan);
    EXPECT_TRUE(ticket.ok()) << ticket.status();
    StepResult result;
    const absl::StatusOr<bool> done = executor_->Poll(*ticket, /*wait=*/true, &result);
    EXPECT_TRUE(done.ok() && *done) << done.status();
    EXPECT_EQ(result.items.size(), plan.size());
    std::vector<PlanItem> again;
    std::vector<size_t> at;
    for (size_t i = 0; i < result.items.size(); ++i) {
      if (!result.items[i].deferred) continue;
      again.push_back(plan[i]);
      at.push_back(i);
    }
    if (!again.empty()) {
      StepResult rest = Run(again);
      for (size_t i = 0; i < at.size(); ++i) result.items[at[i]] = std::move(rest.items[i]);
    }
    return result;
  }
  void Wait(Ticket ticket) {
    const absl::StatusOr<bool> done = executor_->Poll(ticket, /*wait=*/true, nullptr);
    EXPECT_TRUE(done.ok() && *done) << done.status();
  }
  void Ingest(int32_t slot, std::span<const int32_t> ids) { Run({{.slot = slot, .ids = ids}}); }
  Bytes Save(int32_t slot) {
    Bytes state(executor_->info().state_bytes);
    Wait(executor_->Save(slot, state));
    return state;
  }
  // `count` ids drawn in `slot`: the first after `prompt` (may be empty), the others after the one before.
  Ids Generate(int32_t slot, std::span<const int32_t> prompt, int count) {
    Ids drawn = {Run({{.slot = slot, .ids = prompt, .want = Want::kSample}}).items[0].id};
    while (static_cast<int>(drawn.size()) < count) {
      drawn.push_back(Run({{.slot = slot, .append_last_sampled = true, .want = Want::kSample}}).items[0].id);
    }
    return drawn;
  }
  std::span<const int32_t> Text(size_t first, size_t count) { return std::span(text_).subspan(first, count); }
  absl::StatusCode SubmitCode(const std::vector<PlanItem>& plan) { return executor_->Submit(plan).status().code(); }

  at::NoGradGuard no_grad_;
  std::unique_ptr<Executor> executor_;
  Ids text_;
};

}  // namespace smt
