// What a write remembers: the window pooled by attention into one vector.
//
//   q = Wq mean(window)    k = Wk window    weights = softmax(q k^T / sqrt(D))    pooled = weights window
//
// The mean and the softmax go over unmasked rows only. Rows carry no positions.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>

#include "model/layers.h"

namespace smt {

struct Pooled {
  at::Tensor vector;   // [B, D]
  at::Tensor weights;  // [B, w], 0 where masked, rows sum to 1
};

struct AttentionPoolingImpl : torch::nn::Module {
  explicit AttentionPoolingImpl(int64_t d_model);
  // window: [B, w, D], masked rows finite; mask: bool [B, w], true where a row counts, at least one a window; or
  // undefined when all rows count.
  Pooled forward(const at::Tensor& window, const at::Tensor& mask = {});

  Linear query{nullptr}, key{nullptr};  // [D, D], no bias
};
TORCH_MODULE(AttentionPooling);

}  // namespace smt
