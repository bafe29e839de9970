#include "model/runners.h"

#include <utility>

#include "model/base/status_macros.h"
#include "model/checkpoint.h"
#include "model/cpu_slot_runner.h"
#include "model/torch_slot_runner.h"

namespace smt {
namespace {

absl::StatusOr<std::unique_ptr<SlotRunner>> NewCpuKernelsRunner(const RunnerOptions& options) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint, Checkpoint::Open(options.model_dir));
  StrideHybridConfig config = checkpoint->config();
  config.window_policy = options.window_policy.value_or(config.window_policy);
  const auto source = [checkpoint](const std::string& name, const std::vector<int64_t>& shape) {
    return checkpoint->Float32(name, shape);
  };
  return NewCpuSlotRunner(config, source, {.slots = options.slots, .bfloat16 = options.dtype == "bfloat16"});
}

absl::StatusOr<std::unique_ptr<SlotRunner>> NewLibTorchRunner(const RunnerOptions& options) {
  LoadOptions load;
  load.device = options.device;
  load.dtype = options.dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
  load.window_policy = options.window_policy;
  ASSIGN_OR_RETURN(StrideHybridModel model, LoadStrideHybridModel(options.model_dir, load));
  return NewTorchSlotRunner(std::move(model), {.slots = options.slots, .deterministic = options.deterministic});
}

}  // namespace

absl::StatusOr<std::unique_ptr<SlotRunner>> NewSlotRunner(const RunnerOptions& options) {
  if (options.dtype != "float32" && options.dtype != "bfloat16") {
    return absl::InvalidArgumentError("dtype is \"" + options.dtype + "\", allowed float32 or bfloat16");
  }
  if (options.slots < 1) {
    return absl::InvalidArgumentError("slots is " + std::to_string(options.slots) + ", allowed 1 or more");
  }
  const bool on_cpu = options.device == "cpu";
  switch (options.impl) {
    case RunnerOptions::Impl::kTorch:
      return NewLibTorchRunner(options);
    case RunnerOptions::Impl::kCpuKernels:
      if (!on_cpu) {
        return absl::InvalidArgumentError("device is \"" + options.device + "\", allowed with the CPU kernels: cpu");
      }
      return NewCpuKernelsRunner(options);
    case RunnerOptions::Impl::kAuto:
      break;
  }
  // The kernels are deterministic always, which a caller who does not ask for it gets for free.
  return on_cpu ? NewCpuKernelsRunner(options) : NewLibTorchRunner(options);
}

}  // namespace smt
