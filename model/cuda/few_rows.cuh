// Products of few rows: kChunks warps of a block make 16 outputs of all rows, each warp one piece of the inner
// dimension. Sums have the order of kernels.h, whichever of these runs.
//
// Rows of eight, a tile, are the 8-column operand of the tensor cores, weights the 16-row one, so that a single row
// wastes only 7 of 8 columns.
#pragma once

#include "model/cuda/kernels.h"
#include "model/cuda/tensor_core.cuh"

namespace smt::cuda {

inline constexpr int kFewRowsThreads = kChunks * kWarp;

template <int kTiles>
using PieceSums = float[kChunks][kTiles][4][kWarp];

// What a thread ends up with of the block's tile: elements row, j < 8 kTiles, 16 in turn.
template <int kTiles>
struct OwnElements {
  static constexpr int kCount = (4 * kTiles + kChunks - 1) / kChunks;

  template <typename With>
  static __device__ __forceinline__ void ForEach(With with) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int at = warp + i * kChunks, tile = at / 4, e = at % 4;
      if (at < 4 * kTiles) with(i, at, tile * 8 + 2 * t + (e & 1), g + (e / 2) * 8);
    }
  }
};

// Adds up the pieces in order; store(i, row, j, sum), element i of the thread's OwnElements. All threads of the block;
// the caller synchronizes before `pieces` is used again.
template <int kTiles, typename Store>
__device__ __forceinline__ void AddPieces(PieceSums<kTiles>& pieces, const float (&sum)[kTiles][4], Store store) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) pieces[warp][tile][e][lane] = sum[tile][e];
  }
  __syncthreads();
  OwnElements<kTiles>::ForEach([&](int i, int at, int row, int j) {
    float total = 0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) total += pieces[c][at / 4][at % 4][lane];
    store(i, row, j, total);
  });
}

// sum = this warp's piece of 16 outputs from weight [16, k] and the rows of x [rows, ldx], straight from where they
// are. Rows past the last repeat it.
template <int kTiles, typename E>
__device__ __forceinline__ void SumPiece(const E* weight, int k, const E* x, int64_t ldx, int rows,
                                         float (&sum)[kTiles][4]) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int length = k / kChunks, first = static_cast<int>(threadIdx.x) / kWarp * length;
  const E* w = weight + static_cast<int64_t>(g) * k + first + 2 * t;
  const int64_t eight = static_cast<int64_t>(8) * k;
  const E* in[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) in[i] = x + min(i * 8 + g, rows - 1) * ldx + first + 2 * t;
#pragma unroll 6
  for (int i = 0; i < length; i += 16) {
    const uint32_t a[4] = {Pair(w + i), Pair(w + eight + i), Pair(w + i + 8), Pair(w + eight + i + 8)};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) MultiplyAdd<E>(sum[tile], a, Pair(in[tile] + i), Pair(in[tile] + i + 8));
  }
}

// One k16 step of split weights and split rows. Each sum waits for its last product: the tiles go between.
template <int kTiles>
__device__ __forceinline__ void MultiplyAddSplit(float (&sum)[kTiles][4], const uint32_t (&high)[4],
                                                 const uint32_t (&low)[4], const uint32_t (&x_high)[kTiles][2],
                                                 const uint32_t (&x_low)[kTiles][2]) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
    MultiplyAdd<__nv_bfloat16>(sum[tile], high, x_high[tile][0], x_high[tile][1]);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) MultiplyAdd<__nv_bfloat16>(sum[tile], high, x_low[tile][0], x_low[tile][1]);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
    MultiplyAdd<__nv_bfloat16>(sum[tile], low, x_high[tile][0], x_high[tile][1]);
}

// The same of split weights (the low plane `plane` elements after the high one) and float32 rows, split here.
template <int kTiles>
__device__ __forceinline__ void SumPieceSplit(const __nv_bfloat16* weight, int64_t plane, int k, const float* x,
                                              int64_t ldx, int rows, float (&sum)[kTiles][4]) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int length = k / kChunks, first = static_cast<int>(threadIdx.x) / kWarp * length;
  const __nv_bfloat16* w = weight + static_cast<int64_t>(g) * k + first + 2 * t;
  const int64_t eight = static_cast<int64_t>(8) * k;
  const float* in[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) in[i] = x + min(i * 8 + g, rows - 1) * ldx + first + 2 * t;
