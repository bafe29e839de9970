// What happens to the sums of a matrix product: bias, activation, residual, storing.
#pragma once

#include "model/cuda/exp2.cuh"
#include "model/cuda/kernels.h"
#include "model/cuda/tensor_core.cuh"

namespace smt::cuda {

__device__ __forceinline__ float Activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kGelu: {
      // GPT-2's x / 2 (1 + tanh u), u = sqrt(2 / pi) (x + 0.044715 x^3), as x / (1 + 2^(-2 u log2 e)): fewer
      // instructions than tanhf. Spelled out: the same in every kernel.
      const float cubic =
          __fmaf_rn(__fmul_rn(0.044715f * 2.302208198f, x), __fmul_rn(x, x), __fmul_rn(2.302208198f, x));
      return __fdividef(x, 1.0f + Exp2(-cubic));
    }
    case Activation::kRelu:
      return fmaxf(x, 0.0f);
    case Activation::kSoftplus:  // as LibTorch: linear above 20
      return x > 20.0f ? x : log1pf(expf(x));
  }
  return x;
}

template <typename T>
struct Epilogue {
  const float* bias;
  void* y;
  int64_t ldy;
  bool float_output;
  const float* residual;
  Activation activation;
  int rows, n;

  // What storing (row, j) adds: bias and residual.
  __device__ __forceinline__ float2 Load(int row, int j) const {
    return {bias != nullptr ? bias[j] : 0.0f, residual != nullptr ? residual[row * ldy + j] : 0.0f};
  }
  __device__ __forceinline__ void Store(int row, int j, float sum, float2 bias_and_residual) const {
    const int64_t at = row * ldy + j;
    float value = Activate(activation, bias != nullptr ? sum + bias_and_residual.x : sum);
    if (residual != nullptr) value += bias_and_residual.y;
    if (float_output) {
      static_cast<float*>(y)[at] = value;
    } else {
      static_cast<T*>(y)[at] = static_cast<T>(value);
    }
  }
  __device__ __forceinline__ void Store(int row, int j, float sum) const {
    if (row < rows && j < n) Store(row, j, sum, Load(row, j));
  }

  // Of outputs j to j + 3, j a multiple of four: what storing them adds, and storing.
  struct Ahead {
    float4 bias, residual;
  };
  __device__ __forceinline__ bool HasFour(int row, int j) const { return row < rows && j + 4 <= n && ldy % 4 == 0; }
  __device__ __forceinline__ Ahead LoadAhead(int row, int j) const {
    Ahead ahead = {};
    if (!HasFour(row, j)) return ahead;
    if (bias != nullptr) ahead.bias = *reinterpret_cast<const float4*>(bias + j);
    if (residual != nullptr) ahead.residual = *reinterpret_cast<const float4*>(residual + row * ldy + j);
    return ahead;
  }
  __device__ __forceinline__ void StoreFour(int row, int j, float4 sum, const Ahead& ahead) const {
    const int64_t at = row * ldy + j;
    if (!HasFour(row, j)) {
      const float sums[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) Store(row, j + i, sums[i]);
      return;
    }
    if (bias != nullptr) {
      const float4& b = ahead.bias;
      sum = {sum.x + b.x, sum.y + b.y, sum.z + b.z, sum.w + b.w};
    }
    sum = {Activate(activation, sum.x), Activate(activation, sum.y), Activate(activation, sum.z),
           Activate(activation, sum.w)};
    if (residual != nullptr) {
      const float4& r = ahead.residual;
      sum = {sum.x + r.x, sum.y + r.y, sum.z + r.z, sum.w + r.w};
    }
    if constexpr (sizeof(T) == 2) {
      if (!float_output) {
        *reinterpret_cast<uint2*>(static_cast<T*>(y) + at) = {PackPair<T>(sum.x, sum.y), PackPair<T>(sum.z, sum.w)};
        return;
      }
    }
    *reinterpret_cast<float4*>(static_cast<float*>(y) + at) = sum;
  }
  __device__ __forceinline__ void StoreFour(int row, int j, float4 sum) const {
    StoreFour(row, j, sum, LoadAhead(row, j));
  }
};

}  // namespace smt::cuda
