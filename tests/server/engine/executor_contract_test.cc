// What every Executor promises of plans and tickets, and the implementations that go through the whole suite.
#include <memory>
#include <string>

#include "model/cpu_slot_runner.h"
#include "model/torch_slot_runner.h"
#include "server/engine/cuda_executor.h"
#include "server/engine/torch_executor.h"
#include "tests/server/engine/background_runner.h"
#include "tests/server/engine/executor_contract.h"

namespace smt {
namespace {

std::unique_ptr<SlotRunner> TorchRunner(const StrideHybridConfig& config, const std::string& device) {
  StrideHybridModel model = RandomModel(config);
  model->to(at::Device(device));
  return *NewTorchSlotRunner(model, {.slots = kSlots, .deterministic = true, .window_policy = std::nullopt});
}

std::unique_ptr<SlotRunner> KernelRunner(const StrideHybridConfig& config) {
  return *NewCpuSlotRunner(config, RandomWeights(config), {.slots = kSlots, .threads = 2});
}

const Implementation kImplementations[] = {
    {"CpuKernels", false, [](const auto& config) { return NewTorchExecutor(KernelRunner(config), "cpu", "float32"); }},
    // What serves a GPU, on a CPU's numbers.
    {"BackgroundCpu", false,
     [](const auto& config) {
       return NewCudaExecutor(std::make_unique<BackgroundRunner>(KernelRunner(config)), "cpu", "float32");
     }},
    {"TorchCpu", false,
     [](const auto& config) { return NewTorchExecutor(TorchRunner(config, "cpu"), "cpu", "float32"); }},
    {"TorchCuda", true,
     [](const auto& config) { return NewTorchExecutor(TorchRunner(config, "cuda:0"), "cuda:0", "float32"); }},
    {"Cuda", true,
     [](const auto& config) {
       return NewCudaExecutor(CudaKernelRunner(config, WindowDType::kFloat32), "cuda:0", "float32");
     }},
    {"CudaBfloat16", true,
     [](const auto& config) {
       return NewCudaExecutor(CudaKernelRunner(config, WindowDType::kBfloat16), "cuda:0", "bfloat16");
     }},
    {"CudaFloat16", true,
     [](const auto& config) {
       return NewCudaExecutor(CudaKernelRunner(config, WindowDType::kFloat16), "cuda:0", "float16");
     }},
    {"CudaKernelsStepwise", true,
     [](const auto& config) {
       return NewTorchExecutor(CudaKernelRunner(config, WindowDType::kBfloat16), "cuda:0", "bfloat16");
     }},
};

TEST_P(ExecutorTest, InfoSaysWhatTheModelAndTheSlotsAre) {
  const ExecutorInfo& info = executor_->info();
  const StrideHybridConfig& config = TinyCases()[std::get<1>(GetParam())].config;
  EXPECT_EQ(info.slots, kSlots);
  EXPECT_EQ(info.vocab_size, config.vocab_size);
  EXPECT_EQ(info.stride, config.stride);
  EXPECT_EQ(info.input_tokens, config.m_input_tokens);
  EXPECT_EQ(info.state_bytes, static_cast<int64_t>(StateLayout(config).bytes()));
  EXPECT_GE(info.slot_bytes, info.state_bytes);
  EXPECT_GE(info.max_in_flight, 1);
  EXPECT_TRUE(info.deterministic);
  EXPECT_FALSE(info.numerics_id.empty());
}

TEST_P(ExecutorTest, PositionCountsAppendedIdsAndNotTheDrawnOne) {
  executor_->BindSampling(0, Greedy(), {}, {});
  EXPECT_EQ(executor_->position(0), 0);
  Run({{.slot = 0, .ids = Text(0, 21), .want = Want::kSample}});
  EXPECT_EQ(executor_->position(0), 21);
  Run({{.slot = 0, .append_last_sampled = true, .ids = Text(21, 2), .want = Want::kNothing}});
  EXPECT_EQ(executor_->position(0), 24);
  EXPECT_EQ(executor_->position(1), 0);
  executor_->Reset(0);
  EXPECT_EQ(executor_->position(0), 0);
}

TEST_P(ExecutorTest, AnEmptyPlanAndAnEmptyItemDoNothing) {
  Ingest(0, Text(0, 9));
  const Bytes before = Save(0);
  Run({});
  Run({{.slot = 0}});
  EXPECT_EQ(Save(0), before);
}

TEST_P(ExecutorTest, RefusesBadPlansAndDoesNothingOfThem) {
  constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
  executor_->BindSampling(0, Greedy(), {}, {});
  Ingest(0, Text(0, 11));
  const Bytes before = Save(0);
  const int32_t v = executor_->info().vocab_size;
  const PlanItem good = {.slot = 0, .ids = Text(0, 3)};
  const Ids unknown = {1, v}, negative = {-1};
  EXPECT_EQ(SubmitCode({good, {.slot = kSlots}}), kInvalid);
  EXPECT_EQ(SubmitCode({good, {.slot = -1}}), kInvalid);
  EXPECT_EQ(SubmitCode({good, {.slot = 0}}), kInvalid) << "a slot twice";
  EXPECT_EQ(SubmitCode({good, {.slot = 1, .ids = unknown}}), kInvalid);
  EXPECT_EQ(SubmitCode({good, {.slot = 1, .ids = negative}}), kInvalid);
  EXPECT_EQ(SubmitCode({good, {.slot = 1, .append_last_sampled = true}}), kInvalid) << "nothing was drawn";
  EXPECT_EQ(SubmitCode({good, {.slot = 1, .ids = Text(0, 2), .want = Want::kSample}}), kInvalid) << "nothing bound";
  executor_->BindSampling(1, Greedy(), {}, {});
  EXPECT_EQ(SubmitCode({good, {.slot = 1, .want = Want::kSample}}), kInvalid) << "an empty slot has no logits";
  EXPECT_EQ(SubmitCode({good, {.slot = 1, .ids = Text(0, 2), .want = Want::kScore, .targets = Text(0, 1)}}), kInvalid);
  EXPECT_EQ(SubmitCode({good, {.slot = 1, .want = Want::kScore, .targets = Text(0, 1)}}), kInvalid);
  EXPECT_EQ(executor_->position(1), 0);
  EXPECT_EQ(Save(0), before);
  Run({good});
  EXPECT_EQ(executor_->position(0), 14);
}

TEST_P(ExecutorTest, ADrawnIdIsForgottenOnceOtherIdsFollow) {
  executor_->BindSampling(0, Greedy(), {}, {});
  Run({{.slot = 0, .ids = Text(0, 6), .want = Want::kSample}});
  Ingest(0, Text(6, 1));
  EXPECT_EQ(SubmitCode({{.slot = 0, .append_last_sampled = true}}), absl::StatusCode::kInvalidArgument);
}

TEST_P(ExecutorTest, ATicketIsForgottenWhenItIsDone) {
  const Ticket ticket = executor_->Copy(0, 1);
  Wait(ticket);
  EXPECT_EQ(executor_->Poll(ticket, true, nullptr).status().code(), absl::StatusCode::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(All, ExecutorTest,
                         testing::Combine(testing::ValuesIn(kImplementations), testing::Values<size_t>(0, 2, 3)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + TinyCases()[std::get<1>(info.param)].name;
                         });

}  // namespace
}  // namespace smt
