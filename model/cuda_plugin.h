// Loads the two modules for NVIDIA GPUs: libsmt_cuda.so, the model on our own kernels, and libsmt_torch_cuda.so, which
// puts LibTorch's operators there. No LibTorch or CUDA header here.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace smt {

struct CudaModule;  // model/cuda/abi.h

// Loads libsmt_cuda.so from the program's folder, or its ../lib, once. UNAVAILABLE: it is not there (a build without
// CUDA) or cannot be loaded; FAILED_PRECONDITION: a module of another version. Says nothing about devices. Thread-safe.
absl::StatusOr<const CudaModule*> LoadCudaModule();

// Loads the module from the program's folder, or its ../lib, once; then checks device `index` (>= 0) and returns its
// name. Must come before anything asks LibTorch about CUDA, which remembers the answer. UNAVAILABLE says what is
// missing: the module (a build without CUDA), LibTorch's CUDA libraries, a driver, a new enough driver, a device;
// INVALID_ARGUMENT: no device of that index; FAILED_PRECONDITION: a module of another version. Thread-safe.
absl::StatusOr<std::string> LoadTorchCudaPlugin(int index);

}  // namespace smt
