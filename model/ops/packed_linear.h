// A weight matrix packed once for the batch-invariant product, and the product itself over a thread pool.
//
// Where every weight is exactly a bfloat16 value the panels keep bfloat16 and are widened in registers: the same
// numbers at half the memory traffic, which is what bounds a single stream.
#pragma once

#include <cstdint>
#include <vector>

#include "model/ops/kernels.h"
#include "model/ops/parallel.h"

namespace smt::ops {

// Round to nearest, ties to even; NaN stays NaN.
uint16_t ToBf16(float x);
float FromBf16(uint16_t x);

class PackedLinear {
 public:
  PackedLinear() = default;
  // weight(k, j) = weights[k * k_stride + j * n_stride]: (1, k) is an [n, k] matrix, (n, 1) a [k, n] one (GPT-2's
  // Conv1D). `round_to_bf16` rounds first. bias: [n] or null; copied.
  PackedLinear(const float* weights, int64_t k, int64_t n, int64_t k_stride, int64_t n_stride, const float* bias,
               bool round_to_bf16 = false);

  int64_t k() const { return k_; }
  int64_t n() const { return n_; }
  bool bf16() const { return !bf16_.empty(); }
  size_t bytes() const { return bf16_.size() * 2 + f32_.size() * 4 + bias_.size() * 4; }

  // y[m, n] = act(x[m, k] W + bias) + residual; strides in floats. residual may be null, or y itself.
  void Forward(const Kernels& kernels, ThreadPool& pool, const float* x, int64_t x_stride, int64_t m, float* y,
               int64_t y_stride, Activation activation = Activation::kNone, const float* residual = nullptr,
               int64_t residual_stride = 0) const;

 private:
  int64_t k_ = 0, n_ = 0;
  std::vector<uint16_t> bf16_;  // [ceil(n / 32)][k][32]
  std::vector<float> f32_;      // the same, when bf16 would not be exact
  std::vector<float> bias_;
};

}  // namespace smt::ops
