// Weights of ids (model/sampling/exp_weight.h) as a kernel computes many of them.
#pragma once

#include <cmath>

#include "model/cuda/row_blocks.cuh"
#include "model/sampling/exp_weight.h"

namespace smt::cuda {

// A weight has 24 significant bits, so that it is a float32 exactly, and its bits tell apart the same weights in the
// same order. In memory it is a uint32; 2^32 - 1, which is no weight, stands for 2^32.
inline constexpr unsigned kMaxWeight = 0xffffffffu;
__device__ __forceinline__ Sum WeightOf(unsigned held) { return Sum{held} + (held == kMaxWeight); }
__device__ __forceinline__ unsigned FloatBits(unsigned held) { return __float_as_uint(__uint2float_rn(held)); }

// logits / temperature as IEEE division rounds it, less the largest. With the reciprocal at hand, in two parts, a
// quotient takes four operations: the first is at most an ulp off, so that the second is the rounded one (Markstein),
// while its residual is exact and nothing overflows. Beyond that a quotient matters no more: below 2^-60 it changes no
// weight, above 2^100 - far more than the maximum's - its weight is 0 (NaN's too), and Prepare refuses the rest.
struct Scale {
  float temperature, inverse, inverse_low, max_scaled;
  bool quick;

  __device__ static Scale Prepare(float temperature, float max_scaled) {
    const bool quick = temperature >= 0x1p-30f && temperature <= 0x1p30f && fabsf(max_scaled) < 0x1p100f;
    const float inverse = 1.0f / temperature;
    return {temperature, inverse, fmaf(-inverse, temperature, 1.0f) * inverse, max_scaled, quick};
  }
  // Of quotients.
  __device__ static Scale Divided(float max_scaled) { return {1.0f, 1.0f, 0.0f, max_scaled, true}; }

  __device__ __forceinline__ float QuickQuotient(float x) const {
    const float q = fmaf(x, inverse, x * inverse_low);
    return fmaf(fmaf(-q, temperature, x), inverse, q);
  }
  // The bits of 2^32 * exp(quotient - max_scaled), of which the weight is the whole part (ExpFixed), and of less than 1
  // where that is 0.
  __device__ __forceinline__ unsigned ScaledBits(float quotient) const {
    using C = ExpConstants;
    const float x = fmaxf(quotient - max_scaled, C::kCutoff);  // NaN too
    // The lowest bits of `shifted` are n + 32.
    constexpr float kRound = C::kRound + C::kWeightBits;
    const float shifted = fmaf(x, C::kLog2E, kRound), n = shifted - kRound;
    return __float_as_uint(ExpOfRest(x, n)) + (__float_as_uint(shifted) << 23);
  }
  // The weight as it is held: the conversion rounds down and makes 2^32 the greatest.
  __device__ __forceinline__ static unsigned Held(unsigned scaled_bits) {
    return __float2uint_rz(__uint_as_float(scaled_bits));
  }
};

}  // namespace smt::cuda
