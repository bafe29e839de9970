// CudaExecutor beyond the contract suite, over a runner that stands in for the device's.
#include "server/engine/cuda_executor.h"

#include <gtest/gtest.h>

#include <memory>

#include "model/cpu_slot_runner.h"
#include "tests/model/tiny_models.h"
#include "tests/server/engine/background_runner.h"
#include "tests/server/engine/executor_testing.h"

namespace smt {
namespace {

TEST(CudaExecutorTest, AStepsTimesAreWhatTheDeviceMeasuredOrNone) {
  const StrideHybridConfig& config = TinyCases()[0].config;
  auto cpu = NewCpuSlotRunner(config, RandomWeights(config), {.slots = kSlots, .threads = 1});
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  const auto executor = NewCudaExecutor(std::make_unique<BackgroundRunner>(*std::move(cpu)), "cpu", "float32");
  executor->Reset(0);
  executor->BindSampling(0, Greedy(), {}, {});
  const Ids prompt = {1, 2, 3};
  for (int step = 1; step <= 9; ++step) {
    PlanItem item = {.slot = 0, .append_last_sampled = step > 1, .want = Want::kSample};
    if (step == 1) item.ids = prompt;
    const auto ticket = executor->Submit({&item, 1});
    ASSERT_TRUE(ticket.ok()) << ticket.status();
    StepResult result;
    ASSERT_TRUE(executor->Poll(*ticket, true, &result).ok());
    const AsyncRunner::Times want = step % 3 == 0 ? BackgroundRunner::kTimes : AsyncRunner::Times();
    EXPECT_EQ(result.timings.decode, want.window) << step;
    EXPECT_EQ(result.timings.write, want.writes) << step;
    EXPECT_EQ(result.timings.sample, want.draw) << step;
    EXPECT_EQ(result.timings.ingest > 0, step == 1) << step;
  }
}

}  // namespace
}  // namespace smt
