// What a window's rows go through besides matrix products and attention: embedding and norms. Bodies shared by the
// kernels of window.cu and those of window_pass.cu and row_pass.cu.
#pragma once

#include <cuda_bf16.h>

#include "model/cuda/kernels.h"
#include "model/cuda/tensor_core.cuh"

namespace smt::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float ToFloat(__half x) { return __half2float(x); }

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
template <typename E>
__device__ __forceinline__ void StoreFour(E* y, const Four& value) {
  *reinterpret_cast<uint2*>(y) = {PackPair<E>(value.at[0], value.at[1]), PackPair<E>(value.at[2], value.at[3])};
}

// Where a row goes that is split (kernels.h, SplitRows).
struct SplitTo {
  __nv_bfloat16 *high, *low;
  __device__ __forceinline__ SplitTo operator+(int64_t i) const { return {high + i, low + i}; }
};
__device__ __forceinline__ void StoreFour(const SplitTo& y, const Four& value) {
  uint2 high, low;
  SplitPair({value.at[0], value.at[1]}, high.x, low.x);
  SplitPair({value.at[2], value.at[3]}, high.y, low.y);
  *reinterpret_cast<uint2*>(y.high) = high;
  *reinterpret_cast<uint2*>(y.low) = low;
}

// y[i, i + 4), as far as d.
__device__ __forceinline__ void StoreFour(const SplitTo& y, int i, int d, const Four& value) {
  if (i + 4 <= d) return StoreFour(y + i, value);
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    if (i + u < d) SplitOne(value.at[u], y.high[i + u], y.low[i + u]);
  }
}
template <typename T>
__device__ __forceinline__ void StoreFour(T* y, int i, int d, const Four& value) {
  if (i + 4 <= d) return StoreFour(y + i, value);
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    if (i + u < d) y[i + u] = static_cast<T>(value.at[u]);
  }
}

// Of a row's parts, one butterfly each, then in order.
template <int kParts>
__device__ __forceinline__ float SumOfParts(const float (&part)[kParts]) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kParts; ++j) sum += WarpSum(part[j]);
  return sum;
}
// Spelled out: the compiler must not fuse this in one kernel and not in another.
__device__ __forceinline__ Four Normalized(const Four& v, float mean, float scale, const Four& w, const Four& b) {
  Four out;
#pragma unroll
  for (int u = 0; u < 4; ++u) out.at[u] = __fmaf_rn(__fmul_rn(v.at[u] - mean, scale), w.at[u], b.at[u]);
  return out;
}
__device__ __forceinline__ float AddSquare(float sum, float value, float mean) {
  return __fmaf_rn(value - mean, value - mean, sum);
}
// x / d to the bit, without a division that waits for x (Markstein, "Computation of elementary functions on the IBM
// RISC System/6000 processor", 1990).
__device__ __forceinline__ float DivideBy(float x, int d) {
  const float by = static_cast<float>(d), inverse = 1.0f / by, quotient = __fmul_rn(x, inverse);
  if (!(fabsf(x) > 1e-30f && fabsf(x) < 1e30f)) return x / by;
  return __fmaf_rn(__fmaf_rn(-quotient, by, x), inverse, quotient);
}
__device__ __forceinline__ float NormScale(float squares, int d, float epsilon) {
  return 1.0f / sqrtf(DivideBy(squares, d) + epsilon);
}

// NormalizeRow of any length. Kept out of the kernels' way.
template <typename To>
__device__ __noinline__ void NormalizeLongRow(const float* x, int d, const float* weight, const float* bias,
                                              float epsilon, To y) {
  const int first = 4 * (threadIdx.x % kWarp);
  float part[1] = {0};
#pragma unroll 1
  for (int i = first; i < d; i += 4 * kWarp) {
    const Four v = LoadFour(x, i, d);
#pragma unroll
    for (int u = 0; u < 4; ++u) part[0] += v.at[u];  // zeros from d on
  }
  const float mean = bias != nullptr ? DivideBy(SumOfParts(part), d) : 0.0f;
  part[0] = 0;
#pragma unroll 1
  for (int i = first; i < d; i += 4 * kWarp) {
    const Four v = LoadFour(x, i, d);
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      if (i + u < d) part[0] = AddSquare(part[0], v.at[u], mean);
    }
  }
  const float scale = NormScale(SumOfParts(part), d, epsilon);
#pragma unroll 1
  for (int i = first; i < d; i += 4 * kWarp) {
    const Four b = bias != nullptr ? LoadFour(bias, i, d) : Four{};
    StoreFour(y, i, d, Normalized(LoadFour(x, i, d), mean, scale, LoadFour(weight, i, d), b));
  }
}

