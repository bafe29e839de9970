// What a window's rows go through besides matrix products: embedding, norms, attention. Bodies shared by the kernels of
// window.cu and the one of window_pass.cu.
#pragma once

#include <cuda_bf16.h>

#include "model/cuda/kernels.h"
#include "model/cuda/tensor_core.cuh"

namespace smt::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }

// The same order in every lane, whatever the block: a butterfly.
__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}
__device__ __forceinline__ float WarpMax(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

// 2^x to 2 ulp; 0 for -infinity.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

struct alignas(16) Four {
  float at[4];
};

// x[i, i + 4), zero from d on. Rows begin on 16 bytes.
__device__ __forceinline__ Four LoadFour(const float* x, int i, int d) {
  if (i + 4 <= d) {
    const float4 v = *reinterpret_cast<const float4*>(x + i);
    return {{v.x, v.y, v.z, v.w}};
  }
  Four four = {};
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    if (i + u < d) four.at[u] = x[i + u];
  }
  return four;
}

__device__ __forceinline__ void StoreFour(float* y, const Four& value) { *reinterpret_cast<Four*>(y) = value; }
__device__ __forceinline__ void StoreFour(__nv_bfloat16* y, const Four& value) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(value.at[0], value.at[1]);
  const __nv_bfloat162 high = __floats2bfloat162_rn(value.at[2], value.at[3]);
  *reinterpret_cast<uint2*>(y) = {*reinterpret_cast<const uint32_t*>(&low), *reinterpret_cast<const uint32_t*>(&high)};
}

// y[i, i + 4), as far as d.
template <typename T>
__device__ __forceinline__ void StoreFour(T* y, int i, int d, const Four& value) {
  if (i + 4 <= d) return StoreFour(y + i, value);
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    if (i + u < d) y[i + u] = static_cast<T>(value.at[u]);
  }
}

inline constexpr int kNormThreads = 256;

// sum[r] = the sum over the block of own[r], the same in every thread.
template <int kRows>
__device__ __forceinline__ void BlockSums(const float (&own)[kRows], int rows, float (*of_warp)[8],
                                          float (&sum)[kRows]) {
  constexpr int kWarps = kNormThreads / kWarp;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    const float of_own_warp = WarpSum(own[r]);
    if (threadIdx.x % kWarp == 0) of_warp[r][threadIdx.x / kWarp] = of_own_warp;
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    sum[r] = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum[r] += of_warp[r][i];
  }
}

// Spelled out: the compiler must not fuse this in one kernel and not in another.
__device__ __forceinline__ Four Normalized(const Four& v, float mean, float scale, const Four& w, const Four& b) {
  Four out;
#pragma unroll
  for (int u = 0; u < 4; ++u) out.at[u] = __fmaf_rn(__fmul_rn(v.at[u] - mean, scale), w.at[u], b.at[u]);
  return out;
}
__device__ __forceinline__ float NormScale(float squares, int d, float epsilon) {
  return 1.0f / sqrtf(squares / static_cast<float>(d) + epsilon);
}

// NormalizeRows of one row of any length. Kept out of the kernels' way.
template <typename T>
__device__ __noinline__ void NormalizeAnyRow(const float* x, int d, const float* weight, const float* bias,
                                             float epsilon, T* y) {
  __shared__ float of_warp[2][1][8];
  constexpr int kStep = 4 * kNormThreads;
  const int first = 4 * threadIdx.x;
  float own[1] = {0}, mean[1] = {0}, squares[1];
  if (bias != nullptr) {
#pragma unroll 1
    for (int i = first; i < d; i += kStep) {
      const Four v = LoadFour(x, i, d);
#pragma unroll
      for (int u = 0; u < 4; ++u) own[0] += v.at[u];  // zeros from d on
    }
    BlockSums(own, 1, of_warp[0], mean);
    mean[0] /= static_cast<float>(d);
  }
  own[0] = 0;
#pragma unroll 1
  for (int i = first; i < d; i += kStep) {
    const Four v = LoadFour(x, i, d);
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      if (i + u < d) own[0] = __fmaf_rn(v.at[u] - mean[0], v.at[u] - mean[0], own[0]);
    }
  }
  BlockSums(own, 1, of_warp[1], squares);
  const float scale = NormScale(squares[0], d, epsilon);
