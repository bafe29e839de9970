// Matrix products of many rows on Hopper's warpgroup instructions, with the sums of gemm.cu to the bit.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "model/cuda/epilogue.cuh"
#include "model/cuda/kernels.h"

namespace smt::cuda {

// Whether the device is of compute capability 9.0, for which alone these are compiled.
bool HasWgmma();

// x is [rows, ldx], 16-byte aligned, ldx a multiple of 8. Split rows and weights have two planes; the row's low one is
// x_plane elements after the high one, x_plane a multiple of 8. `spare` multiprocessors are left to others; tickets: of
// LinearCall.
void LinearWgmma(const Linear& linear, const __nv_bfloat16* x, int64_t x_plane, int64_t ldx,
                 const Epilogue<__nv_bfloat16>& epilogue, int spare, uint32_t* tickets, cudaStream_t stream);
void LinearWgmma(const Linear& linear, const __half* x, int64_t x_plane, int64_t ldx, const Epilogue<__half>& epilogue,
                 int spare, uint32_t* tickets, cudaStream_t stream);
void LinearWgmma(const Linear& linear, const __nv_bfloat16* x, int64_t x_plane, int64_t ldx,
                 const Epilogue<float>& epilogue, int spare, uint32_t* tickets, cudaStream_t stream);

}  // namespace smt::cuda
