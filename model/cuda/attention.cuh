// A window's attention: bodies shared by the kernels of window.cu and those of window_pass.cu and row_pass.cu.
#pragma once

#include <cstddef>

#include "model/cuda/exp2.cuh"
#include "model/cuda/kernels.h"
#include "model/cuda/tensor_core.cuh"
#include "model/cuda/window.cuh"

namespace smt::cuda {

// Attention of a group's rows in one head on the tensor cores, all keys at once: the scores of 16 rows are one warp's
// registers (after Dao et al., "FlashAttention", 2022, without its loop over keys: there are at most kMaxKeys). A row's
// bits do not depend on the rows beside it: masked keys weigh zero.
template <int kWidth>
struct GroupAttention {
  static constexpr int kStride = kWidth + 8;  // of keys and values in shared memory; no bank conflicts
  static constexpr int kKeyBlocks = kMaxGroupKeys / 16, kSteps = kWidth / 16;
  static constexpr int kTogether = kKeyBlocks * kWarp * 32;  // bytes, of GroupTile::AttendTogether
  static constexpr int kShared = 2 * kMaxGroupKeys * kStride * 2 + kTogether;
};

template <typename E>
struct GroupAttentionCall {
  Cache cache;
  int layer, n;
  const E* qkv;  // [rows, ld] of the pass
  int64_t ld;
  float scale;       // of the scores, which are powers of two
  bool keep_tokens;  // in the cache; memory's keys and values always
  bool only_last;    // only the group's last row; it is row `group` of `out`
  E* out;
  int64_t ld_out;
};

// Sixteen rows of a group in one head; by a warp, or by a block of at least kKeyBlocks warps that share it, to the same
// bits.
template <int kWidth, typename E>
struct GroupTile {
  using A = GroupAttention<kWidth>;
  const GroupAttentionCall<E>& call;
  const Group& group;
  int group_index, head;
  int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  int low, high;  // this lane's rows of the group
  int blocks;     // of 16 keys that any row of the tile sees

  __device__ __forceinline__ GroupTile(const GroupAttentionCall<E>& call, const Group& group, int group_index, int head,
                                       int tile)
      : call(call),
        group(group),
        group_index(group_index),
        head(head),
        low(tile * 16 + g),
        high(low + 8),
        blocks((group.first_key + min(tile * 16 + 15, group.rows - 1)) / 16 + 1) {}

  __device__ __forceinline__ void LoadQuery(uint32_t (&query)[A::kSteps][4]) const {
    const E* q = call.qkv + head * kWidth + 2 * t;
    const E* of_low = q + (group.first_row + min(low, group.rows - 1)) * call.ld;
    const E* of_high = q + (group.first_row + min(high, group.rows - 1)) * call.ld;
#pragma unroll
    for (int s = 0; s < A::kSteps; ++s) {
      query[s][0] = Pair(of_low + 16 * s);
      query[s][1] = Pair(of_high + 16 * s);
      query[s][2] = Pair(of_low + 16 * s + 8);
      query[s][3] = Pair(of_high + 16 * s + 8);
    }
  }
  // scores[j]: keys 16 b + 8 j + 2 t and the next, of the low row, then of the high one; -infinity where masked.
  // Raises `largest` of the two rows.
  __device__ __forceinline__ void Score(const E* keys, const uint32_t (&query)[A::kSteps][4], int b,
                                        float (&scores)[2][4], float (&largest)[2]) const {
#pragma unroll
    for (int e = 0; e < 4; ++e) scores[0][e] = scores[1][e] = 0;
    const E* at = keys + (16 * b + lane / 16 * 8 + lane % 8) * A::kStride + lane / 8 % 2 * 8;
#pragma unroll
    for (int s = 0; s < A::kSteps; ++s) {
      uint32_t k[4];
      LoadMatrices(k, at + 16 * s);
      MultiplyAdd<E>(scores[0], query[s], k[0], k[1]);
      MultiplyAdd<E>(scores[1], query[s], k[2], k[3]);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int key = 16 * b + 8 * j + 2 * t + e % 2, last = group.first_key + (e < 2 ? low : high);
        scores[j][e] = key <= last ? __fmul_rn(scores[j][e], call.scale) : -INFINITY;
        largest[e / 2] = fmaxf(largest[e / 2], scores[j][e]);
      }
    }
  }
  // Weights of 16 bits, the operand of their product with values; returns the sums of what they are then, of this
  // lane's keys in the block.
  __device__ __forceinline__ float2 Weigh(const float (&scores)[2][4], const float (&largest)[2],
                                          uint32_t (&weights)[4]) const {
    float2 sum = {0, 0};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      weights[2 * j] = PackPair<E>(Exp2(scores[j][0] - largest[0]), Exp2(scores[j][1] - largest[0]));
      weights[2 * j + 1] = PackPair<E>(Exp2(scores[j][2] - largest[1]), Exp2(scores[j][3] - largest[1]));
      const float2 of_low = UnpackPair<E>(weights[2 * j]), of_high = UnpackPair<E>(weights[2 * j + 1]);
      sum.x += of_low.x + of_low.y;
      sum.y += of_high.x + of_high.y;
    }
    return sum;
  }
  __device__ __forceinline__ void LoadValues(const E* values, int b, int c, uint32_t (&v)[4]) const {
    LoadMatricesTransposed(v, values + (16 * b + lane % 16) * A::kStride + lane / 16 * 8 + 8 * c);
  }
  // sums: of eight channels, and the next eight.
  static __device__ __forceinline__ void AddValues(const uint32_t (&v)[4], const uint32_t (&weights)[4],
                                                   float (&sums)[2][4]) {
    MultiplyAdd<E>(sums[0], weights, v[0], v[1]);
    MultiplyAdd<E>(sums[1], weights, v[2], v[3]);
  }
  // put(row of the group, channel, that and the next).
  template <typename Put>
  __device__ __forceinline__ void Store(const float (&sums)[2][4], float2 scale, int c, Put put) const {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      const int row = e == 0 ? low : high;
      if (row >= group.rows || (call.only_last && row != group.rows - 1)) continue;
      const float by = e == 0 ? scale.x : scale.y;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        put(row, 8 * (c + j) + 2 * t, PackPair<E>(sums[j][e] * by, sums[j][e + 1] * by));
      }
    }
  }
  __device__ __forceinline__ auto ToOut() const {
    return [this](int row, int channel, uint32_t pair) {
      const int64_t to = call.only_last ? group_index : group.first_row + row;
      *reinterpret_cast<uint32_t*>(call.out + to * call.ld_out + head * kWidth + channel) = pair;
    };
  }
  static __device__ __forceinline__ float MaxOfQuad(float x) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
    return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
  }
  static __device__ __forceinline__ float SumOfQuad(float x) {
    x += __shfl_xor_sync(kAllLanes, x, 1);
    return x + __shfl_xor_sync(kAllLanes, x, 2);
  }
  static __device__ __forceinline__ float2 Inverse(float2 sum) {
    return {1.0f / SumOfQuad(sum.x), 1.0f / SumOfQuad(sum.y)};
  }

  // By one warp.
  __device__ __forceinline__ void Attend(const E* keys, const E* values, const uint32_t (&query)[A::kSteps][4]) const {
    uint32_t weights[A::kKeyBlocks][4];
    float scores[A::kKeyBlocks][2][4], largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int b = 0; b < A::kKeyBlocks; ++b) {
      if (b < blocks) Score(keys, query, b, scores[b], largest);
    }
    largest[0] = MaxOfQuad(largest[0]);
    largest[1] = MaxOfQuad(largest[1]);
    float2 sum = {0, 0};