#pragma unroll 1
  for (int i = first; i < d; i += kStep) {
    const Four b = bias != nullptr ? LoadFour(bias, i, d) : Four{};
    StoreFour(y, i, d, Normalized(LoadFour(x, i, d), mean[0], scale, LoadFour(weight, i, d), b));
  }
}

// LayerNorm of up to kRows rows, RMSNorm where bias is null, by a block of kNormThreads: y(r)[:d] from x(r)[:d]. A
// thread takes four neighbours of every 4 kNormThreads. The caller synchronizes before the next one.
template <int kRows, typename X, typename Y>
__device__ __forceinline__ void NormalizeRows(int rows, int d, const float* weight, const float* bias, float epsilon,
                                              X x, Y y) {
  __shared__ float of_warp[2][kRows][8];
  if (d % 4 != 0 || d > 4 * kNormThreads) {
#pragma unroll 1
    for (int r = 0; r < rows; ++r) {
      NormalizeAnyRow(x(r), d, weight, bias, epsilon, y(r));
      __syncthreads();
    }
    return;
  }
  // Each row is read once; where this thread has no columns, from a place that is there.
  const int first = 4 * threadIdx.x, at = first < d ? first : 0;
  const Four w = *reinterpret_cast<const Four*>(weight + at);
  const Four b = bias != nullptr ? *reinterpret_cast<const Four*>(bias + at) : Four{};
  Four held[kRows];
  float own[kRows], mean[kRows], squares[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) held[r] = *reinterpret_cast<const Four*>(x(r < rows ? r : 0) + at);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    mean[r] = own[r] = 0;
    if (first < d) {
#pragma unroll
      for (int u = 0; u < 4; ++u) own[r] += held[r].at[u];
    }
  }
  if (bias != nullptr) {
    BlockSums(own, rows, of_warp[0], mean);
#pragma unroll
    for (int r = 0; r < kRows; ++r) mean[r] /= static_cast<float>(d);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    own[r] = 0;
    if (first < d) {
#pragma unroll
      for (int u = 0; u < 4; ++u) own[r] = __fmaf_rn(held[r].at[u] - mean[r], held[r].at[u] - mean[r], own[r]);
    }
  }
  BlockSums(own, rows, of_warp[1], squares);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r < rows && first < d) {
      StoreFour(y(r) + first, Normalized(held[r], mean[r], NormScale(squares[r], d, epsilon), w, b));
    }
  }
}

// By the block: x[:d] = (memory vector or embedding) + position. `round`: the memory vector to bfloat16 first.
template <typename Embedding>
__device__ __forceinline__ void EmbedRow(const Row& row, const SlotMemory& slots, const Embedding* embeddings,
                                         int64_t ld_embeddings, const float* positions, int d, bool round, float* x) {
  const float* memory = reinterpret_cast<const float*>(slots.base + row.slot * slots.stride + slots.memory_at);
  for (int i = threadIdx.x; i < d; i += blockDim.x) {
    float value = row.source >= 0 ? ToFloat(embeddings[row.source * ld_embeddings + i])
                                  : memory[static_cast<int64_t>(-1 - row.source) * d + i];
    if (round) value = __bfloat162float(__float2bfloat16(value));
    x[i] = value + positions[static_cast<int64_t>(row.column) * d + i];
  }
}

// Attention of a group's rows in one head on the tensor cores, all keys at once: the scores of 16 rows are one warp's
// registers (after Dao et al., "FlashAttention", 2022, without its loop over keys: there are at most kMaxKeys). A row's
// bits do not depend on the rows beside it: masked keys weigh zero.
template <int kWidth>
struct GroupAttention {
  static constexpr int kStride = kWidth + 8;  // of keys and values in shared memory; no bank conflicts
  static constexpr int kShared = 2 * kMaxGroupKeys * kStride * 2;
  static constexpr int kKeyBlocks = kMaxGroupKeys / 16, kSteps = kWidth / 16;
};

