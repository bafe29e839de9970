#include "absl/strings/str_cat.h"
#include "model/base/status_macros.h"
#include "model/device.h"
#include "model/state_layout.h"
#include "server/engine/cuda_executor.h"
#include "server/engine/torch_executor.h"

namespace smt {

absl::StatusOr<std::unique_ptr<Executor>> NewTorchExecutor(const RunnerOptions& options, std::string* note) {
  if (note != nullptr) note->clear();
  if (options.slots < 1) {
    return absl::InvalidArgumentError(absl::StrCat("slots is ", options.slots, "; allowed: >= 1"));
  }
  RunnerOptions resolved = options;
  if (resolved.dtype == "auto") resolved.dtype = "float32";
  if (resolved.dtype != "float32" && resolved.dtype != "bfloat16" && resolved.dtype != "float16") {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype is \"", resolved.dtype, "\"; allowed: auto, float32, bfloat16, float16"));
  }
  ASSIGN_OR_RETURN(const StrideHybridConfig config, StrideHybridConfig::Load(options.model_dir));
  ASSIGN_OR_RETURN(const Device device, ResolveServingDevice(options.device));
  if (note != nullptr) *note = device.note;
  resolved.device = device.name;
  if (device.kernels) {
    resolved.impl = RunnerOptions::Impl::kCudaKernels;
  } else if (device.name == "cpu") {
    // Before anything is loaded: the states alone must fit.
    const SlotCapacity states = MachineCapacity(static_cast<int64_t>(StateLayout(config).bytes()));
    ASSIGN_OR_RETURN(resolved.slots, SlotsThatFit(states, options.slots, options.fewer_slots));
  } else if (options.fewer_slots) {
    return absl::InvalidArgumentError(
        "slots must be a number for LibTorch's operators on a GPU: only our own kernels (libsmt_cuda.so) know how many "
        "fit");
  }
  ASSIGN_OR_RETURN(std::unique_ptr<SlotRunner> runner, NewSlotRunner(resolved));
  if (device.name == "cpu") {
    ASSIGN_OR_RETURN(resolved.slots, SlotsThatFit(runner->capacity(), runner->slots(), options.fewer_slots));
    if (resolved.slots < runner->slots()) {
      runner = nullptr;
      ASSIGN_OR_RETURN(runner, NewSlotRunner(resolved));
    }
  }
  if (runner->async() != nullptr) return NewCudaExecutor(std::move(runner), device.description, resolved.dtype);
  return NewTorchExecutor(std::move(runner), device.description, resolved.dtype);
}

}  // namespace smt
