#include "model/gpt2_transformer.h"

#include <ATen/ops/gelu.h>

namespace smt {

Gpt2AttentionImpl::Gpt2AttentionImpl(int64_t d_model, int64_t heads) : heads(heads) {
  c_attn = register_module("c_attn", Conv1D(d_model, 3 * d_model));
  c_proj = register_module("c_proj", Conv1D(d_model, d_model));
}

at::Tensor Gpt2AttentionImpl::forward(const at::Tensor& x, int64_t layer, AttentionContext& attention) {
  const int64_t batch = x.size(0), rows = x.size(1), width = x.size(2);
  const at::Tensor qkv = c_attn(x).view({batch, rows, 3, heads, width / heads}).permute({2, 0, 3, 1, 4}).contiguous();
  const at::Tensor seen = attention.Attend(layer, qkv.select(0, 0), qkv.select(0, 1), qkv.select(0, 2));
  return c_proj(seen.transpose(1, 2).reshape({batch, rows, width}));
}

Gpt2MlpImpl::Gpt2MlpImpl(int64_t d_model, int64_t width) {
  c_fc = register_module("c_fc", Conv1D(d_model, width));
  c_proj = register_module("c_proj", Conv1D(width, d_model));
}

at::Tensor Gpt2MlpImpl::forward(const at::Tensor& x) { return c_proj(at::gelu(c_fc(x), "tanh")); }

Gpt2BlockImpl::Gpt2BlockImpl(const StrideHybridConfig& config) {
  const double epsilon = config.transformer.layer_norm_epsilon;
  ln_1 = register_module("ln_1", LayerNorm(config.d_model, epsilon));
  attn = register_module("attn", Gpt2Attention(config.d_model, config.transformer.n_head));
  ln_2 = register_module("ln_2", LayerNorm(config.d_model, epsilon));
  mlp = register_module("mlp", Gpt2Mlp(config.d_model, config.mlp_width()));
}

at::Tensor Gpt2BlockImpl::forward(const at::Tensor& x, int64_t layer, AttentionContext& attention) {
  const at::Tensor attended = x + attn(ln_1(x), layer, attention);
  return attended + mlp(ln_2(attended));
}

Gpt2TransformerImpl::Gpt2TransformerImpl(const StrideHybridConfig& config) : WindowedTransformerImpl(config) {
  h = register_module("h", ModuleList());
  for (int64_t i = 0; i < config.transformer.n_layer; ++i) {
    blocks_.emplace_back(config);
    h->push_back(blocks_.back().ptr());
  }
  ln_f = register_module("ln_f", LayerNorm(config.d_model, config.transformer.layer_norm_epsilon));
}

at::Tensor Gpt2TransformerImpl::Blocks(at::Tensor x, AttentionContext& attention) {
  for (size_t i = 0; i < blocks_.size(); ++i) x = blocks_[i](x, static_cast<int64_t>(i), attention);
  return ln_f(x);
}

}  // namespace smt
