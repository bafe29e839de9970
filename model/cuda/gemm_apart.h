// Matrix products of few tiles on Hopper, whose pieces of the inner dimension go to several blocks. Their sums are left
// for the reader to add up (Addends): the bits are those of the other products (kernels.h).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "model/cuda/kernels.h"

namespace smt::cuda {

// Blocks that share a tile of these products: 2, 4 or 8, or 0 where whole tiles keep the device busy, `spare`
// multiprocessors less.
int BlocksApart(const Linear& linear, int rows, int spare);
// Rows as for LinearWgmma. Leaves as many addends as it returns in `to`, [addends][rows, ld], `stride` elements apart.
// ld: even, and at least n.
int LinearApart(const Linear& linear, const void* x, int64_t x_plane, int64_t ldx, int rows, int blocks, float* to,
                int64_t stride, int64_t ld, cudaStream_t stream);

}  // namespace smt::cuda
