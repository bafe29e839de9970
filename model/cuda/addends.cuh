// Reading what is left of a product (kernels.h, Addends).
#pragma once

#include <cstdint>

#include "model/cuda/kernels.h"
#include "model/cuda/window.cuh"

namespace smt::cuda {

// The sum of four neighbours, all loads at once; there is at least one addend.
__device__ __forceinline__ Four SumOfFour(const Addends& addends, int64_t row, int column) {
  const float* from = addends.at + row * addends.ld + column;
  Four v[kMaxAddends];
#pragma unroll
  for (int i = 0; i < kMaxAddends; ++i) {
    if (i < addends.count) v[i] = *reinterpret_cast<const Four*>(from + i * addends.stride);
  }
  Four sum = v[0];
#pragma unroll
  for (int i = 1; i < kMaxAddends; ++i) {
    if (i >= addends.count) break;
#pragma unroll
    for (int u = 0; u < 4; ++u) sum.at[u] += v[i].at[u];
  }
  return sum;
}
__device__ __forceinline__ float SumOfOne(const Addends& addends, int64_t row, int column) {
  const float* from = addends.at + row * addends.ld + column;
  float v[kMaxAddends];
#pragma unroll
  for (int i = 0; i < kMaxAddends; ++i) {
    if (i < addends.count) v[i] = from[i * addends.stride];
  }
  float sum = v[0];
#pragma unroll
  for (int i = 1; i < kMaxAddends; ++i) {
    if (i < addends.count) sum += v[i];
  }
  return sum;
}

}  // namespace smt::cuda
