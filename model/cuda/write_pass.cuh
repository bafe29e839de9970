// Attention pooling as a phase of a kernel whose blocks share it; the kernels of few writes have it in common.
#pragma once

#include "model/cuda/few_rows.cuh"
#include "model/cuda/kernels.h"
#include "model/cuda/memory.cuh"

namespace smt::cuda {

// Calls with(write, channel) for all channels of all writes, a channel a thread; all threads of a block for the same
// write. Channels from d on come, too.
template <typename With>
__device__ __forceinline__ void ForChannels(const Pooling& p, With with) {
  const int parts = (p.d + kFewRowsThreads - 1) / kFewRowsThreads;
  for (int task = blockIdx.x; task < p.count * parts; task += gridDim.x) {
    with(task / parts, task % parts * kFewRowsThreads + static_cast<int>(threadIdx.x));
  }
}

// The means of the windows' rows, into pass.normed.
template <typename Embedding>
__device__ __forceinline__ void MeansOfWindows(const WritePassCall& pass, const Pooling& p) {
  ForChannels(p, [&](int write, int i) {
    if (i < p.d) pass.normed[write * pass.ld + i] = MeanOfRows(WindowRows<Embedding>(p, p.writes[write]), i);
  });
}

// The products of the windows' rows with pass.key_rows, into pass.scores.
template <typename Embedding>
__device__ __forceinline__ void ScoresOfWindows(const WritePassCall& pass, const Pooling& p) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, window = p.n + p.m;
  const float scale = 1.0f / sqrtf(static_cast<float>(p.d));
  for (int task = warp * gridDim.x + blockIdx.x; task < p.count * window; task += kChunks * gridDim.x) {
    const int write = task / window, row = task % window;
    const WindowRows<Embedding> rows(p, p.writes[write]);
    if (row >= rows.count) continue;
    const float score = PoolScore(rows, row, pass.key_rows + write * pass.ld, scale);
    if (lane == 0) pass.scores[write * window + row] = score;
  }
}

// Calls store(write, channel, sum) for the windows' rows weighted by the softmax of pass.scores, which goes into
// pass.pool_weights. `weights`: [n + m] in shared memory.
template <typename Embedding, typename Store>
__device__ __forceinline__ void PoolWindows(const WritePassCall& pass, const Pooling& p, float* weights, Store store) {
  const int window = p.n + p.m;
  ForChannels(p, [&](int write, int i) {
    const WindowRows<Embedding> rows(p, p.writes[write]);
    if (threadIdx.x < kWarp) PoolSoftmax(pass.scores + write * window, rows.count, window, weights);
    __syncthreads();
    if (i < p.d) store(write, i, WeightedRows(rows, weights, i));
    if (i < kFewRowsThreads) {  // the row's first part
      for (int row = i; row < window; row += kFewRowsThreads) pass.pool_weights[write * window + row] = weights[row];
    }
    __syncthreads();
  });
}

}  // namespace smt::cuda
