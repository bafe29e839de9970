// TorchExecutor beyond the contract suite: faults, and how it is made from a model folder.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/device.h"
#include "server/engine/torch_executor.h"
#include "tests/model/tiny_models.h"
#include "tests/server/engine/executor_testing.h"

namespace smt {
namespace {

using testing::HasSubstr;

// A runner whose device fails, or whose logits are no numbers.
class BrokenRunner : public SlotRunner {
 public:
  explicit BrokenRunner(bool throws) : throws_(throws), config_(TinyCases()[0].config), layout_(config_) {}
  const StrideHybridConfig& config() const override { return config_; }
  const StateLayout& layout() const override { return layout_; }
  int32_t slots() const override { return 2; }
  bool deterministic() const override { return true; }
  std::string numerics_id() const override { return "broken"; }
  int64_t position(int32_t slot) const override { return 1; }
  void Reset(int32_t slot) override {}
  void Load(int32_t slot, std::span<const std::byte> state) override {}
  void Save(int32_t slot, std::span<std::byte> state) override {}
  void Copy(int32_t from, int32_t to) override {}
  void Ingest(std::span<const Chunk> chunks) override {}
  void Step(std::span<const int32_t> slots, std::span<const int32_t> ids, float* logits) override {
    if (throws_) throw std::runtime_error("the wires are cut");
    std::fill(logits, logits + slots.size() * config_.vocab_size, std::numeric_limits<float>::quiet_NaN());
  }
  void Logits(std::span<const int32_t> slots, float* logits) override { Step(slots, slots, logits); }
  void SetWriteObserver(std::function<void(const WriteEvent&)> observer) override {}

