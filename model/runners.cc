#include "model/runners.h"

#include <utility>

#include "model/base/status_macros.h"
#include "model/checkpoint.h"
#include "model/cpu_slot_runner.h"
#include "model/cuda/abi.h"
#include "model/cuda_plugin.h"
#include "model/device.h"
#include "model/torch_slot_runner.h"

namespace smt {
namespace {

// What the runners on our own kernels are made of.
struct Parts {
  StrideHybridConfig config;
  WeightSource source;
};

absl::StatusOr<Parts> OpenParts(const RunnerOptions& options) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint, Checkpoint::Open(options.model_dir));
  Parts parts;
  parts.config = checkpoint->config();
  parts.config.window_policy = options.window_policy.value_or(parts.config.window_policy);
  parts.config.pool_scope = options.pool_scope.value_or(parts.config.pool_scope);
  parts.source = [checkpoint](const std::string& name, const std::vector<int64_t>& shape) {
    return checkpoint->Float32(name, shape);
  };
  return parts;
}

absl::StatusOr<std::unique_ptr<SlotRunner>> NewCpuKernelsRunner(const RunnerOptions& options) {
  ASSIGN_OR_RETURN(const Parts parts, OpenParts(options));
  return NewCpuSlotRunner(parts.config, parts.source,
                          {.slots = options.slots, .bfloat16 = options.dtype == "bfloat16"});
}

absl::StatusOr<std::unique_ptr<SlotRunner>> NewCudaKernelsRunner(const RunnerOptions& options) {
  ASSIGN_OR_RETURN(const DeviceChoice device, ParseDevice(options.device));
  ASSIGN_OR_RETURN(const CudaModule* const module, LoadCudaModule());
  RETURN_IF_ERROR(module->open(device.index).status());
  ASSIGN_OR_RETURN(const Parts parts, OpenParts(options));
  return module->new_runner(parts.config, parts.source,
                            {.index = device.index,
                             .slots = options.slots,
                             .dtype = options.dtype == "bfloat16"  ? WindowDType::kBfloat16
                                      : options.dtype == "float16" ? WindowDType::kFloat16
                                                                   : WindowDType::kFloat32,
                             .fewer_slots = options.fewer_slots});
}

absl::StatusOr<std::unique_ptr<SlotRunner>> NewLibTorchRunner(const RunnerOptions& options) {
  LoadOptions load;
  load.device = options.device;
  load.dtype = options.dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
  load.window_policy = options.window_policy;
  load.pool_scope = options.pool_scope;
  ASSIGN_OR_RETURN(StrideHybridModel model, LoadStrideHybridModel(options.model_dir, load));
  return NewTorchSlotRunner(std::move(model), {.slots = options.slots, .deterministic = options.deterministic});
}

}  // namespace

absl::StatusOr<std::unique_ptr<SlotRunner>> NewSlotRunner(const RunnerOptions& options) {
  const bool half = options.dtype == "float16";
  if (options.dtype != "float32" && options.dtype != "bfloat16" && !half) {
    return absl::InvalidArgumentError("dtype is \"" + options.dtype + "\", allowed float32, bfloat16 or float16");
  }
  if (half && options.impl != RunnerOptions::Impl::kCudaKernels) {
    return absl::InvalidArgumentError(
        "dtype is \"float16\", allowed float32 or bfloat16: only our own kernels on a GPU (libsmt_cuda.so) have it");
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
    case RunnerOptions::Impl::kCudaKernels:
      if (on_cpu) {
        return absl::InvalidArgumentError("device is \"cpu\", allowed with the CUDA kernels: cuda, cuda:N");
      }
      return NewCudaKernelsRunner(options);
    case RunnerOptions::Impl::kAuto:
      break;
  }
  // The kernels are deterministic always, which a caller who does not ask for it gets for free.
  return on_cpu ? NewCpuKernelsRunner(options) : NewLibTorchRunner(options);
}

}  // namespace smt