#pragma unroll
    for (int b = 0; b < A::kKeyBlocks; ++b) {
      if (b < blocks) {
        const float2 of_block = Weigh(scores[b], largest, weights[b]);
        sum.x += of_block.x;
        sum.y += of_block.y;
      }
    }
    const float2 scale = Inverse(sum);
#pragma unroll
    for (int c = 0; c < kWidth / 8; c += 2) {
      float sums[2][4] = {};
#pragma unroll
      for (int b = 0; b < A::kKeyBlocks; ++b) {
        if (b >= blocks) continue;
        uint32_t v[4];
        LoadValues(values, b, c, v);
        AddValues(v, weights[b], sums);
      }
      Store(sums, scale, c, ToOut());
    }
  }

  // By the block: a warp a block of keys, then a warp 16 channels. `room`: A::kTogether bytes. put: of Store. kAhead:
  // with registers for all that is loaded, so that nothing waits for one load after the other.
  template <bool kAhead, typename Put>
  __device__ __forceinline__ void AttendTogether(const E* keys, const E* values, const uint32_t (&query)[A::kSteps][4],
                                                 std::byte* room, Put put) const {
    auto* const max_of = reinterpret_cast<float2*>(room);                               // [blocks][lanes]
    auto* const sum_of = max_of + A::kKeyBlocks * kWarp;                                // [blocks][lanes]
    auto* const weights_of = reinterpret_cast<uint4*>(sum_of + A::kKeyBlocks * kWarp);  // [blocks][lanes]
    float scores[2][4], largest[2] = {-INFINITY, -INFINITY};
    if (warp < blocks) {
      Score(keys, query, warp, scores, largest);
      max_of[warp * kWarp + lane] = {MaxOfQuad(largest[0]), MaxOfQuad(largest[1])};
    }
    // Calls with(b) for the blocks there are. kAhead: such that loads of all of them can be on their way at once.
    const auto for_blocks = [&](auto with) {
      if constexpr (kAhead) {
#pragma unroll
        for (int b = 0; b < A::kKeyBlocks; ++b) {
          if (b < blocks) with(b);
        }
      } else {
        for (int b = 0; b < blocks; ++b) with(b);
      }
    };
    constexpr int kHeld = kAhead ? A::kKeyBlocks : 1;
    uint32_t v[kHeld][4];
    if (kAhead && warp < kWidth / 16) for_blocks([&](int b) { LoadValues(values, b, 2 * warp, v[b]); });
    __syncthreads();
    if (warp < blocks) {
      for_blocks([&](int b) {
        const float2 other = max_of[b * kWarp + lane];
        largest[0] = fmaxf(largest[0], other.x);
        largest[1] = fmaxf(largest[1], other.y);
      });
      uint32_t weights[4];
      sum_of[warp * kWarp + lane] = Weigh(scores, largest, weights);
      weights_of[warp * kWarp + lane] = {weights[0], weights[1], weights[2], weights[3]};
    }
    __syncthreads();
    if (warp < kWidth / 16) {
      float2 sum = {0, 0};
      float sums[2][4] = {};
      for_blocks([&](int b) {
        const float2 of_block = sum_of[b * kWarp + lane];
        sum.x += of_block.x;
        sum.y += of_block.y;
        const uint4 w = weights_of[b * kWarp + lane];
        const uint32_t weights[4] = {w.x, w.y, w.z, w.w};
        if constexpr (!kAhead) LoadValues(values, b, 2 * warp, v[0]);
        AddValues(v[kAhead ? b : 0], weights, sums);
      });
      Store(sums, Inverse(sum), 2 * warp, put);
    }
  }
};

