// Maps by which the tensor memory accelerator of compute capability 9.0 copies boxes of matrices to and from shared
// memory, with 128-byte swizzle.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "model/cuda/epilogue.cuh"
#include "model/cuda/kernels.h"

namespace smt::cuda {

inline constexpr int kSlab = 64;  // columns of a box of 16-bit numbers: 128 bytes, a row of the swizzle
inline constexpr int kSlabRowBytes = 2 * kSlab;

// Of planes [rows, k] with rows `ld` elements apart, for boxes [planes][box_rows][kSlab]. What a box has past the last
// row or column is zeros. E: __nv_bfloat16 or __half.
template <typename E>
CUtensorMap MapOf(const E* data, int k, int rows, int64_t ld, int planes, int64_t plane, int box_rows);

// Of a product's outputs [rows, n], for boxes of 64 rows and 128 bytes.
template <typename T>
CUtensorMap MapOfOutputs(const Epilogue<T>& epilogue);

}  // namespace smt::cuda
