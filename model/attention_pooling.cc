#include "model/attention_pooling.h"

#include <ATen/ops/matmul.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sum.h>

#include <cmath>
#include <limits>

namespace smt {

AttentionPoolingImpl::AttentionPoolingImpl(int64_t d_model) {
  query = register_module("query", Linear(d_model, d_model, /*with_bias=*/false));
  key = register_module("key", Linear(d_model, d_model, /*with_bias=*/false));
}

Pooled AttentionPoolingImpl::forward(const at::Tensor& window, const at::Tensor& mask) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(window.size(2)));
  at::Tensor mean;  // [B, D]
  if (mask.defined()) {
    const at::Tensor counts = mask.to(window.scalar_type());
    mean = at::sum(window * counts.unsqueeze(-1), {1}) / at::sum(counts, {1}, /*keepdim=*/true);
  } else {
    mean = at::mean(window, {1});
  }
  const at::Tensor q = query(mean);                                        // [B, D]
  const at::Tensor k = key(window);                                        // [B, w, D]
  at::Tensor scores = at::matmul(k, q.unsqueeze(-1)).squeeze(-1) * scale;  // [B, w]
  if (mask.defined()) scores = scores.masked_fill(mask.logical_not(), -std::numeric_limits<double>::infinity());
  const at::Tensor weights = at::softmax(scores, -1);
  return {at::matmul(weights.unsqueeze(1), window).squeeze(1), weights};
}

}  // namespace smt