// By the whole block of kThreads. `shared`: kShared bytes, 16-byte aligned; free again after the block's next barrier.
// kFew: kFewGroupRows rows at most, or only the last is wanted. The group is a copy: what is stored could be it.
// await() comes before qkv is read: what the cache has is on its way by then.
template <int kWidth, int kThreads, bool kFew, typename E, typename Await>
__device__ __forceinline__ void AttendGroup(const GroupAttentionCall<E>& call, const Group group, int group_index,
                                            int head, std::byte* shared, Await await) {
  using A = GroupAttention<kWidth>;
  const Cache& cache = call.cache;
  const int warp = threadIdx.x / kWarp;
  auto* keys = reinterpret_cast<E*>(shared);
  auto* values = keys + kMaxGroupKeys * A::kStride;
  auto* cached =
      static_cast<E*>(cache.base) + group.slot * cache.slot_stride + call.layer * cache.layer_stride + head * kWidth;
  const int64_t to_values = static_cast<int64_t>(cache.window) * cache.d;
  const int seen = group.first_key + group.rows;
  constexpr int kOfKey = kWidth / 8, kAll = kMaxGroupKeys * kOfKey, kEach = (kAll + kThreads - 1) / kThreads;
  const auto in_cache = [&](int key, int c) {
    const int column = key < group.memory_valid ? key : call.n + key - group.memory_valid;
    return cached + static_cast<int64_t>(column) * cache.d + c;
  };
  const auto in_pass = [&](int key, int c) {
    return call.qkv + (group.first_row + key - group.first_key) * call.ld + cache.d + head * kWidth + c;
  };
  const bool together = kFew || call.only_last || group.rows <= kFewGroupRows;
  const int tile = together ? (group.rows - 1) / 16 : warp;
  const GroupTile<kWidth, E> own(call, group, group_index, head, tile);
  static_assert(kThreads / kWarp >= A::kKeyBlocks);
  uint32_t query[A::kSteps][4];
  // Straight into shared memory: with few registers many blocks fit, and it takes many to keep the memory busy.
  const auto for_chunks = [&](auto with) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = threadIdx.x + i * kThreads, key = at / kOfKey, c = at % kOfKey * 8;
      if (at < kAll) with(key, c, keys + key * A::kStride + c, values + key * A::kStride + c);
    }
  };
  for_chunks([&](int key, int c, E* to_key, E* to_value) {
    if (key >= seen) {
      *reinterpret_cast<uint4*>(to_key) = *reinterpret_cast<uint4*>(to_value) = {0, 0, 0, 0};
    } else if (key < group.first_key) {
      CopyAsync(to_key, in_cache(key, c));
      CopyAsync(to_value, in_cache(key, c) + to_values);
    }
  });
  await();
  for_chunks([&](int key, int c, E* to_key, E* to_value) {
    if (key < group.first_key || key >= seen) return;
    CopyAsync(to_key, in_pass(key, c));
    CopyAsync(to_value, in_pass(key, c) + cache.d);
  });
  asm volatile("cp.async.commit_group;");
  own.LoadQuery(query);
  asm volatile("cp.async.wait_group 0;");
  __syncthreads();
  for (int at = threadIdx.x; at < group.rows * kOfKey; at += kThreads) {
    const int key = group.first_key + at / kOfKey, c = at % kOfKey * 8;
    if (!call.keep_tokens && key >= group.memory_valid) break;  // memory's come first
    *reinterpret_cast<uint4*>(in_cache(key, c)) = *reinterpret_cast<const uint4*>(keys + key * A::kStride + c);
    *reinterpret_cast<uint4*>(in_cache(key, c) + to_values) =
        *reinterpret_cast<const uint4*>(values + key * A::kStride + c);
  }
  if (together) {
    own.template AttendTogether<false>(keys, values, query,
                                       reinterpret_cast<std::byte*>(values + kMaxGroupKeys * A::kStride), own.ToOut());
  } else if constexpr (!kFew) {
    if (tile * 16 < group.rows) own.Attend(keys, values, query);
  }
}

}  // namespace smt::cuda
