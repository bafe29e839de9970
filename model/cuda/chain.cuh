// Kernels of one stream whose launches overlap (programmatic dependent launch, compute capability 9.0): a kernel's
// blocks may be on the device before the kernel before it has ended, and wait there. Every kernel of a chain calls
// AwaitPrevious in all threads before it touches what others write, whatever the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "model/cuda/kernels.h"

namespace smt::cuda {

// What kernels launched before wrote can be read, and nothing reads any more what this one overwrites.
__device__ __forceinline__ void AwaitPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel's blocks may come where there is room.
__device__ __forceinline__ void LetNextBegin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

inline bool CanChain() { return ComputeMajor() >= 9; }

template <typename... Parameters, typename... Arguments>
void LaunchChained(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                   const char* what, Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute chained = {};
  chained.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  chained.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &chained;
  config.numAttrs = CanChain() ? 1 : 0;
  CheckCuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), what);
}

}  // namespace smt::cuda