#pragma unroll(kTiles == 1 ? 6 : 3)
  for (int i = 0; i < length; i += 16) {
    const uint32_t high[4] = {Pair(w + i), Pair(w + eight + i), Pair(w + i + 8), Pair(w + eight + i + 8)};
    const __nv_bfloat16* v = w + plane + i;
    const uint32_t low[4] = {Pair(v), Pair(v + eight), Pair(v + 8), Pair(v + eight + 8)};
    uint32_t x_high[kTiles][2], x_low[kTiles][2];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      SplitPair(*reinterpret_cast<const float2*>(in[tile] + i), x_high[tile][0], x_low[tile][0]);
      SplitPair(*reinterpret_cast<const float2*>(in[tile] + i + 8), x_high[tile][1], x_low[tile][1]);
    }
    MultiplyAddSplit(sum, high, low, x_high, x_low);
  }
}

// The same of weights in shared memory, [16, ldw] a plane, ldw such that ldmatrix has no bank conflicts.
template <int kTiles, typename T>
__device__ __forceinline__ void SumPieceOfShared(const WeightOf<T>* weight, int ldw, int k, const T* x, int64_t ldx,
                                                 int rows, float (&sum)[kTiles][4]) {
  constexpr bool kSplit = sizeof(T) == 4;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int length = k / kChunks, first = static_cast<int>(threadIdx.x) / kWarp * length;
  const WeightOf<T>* w = weight + lane % 16 * ldw + lane / 16 * 8 + first;
  const T* in[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) in[i] = x + min(i * 8 + g, rows - 1) * ldx + first + 2 * t;
#pragma unroll(kTiles == 1 ? 6 : 3)
  for (int i = 0; i < length; i += 16) {
    uint32_t high[4];
    LoadMatrices(high, w + i);
    if constexpr (kSplit) {
      uint32_t low[4], x_high[kTiles][2], x_low[kTiles][2];
      LoadMatrices(low, w + 16 * ldw + i);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        SplitPair(*reinterpret_cast<const float2*>(in[tile] + i), x_high[tile][0], x_low[tile][0]);
        SplitPair(*reinterpret_cast<const float2*>(in[tile] + i + 8), x_high[tile][1], x_low[tile][1]);
      }
      MultiplyAddSplit(sum, high, low, x_high, x_low);
    } else {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        MultiplyAdd<T>(sum[tile], high, Pair(in[tile] + i), Pair(in[tile] + i + 8));
      }
    }
  }
}

// Rows in shared memory, split: two planes of [rows, ld].
struct SplitStage {
  __nv_bfloat16* high;
  int plane, ld;
  __device__ __forceinline__ void Put(int row, int column, float2 pair) const {  // column: even
    const int at = row * ld + column;
    SplitPair(pair, *reinterpret_cast<uint32_t*>(high + at), *reinterpret_cast<uint32_t*>(high + plane + at));
  }
};
inline constexpr int kSplitPad = 8;  // elements after such a row, against bank conflicts

// A warp's piece of a product of 16 split outputs and up to eight such rows, to the bits of SumPieceOfShared. The
// weights are in registers before the rows are there. kMost: steps of 16 of the piece.
template <int kMost>
struct HeldPiece {
  uint32_t high[kMost][4], low[kMost][4];

  // first: of the piece.
  template <int kSteps>
  __device__ __forceinline__ void Load(const __nv_bfloat16* weight, int ldw, int first) {
    static_assert(kSteps <= kMost);
    const int lane = threadIdx.x % kWarp;
    const __nv_bfloat16* w = weight + lane % 16 * ldw + lane / 16 * 8 + first;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      LoadMatrices(high[i], w + 16 * i);
      LoadMatrices(low[i], w + 16 * ldw + 16 * i);
    }
  }
  template <int kSteps>
  __device__ __forceinline__ void Multiply(const SplitStage& x, int rows, int first, float (&sum)[1][4]) const {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    const __nv_bfloat16* in = x.high + min(g, rows - 1) * x.ld + first + 2 * t;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const uint32_t x_high[1][2] = {{Pair(in + 16 * i), Pair(in + 16 * i + 8)}};
      const uint32_t x_low[1][2] = {{Pair(in + x.plane + 16 * i), Pair(in + x.plane + 16 * i + 8)}};
      MultiplyAddSplit(sum, high[i], low[i], x_high, x_low);
    }
  }
};

}  // namespace smt::cuda