struct GroupAttentionCall {
  Cache cache;
  int layer, n;
  const __nv_bfloat16* qkv;  // [rows, ld] of the pass
  int64_t ld;
  float scale;       // of the scores, which are powers of two
  bool keep_tokens;  // in the cache; memory's keys and values always
  bool only_last;    // only the group's last row; it is row `group` of `out`
  __nv_bfloat16* out;
  int64_t ld_out;
};

// By the whole block of kThreads. `shared`: kShared bytes, 16-byte aligned; free again after the block's next barrier.
template <int kWidth, int kThreads>
__device__ __forceinline__ void AttendGroup(const GroupAttentionCall& call, const Group& group, int group_index,
                                            int head, std::byte* shared) {
  using A = GroupAttention<kWidth>;
  const Cache& cache = call.cache;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  auto* keys = reinterpret_cast<__nv_bfloat16*>(shared);
  auto* values = keys + kMaxGroupKeys * A::kStride;
  auto* cached = static_cast<__nv_bfloat16*>(cache.base) + group.slot * cache.slot_stride +
                 call.layer * cache.layer_stride + head * kWidth;
  const int64_t to_values = static_cast<int64_t>(cache.window) * cache.d;
  const int seen = group.first_key + group.rows;
  // All loads at once, from a place that is there.
  constexpr int kOfKey = kWidth / 8, kAll = kMaxGroupKeys * kOfKey, kEach = (kAll + kThreads - 1) / kThreads;
  uint4 k[kEach], v[kEach];
  const auto in_cache = [&](int key, int c) {
    const int column = key < group.memory_valid ? key : call.n + key - group.memory_valid;
    return cached + static_cast<int64_t>(column) * cache.d + c;
  };
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = threadIdx.x + i * kThreads, key = min(at / kOfKey, seen - 1), c = at % kOfKey * 8;
    const bool own = key >= group.first_key;
    const __nv_bfloat16* from =
        own ? call.qkv + (group.first_row + key - group.first_key) * call.ld + cache.d + head * kWidth + c
            : in_cache(key, c);
    k[i] = *reinterpret_cast<const uint4*>(from);
    v[i] = *reinterpret_cast<const uint4*>(from + (own ? cache.d : to_values));
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = threadIdx.x + i * kThreads, key = at / kOfKey, c = at % kOfKey * 8;
    if (at >= kAll) continue;
    if (key >= seen) {
      k[i] = v[i] = {0, 0, 0, 0};
    } else if (key >= group.first_key && (call.keep_tokens || key < group.memory_valid)) {
      *reinterpret_cast<uint4*>(in_cache(key, c)) = k[i];
      *reinterpret_cast<uint4*>(in_cache(key, c) + to_values) = v[i];
    }
    *reinterpret_cast<uint4*>(keys + key * A::kStride + c) = k[i];
    *reinterpret_cast<uint4*>(values + key * A::kStride + c) = v[i];
  }
  __syncthreads();
  const int tile = call.only_last ? (group.rows - 1) / 16 : warp;
  if (tile * 16 >= group.rows || (call.only_last && warp != 0)) return;

  const int row_low = tile * 16 + g, row_high = row_low + 8;
  uint32_t query[A::kSteps][4];
  {
    const __nv_bfloat16* q = call.qkv + head * kWidth + 2 * t;
    const __nv_bfloat16* low = q + (group.first_row + min(row_low, group.rows - 1)) * call.ld;
    const __nv_bfloat16* high = q + (group.first_row + min(row_high, group.rows - 1)) * call.ld;
#pragma unroll
    for (int s = 0; s < A::kSteps; ++s) {
      query[s][0] = Pair(low + 16 * s);
      query[s][1] = Pair(high + 16 * s);
      query[s][2] = Pair(low + 16 * s + 8);
      query[s][3] = Pair(high + 16 * s + 8);
    }
  }
  const int blocks = (group.first_key + min(tile * 16 + 15, group.rows - 1)) / 16 + 1;
  // scores[j]: keys 8 j + 2 t and the next, of the low row, then of the high one.
  float scores[2 * A::kKeyBlocks][4];
