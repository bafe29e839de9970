// Loads libsmt_torch_cuda.so, the module that puts LibTorch's operators on NVIDIA GPUs. No LibTorch header here.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace smt {

// Loads the module from the program's folder, or its ../lib, once; then checks device `index` (>= 0) and returns its
// name. Must come before anything asks LibTorch about CUDA, which remembers the answer. UNAVAILABLE says what is
// missing: the module (a build without CUDA), LibTorch's CUDA libraries, a driver, a new enough driver, a device;
// INVALID_ARGUMENT: no device of that index; FAILED_PRECONDITION: a module of another version. Thread-safe.
absl::StatusOr<std::string> LoadTorchCudaPlugin(int index);

}  // namespace smt