 private:
  const bool throws_;
  const StrideHybridConfig config_;
  const StateLayout layout_;
};

TEST(TorchExecutorTest, IsDeadAfterADeviceFault) {
  const auto executor = NewTorchExecutor(std::make_unique<BrokenRunner>(true), "cpu", "float32");
  executor->BindSampling(0, Greedy(), {}, {});
  const std::vector<PlanItem> plan = {{.slot = 0, .want = Want::kSample}};
  const absl::Status fault = executor->Submit(plan).status();
  EXPECT_EQ(fault.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(fault.message()), HasSubstr("the wires are cut"));
  EXPECT_EQ(executor->Submit({}).status(), fault);
  EXPECT_EQ(executor->Poll(executor->Copy(0, 1), true, nullptr).status(), fault);
  Bytes state(executor->info().state_bytes);
  EXPECT_EQ(executor->Poll(executor->Load(1, state), true, nullptr).status(), fault);
}

TEST(TorchExecutorTest, AnItemWithoutADrawableIdFailsAloneAndTheExecutorLives) {
  const auto executor = NewTorchExecutor(std::make_unique<BrokenRunner>(false), "cpu", "float32");
  executor->BindSampling(0, Greedy(), {}, {});
  const std::vector<PlanItem> plan = {{.slot = 0, .want = Want::kSample}, {.slot = 1}};
  const absl::StatusOr<Ticket> ticket = executor->Submit(plan);
  ASSERT_TRUE(ticket.ok());
  StepResult result;
  ASSERT_TRUE(executor->Poll(*ticket, true, &result).ok());
  EXPECT_EQ(result.items[0].status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(result.items[0].id, -1);
  EXPECT_TRUE(result.items[1].status.ok());
}

RunnerOptions BundledModel() {
  RunnerOptions options;
  options.model_dir = "models/books-6m";
  options.slots = 2;
  return options;
}

TEST(NewTorchExecutorTest, OpensAModelFolderAndTakesAutoForDeviceAndDtype) {
  RunnerOptions options = BundledModel();
  options.device = options.dtype = "auto";
  std::string note;
  const auto executor = NewTorchExecutor(options, &note);
  ASSERT_TRUE(executor.ok()) << executor.status();
  EXPECT_EQ((*executor)->info().slots, 2);
  EXPECT_EQ((*executor)->info().vocab_size, 4096);
  EXPECT_EQ((*executor)->info().dtype, "float32");
  EXPECT_EQ((*executor)->info().device == "cpu", !note.empty());
}

TEST(NewTorchExecutorTest, TakesFewerSlotsOnlyWhereTheyDoNotFitAndIsAskedTo) {
  RunnerOptions options = BundledModel();
  options.fewer_slots = true;
  const auto executor = NewTorchExecutor(options);
  ASSERT_TRUE(executor.ok()) << executor.status();
  const ExecutorInfo& info = (*executor)->info();
  EXPECT_EQ(info.slots, 2);
  EXPECT_EQ(info.capacity.slot_bytes, info.slot_bytes);
  EXPECT_GT(info.capacity.fits(), 2);
  EXPECT_LE(info.capacity.work_bytes + info.capacity.fits() * info.capacity.slot_bytes, info.capacity.free_bytes);
  EXPECT_LT(info.capacity.free_bytes, info.capacity.total_bytes);
}

TEST(NewTorchExecutorTest, NamesTheOptionItsValueAndWhatIsAllowed) {
  const auto error = [](const std::function<void(RunnerOptions&)>& change) {
    RunnerOptions options = BundledModel();
    change(options);
    return NewTorchExecutor(options).status();
  };
  absl::Status status = error([](RunnerOptions& o) { o.slots = 0; });
  EXPECT_EQ(status, absl::InvalidArgumentError("slots is 0; allowed: >= 1"));
  status = error([](RunnerOptions& o) { o.slots = 2'000'000'000; });
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("slots is 2000000000: at "));
  status = error([](RunnerOptions& o) { o.dtype = "int8"; });
  EXPECT_EQ(status, absl::InvalidArgumentError("dtype is \"int8\"; allowed: auto, float32, bfloat16, float16"));
  status = error([](RunnerOptions& o) { o.dtype = "float16"; });
  EXPECT_EQ(status,
            absl::InvalidArgumentError("dtype is \"float16\", allowed float32 or bfloat16: only our own kernels "
                                       "on a GPU (libsmt_cuda.so) have it"));
  status = error([](RunnerOptions& o) { o.device = "tpu"; });
  EXPECT_EQ(status, absl::InvalidArgumentError("device is \"tpu\"; allowed: auto, cpu, cuda, cuda:N"));
  status = error([](RunnerOptions& o) { o.model_dir = "models/nowhere"; });
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  if (!Gpu::device().ok()) {
    EXPECT_EQ(error([](RunnerOptions& o) { o.device = "cuda"; }).code(), absl::StatusCode::kUnavailable);
  }
}

TEST(DeviceTest, ParsesWhatItAllowsAndNamesWhatItDoesNot) {
  EXPECT_EQ(ParseDevice("cuda:3")->index, 3);
  EXPECT_EQ(ParseDevice("cuda")->index, 0);
  EXPECT_EQ(ParseDevice("auto")->kind, DeviceChoice::Kind::kAuto);
  for (const char* bad : {"", "gpu", "cuda:", "cuda:-1", "cuda:1x", "cuda:99999999999", "CPU", "cpu:0"}) {
    const absl::Status status = ParseDevice(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string("\"") + bad + "\"; allowed: auto, cpu"));
  }
}

TEST(DeviceTest, AutoFallsBackToTheCpuAndSaysWhy) {
  const absl::StatusOr<Device> device = ResolveDevice("auto");
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(device->name, Gpu::device().ok() ? "cuda:0" : "cpu");
  EXPECT_EQ(device->note.empty(), Gpu::device().ok());
  EXPECT_TRUE(ResolveDevice("cpu")->note.empty());
  if (!Gpu::device().ok()) {
    EXPECT_THAT(std::string(Gpu::device().status().message()), HasSubstr("device cuda: "));
  } else {
    EXPECT_THAT(std::string(ResolveDevice("cuda:127").status().message()), HasSubstr("device index is 127"));
  }
}

}  // namespace
}  // namespace smt