#pragma unroll
  for (int b = 0; b < A::kKeyBlocks; ++b) {
#pragma unroll
    for (int e = 0; e < 4; ++e) scores[2 * b][e] = scores[2 * b + 1][e] = 0;
    if (b < blocks) {
      const __nv_bfloat16* at = keys + (16 * b + lane / 16 * 8 + lane % 8) * A::kStride + lane / 8 % 2 * 8;
#pragma unroll
      for (int s = 0; s < A::kSteps; ++s) {
        uint32_t k[4];
        LoadMatrices(k, at + 16 * s);
        MultiplyAdd(scores[2 * b], query[s], k[0], k[1]);
        MultiplyAdd(scores[2 * b + 1], query[s], k[2], k[3]);
      }
    }
  }
  const int last_low = group.first_key + row_low, last_high = group.first_key + row_high;  // keys they see
  float largest_low = -INFINITY, largest_high = -INFINITY;
#pragma unroll
  for (int j = 0; j < 2 * A::kKeyBlocks; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int key = 8 * j + 2 * t + e;
      scores[j][e] = key <= last_low ? __fmul_rn(scores[j][e], call.scale) : -INFINITY;
      scores[j][2 + e] = key <= last_high ? __fmul_rn(scores[j][2 + e], call.scale) : -INFINITY;
      largest_low = fmaxf(largest_low, scores[j][e]);
      largest_high = fmaxf(largest_high, scores[j][2 + e]);
    }
  }
#pragma unroll
  for (int offset = 1; offset <= 2; offset *= 2) {
    largest_low = fmaxf(largest_low, __shfl_xor_sync(kAllLanes, largest_low, offset));
    largest_high = fmaxf(largest_high, __shfl_xor_sync(kAllLanes, largest_high, offset));
  }
  // Weights as bfloat16, and their sum of what they are then.
  float sum_low = 0, sum_high = 0;
  uint32_t weights[2 * A::kKeyBlocks][2];
#pragma unroll
  for (int j = 0; j < 2 * A::kKeyBlocks; ++j) {
    const __nv_bfloat162 low =
        __floats2bfloat162_rn(Exp2(scores[j][0] - largest_low), Exp2(scores[j][1] - largest_low));
    const __nv_bfloat162 high =
        __floats2bfloat162_rn(Exp2(scores[j][2] - largest_high), Exp2(scores[j][3] - largest_high));
    sum_low += __low2float(low);
    sum_low += __high2float(low);
    sum_high += __low2float(high);
    sum_high += __high2float(high);
    weights[j][0] = *reinterpret_cast<const uint32_t*>(&low);
    weights[j][1] = *reinterpret_cast<const uint32_t*>(&high);
  }
#pragma unroll
  for (int offset = 1; offset <= 2; offset *= 2) {
    sum_low += __shfl_xor_sync(kAllLanes, sum_low, offset);
    sum_high += __shfl_xor_sync(kAllLanes, sum_high, offset);
  }
  float sums[kWidth / 8][4] = {};
#pragma unroll
  for (int b = 0; b < A::kKeyBlocks; ++b) {
    if (b < blocks) {
      const uint32_t a[4] = {weights[2 * b][0], weights[2 * b][1], weights[2 * b + 1][0], weights[2 * b + 1][1]};
      const __nv_bfloat16* at = values + (16 * b + lane % 16) * A::kStride + lane / 16 * 8;
#pragma unroll
      for (int c = 0; c < kWidth / 8; c += 2) {
        uint32_t v[4];
        LoadMatricesTransposed(v, at + 8 * c);
        MultiplyAdd(sums[c], a, v[0], v[1]);
        MultiplyAdd(sums[c + 1], a, v[2], v[3]);
      }
    }
  }
  const auto store = [&](int row, float sum, int e) {
    const float scale = 1.0f / sum;
    if (row >= group.rows || (call.only_last && row != group.rows - 1)) return;
    const int64_t to = call.only_last ? group_index : group.first_row + row;
    __nv_bfloat16* out = call.out + to * call.ld_out + head * kWidth + 2 * t;
#pragma unroll
    for (int c = 0; c < kWidth / 8; ++c) {
      *reinterpret_cast<__nv_bfloat162*>(out + 8 * c) =
          __floats2bfloat162_rn(sums[c][e] * scale, sums[c][e + 1] * scale);
    }
  };
  store(row_low, sum_low, 0);
  store(row_high, sum_high, 2);
}

}  // namespace smt::cuda
