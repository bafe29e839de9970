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

// In clusters of `cluster` blocks.
template <typename... Parameters, typename... Arguments>
void LaunchChainedClusters(void (*kernel)(Parameters...), unsigned cluster, dim3 grid, dim3 block, size_t shared,
                           cudaStream_t stream, const char* what, Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (CanChain()) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {cluster, 1, 1};
  }
  CheckCuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), what);
}

template <typename... Parameters, typename... Arguments>
void LaunchChained(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                   const char* what, Arguments... arguments) {
  LaunchChainedClusters(kernel, 1, grid, block, shared, stream, what, arguments...);
}

}  // namespace smt::cuda
