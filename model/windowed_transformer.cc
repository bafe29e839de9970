#include "model/windowed_transformer.h"

#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>

#include "model/gpt2_transformer.h"
#include "model/simple_causal_transformer.h"

namespace smt {

at::Tensor CausalBias(const at::Tensor& mask, at::ScalarType dtype) {
  const int64_t w = mask.size(1);
  const auto bool_options = mask.options();
  const at::Tensor causal = at::ones({w, w}, bool_options).tril();
  const at::Tensor itself = at::ones({w, w}, bool_options).triu().logical_and(causal);
  const at::Tensor seen = causal.logical_and(mask.unsqueeze(1)).logical_or(itself);  // [B, w, w]
  return at::zeros(seen.sizes(), mask.options().dtype(dtype))
      .masked_fill(seen.logical_not(), -std::numeric_limits<double>::infinity())
      .unsqueeze(1);
}

at::Tensor ScaledAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(-1)));
  const at::Tensor scores = at::matmul(q, k.transpose(-2, -1)) * scale + bias;
  return at::matmul(at::softmax(scores, -1), v);
}

WindowedTransformerImpl::WindowedTransformerImpl(const StrideHybridConfig& config) {
  wte = register_module("wte", Embedding(config.vocab_size, config.d_model));
  wpe = register_module("wpe", Embedding(config.transformer.n_positions, config.d_model));
}

at::Tensor WindowedTransformerImpl::forward(const at::Tensor& embeddings, const at::Tensor& positions,
                                            const at::Tensor& mask) {
  const at::Tensor rows =
      mask.defined() ? mask : at::ones({embeddings.size(0), embeddings.size(1)}, embeddings.options().dtype(at::kBool));
  WindowAttention attention(CausalBias(rows, embeddings.scalar_type()));
  return Run(embeddings, positions, attention);
}

at::Tensor WindowedTransformerImpl::Run(const at::Tensor& embeddings, const at::Tensor& positions,
                                        AttentionContext& attention) {
  return Blocks(embeddings + wpe(positions).to(embeddings.scalar_type()), attention);
}

std::shared_ptr<WindowedTransformerImpl> NewWindowedTransformer(const StrideHybridConfig& config) {
  if (config.transformer.kind == TransformerKind::kSimple) return std::make_shared<SimpleCausalTransformerImpl>(config);
  return std::make_shared<Gpt2TransformerImpl>(config);
}

}  // namespace smt
