// CudaSlotRunner: the whole model on our own batch-invariant CUDA kernels, without LibTorch. Deterministic always: a
// slot's state and logits are a function of its ids alone, bit for bit, on GPUs of one compute capability.
//
// The window is float32, bfloat16 or float16 (sums and residuals float32), pooling and SSM are float32. State lives on
// the device in the layout of model/state_layout.h; positions and token ids live on the host.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/cpu/weight_source.h"
#include "model/slot_runner.h"

namespace smt {

enum class WindowDType : uint8_t { kFloat32, kBfloat16, kFloat16 };

struct CudaSlotRunnerOptions {
  int index = 0;       // of the device
  int32_t slots = 16;  // sessions that can be resident; >= 1
  // Of the window's weights, activations and cache; the memory path stays float32.
  WindowDType dtype = WindowDType::kFloat32;
  bool fewer_slots = false;  // as many of `slots` as the device's free memory holds, not an error
};

// INVALID_ARGUMENT names the option, its value and what is allowed; RESOURCE_EXHAUSTED has the arithmetic of what does
// not fit into the device's free memory; what `source` answers where a tensor is missing or has another shape;
// INTERNAL a device error.
absl::StatusOr<std::unique_ptr<SlotRunner>> NewCudaSlotRunner(const StrideHybridConfig& config,
                                                              const WeightSource& source,
                                                              const CudaSlotRunnerOptions& options);

}  // namespace smt
