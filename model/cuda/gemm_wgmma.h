// Matrix products of many rows on Hopper's warpgroup instructions, with the sums of gemm.cu to the bit.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "model/cuda/epilogue.cuh"
#include "model/cuda/kernels.h"

namespace smt::cuda {

// Rows x outputs that a block makes at a time. Split products have tiles of 64 x 64 alone.
enum class WgmmaTile { kAuto, k64x64, k64x128, k128x128, k128x192 };

// Whether the device is of compute capability 9.0, for which alone these are compiled.
bool HasWgmma();

// x is [rows, ldx], 16-byte aligned, ldx a multiple of 8. Split rows and weights have two planes; the row's low one is
// x_plane elements after the high one, x_plane a multiple of 8.
void LinearWgmma(const Linear& linear, const __nv_bfloat16* x, int64_t x_plane, int64_t ldx,
                 const Epilogue<__nv_bfloat16>& epilogue, cudaStream_t stream, WgmmaTile tile = WgmmaTile::kAuto);
void LinearWgmma(const Linear& linear, const __nv_bfloat16* x, int64_t x_plane, int64_t ldx,
                 const Epilogue<float>& epilogue, cudaStream_t stream, WgmmaTile tile = WgmmaTile::kAuto);

}  // namespace smt::cuda
