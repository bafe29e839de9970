// Which device a model runs on: what --device says, and what it comes to on this machine. No LibTorch header.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace smt {

struct DeviceChoice {
  enum class Kind { kAuto, kCpu, kCuda };
  Kind kind = Kind::kAuto;
  int index = 0;  // of the GPU
};

// "auto", "cpu", "cuda" (device 0) or "cuda:N". INVALID_ARGUMENT names the value and what is allowed.
absl::StatusOr<DeviceChoice> ParseDevice(std::string_view text);

struct Device {
  std::string name;         // "cpu" or "cuda:N", as LibTorch writes it
  std::string description;  // "cpu", "cuda:0 NVIDIA H200"
  std::string note;         // why "auto" came to the CPU; empty otherwise
  bool kernels = false;     // our own CUDA kernels run there (libsmt_cuda.so)
};

// For serving: our own CUDA kernels where their module and a device are found, else as ResolveDevice. Does not ask
// LibTorch about CUDA where the kernels do.
absl::StatusOr<Device> ResolveServingDevice(std::string_view text);

// Parses, and for "auto" and "cuda" loads the CUDA module (model/cuda_plugin.h), so call it before anything else asks
// LibTorch about CUDA. "auto" takes the CPU where that fails; "cuda" gives its error. "cpu" loads nothing.
absl::StatusOr<Device> ResolveDevice(std::string_view text);

}  // namespace smt
