// Makes SlotRunners from a model folder; free of LibTorch headers, so that the engine's side can include it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/slot_runner.h"

namespace smt {

struct RunnerOptions {
  enum class Impl {
    kAuto,         // kCpuKernels where it can serve the options (cpu, float32), else kTorch
    kTorch,        // TorchSlotRunner: LibTorch operators
    kCpuKernels,   // CpuSlotRunner: our own batch-invariant float32 kernels
    kCudaKernels,  // CudaSlotRunner: our own batch-invariant CUDA kernels, from libsmt_cuda.so
  };

  std::string model_dir;       // config.json, model.safetensors
  std::string device = "cpu";  // "cpu", "cuda", "cuda:N"; cuda needs the plugin to be loaded already
  // Of the window: "float32" | "bfloat16" | "float16" (kCudaKernels); the memory path is float32 always.
  std::string dtype = "float32";
  bool deterministic = true;  // a slot's numbers depend on its ids alone, bit for bit
  int32_t slots = 16;         // sessions that can be resident; >= 1
  bool fewer_slots = false;   // kCudaKernels: as many of `slots` as the device's memory holds, not an error
  std::optional<WindowPolicy> window_policy = std::nullopt;  // over the config's
  std::optional<PoolScope> pool_scope = std::nullopt;        // over the config's: same weights, but other states
  Impl impl = Impl::kAuto;
};

// INVALID_ARGUMENT names the option, its value and what is allowed; NOT_FOUND a missing file; DATA_LOSS or
// INVALID_ARGUMENT a checkpoint that does not fit the config; UNAVAILABLE a device that is not there;
// RESOURCE_EXHAUSTED one whose memory does not hold the slots.
absl::StatusOr<std::unique_ptr<SlotRunner>> NewSlotRunner(const RunnerOptions& options);

}  // namespace smt