// LayerNorm of a row, RMSNorm where bias is null, by one warp. A lane takes four neighbours of every 128, which are
// parts with sums of their own: there is little else to do at once. `y`: a pointer or SplitTo.
inline constexpr int kNormParts = 8;
template <typename To>
__device__ __forceinline__ void NormalizeRow(const float* x, int d, const float* weight, const float* bias,
                                             float epsilon, To y) {
  constexpr int kParts = kNormParts, kStep = 4 * kWarp;
  if (d % 4 != 0 || d > kParts * kStep) return NormalizeLongRow(x, d, weight, bias, epsilon, y);
  const int first = 4 * (threadIdx.x % kWarp);
  // All loads at once, from a place that is there.
  Four v[kParts], w[kParts], b[kParts];
#pragma unroll
  for (int j = 0; j < kParts; ++j) {
    const int at = first + j * kStep < d ? first + j * kStep : 0;
    v[j] = *reinterpret_cast<const Four*>(x + at);
    w[j] = *reinterpret_cast<const Four*>(weight + at);
    b[j] = bias != nullptr ? *reinterpret_cast<const Four*>(bias + at) : Four{};
  }
  float part[kParts], mean = 0;
  if (bias != nullptr) {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      part[j] = v[j].at[0] + v[j].at[1] + v[j].at[2] + v[j].at[3];
      if (first + j * kStep >= d) part[j] = 0;
    }
    mean = DivideBy(SumOfParts(part), d);
  }
#pragma unroll
  for (int j = 0; j < kParts; ++j) {
    part[j] = 0;
#pragma unroll
    for (int u = 0; u < 4; ++u) part[j] = AddSquare(part[j], v[j].at[u], mean);
    if (first + j * kStep >= d) part[j] = 0;
  }
  const float scale = NormScale(SumOfParts(part), d, epsilon);
#pragma unroll
  for (int j = 0; j < kParts; ++j) {
    if (first + j * kStep < d) StoreFour(y + first + j * kStep, Normalized(v[j], mean, scale, w[j], b[j]));
  }
}

// The same bits by kNormParts warps, a part each: `v` is what the thread has of the row, from column 4 * threadIdx.x
// on, if `has`. `sums` may be used again after the block's next barrier.
inline constexpr int kNormThreads = kNormParts * kWarp;
__host__ __device__ constexpr bool CanNormalizeTogether(int d) { return d % 4 == 0 && d <= 4 * kNormThreads; }
template <typename To>
__device__ __forceinline__ void NormalizeTogether(const Four& v, bool has, int d, const Four& weight, const Four& bias,
                                                  bool centered, float epsilon, float (&sums)[2][kNormParts], To y) {
  const int warp = threadIdx.x / kWarp;
  const auto sum_parts = [&](float part, float(&of)[kNormParts]) {
    const float sum = WarpSum(has ? part : 0.0f);
    if (threadIdx.x % kWarp == 0) of[warp] = sum;
    __syncthreads();
    float total = 0;
#pragma unroll
    for (int j = 0; j < kNormParts; ++j) total += of[j];
    return total;
  };
  float mean = 0;
  if (centered) mean = DivideBy(sum_parts(v.at[0] + v.at[1] + v.at[2] + v.at[3], sums[0]), d);
  float squares = 0;
#pragma unroll
  for (int u = 0; u < 4; ++u) squares = AddSquare(squares, v.at[u], mean);
  const float scale = NormScale(sum_parts(squares, sums[1]), d, epsilon);
  if (has) StoreFour(y + 4 * threadIdx.x, Normalized(v, mean, scale, weight, bias));
}

// By the block: x[:d] = (memory vector or embedding) + position, the first rounded to `type`.
template <typename Embedding>
__device__ __forceinline__ void EmbedRow(const Row& row, const SlotMemory& slots, const IdRings& rings,
                                         const Embedding* embeddings, int64_t ld_embeddings, const float* positions,
                                         int d, Type type, float* x) {
  const float* memory = reinterpret_cast<const float*>(slots.base + row.slot * slots.stride + slots.memory_at);
  const int64_t id = row.source > -kIdSources
                         ? row.source
                         : rings.ids[static_cast<int64_t>(row.slot) * rings.size + (-kIdSources - row.source)];
  for (int i = threadIdx.x; i < d; i += blockDim.x) {
    float value =
        id >= 0 ? ToFloat(embeddings[id * ld_embeddings + i]) : memory[static_cast<int64_t>(-1 - row.source) * d + i];
    if (type == Type::kBfloat16) value = ToFloat(__float2bfloat16(value));
    if (type == Type::kFloat16) value = ToFloat(__float2half_rn(value));
    x[i] = value + positions[static_cast<int64_t>(row.column) * d + i];
  }
}

}  // namespace smt::cuda
