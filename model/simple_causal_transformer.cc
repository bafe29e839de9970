#include "model/simple_causal_transformer.h"

#include <ATen/ops/relu.h>

namespace smt {

SimpleAttentionImpl::SimpleAttentionImpl(int64_t d_model, int64_t heads) : heads(heads) {
  query = register_module("query", Linear(d_model, d_model, /*with_bias=*/false));
  key = register_module("key", Linear(d_model, d_model, /*with_bias=*/false));
  value = register_module("value", Linear(d_model, d_model, /*with_bias=*/false));
  out = register_module("out", Linear(d_model, d_model, /*with_bias=*/false));
}

at::Tensor SimpleAttentionImpl::forward(const at::Tensor& x, int64_t layer, AttentionContext& attention) {
  const int64_t batch = x.size(0), rows = x.size(1), width = x.size(2);
  const auto split = [&](const at::Tensor& y) {
    return y.view({batch, rows, heads, width / heads}).transpose(1, 2).contiguous();
  };
  const at::Tensor seen = attention.Attend(layer, split(query(x)), split(key(x)), split(value(x)));
  return out(seen.transpose(1, 2).reshape({batch, rows, width}));
}

SimpleMlpImpl::SimpleMlpImpl(int64_t d_model, int64_t width) {
  up = register_module("up", Linear(d_model, width, /*with_bias=*/false));
  down = register_module("down", Linear(width, d_model, /*with_bias=*/false));
}

at::Tensor SimpleMlpImpl::forward(const at::Tensor& x) { return down(at::relu(up(x))); }

SimpleBlockImpl::SimpleBlockImpl(const StrideHybridConfig& config) {
  norm = register_module("norm", RMSNorm(config.d_model, config.transformer.layer_norm_epsilon));
  attn = register_module("attn", SimpleAttention(config.d_model, config.transformer.n_head));
  mlp = register_module("mlp", SimpleMlp(config.d_model, config.mlp_width()));
}

at::Tensor SimpleBlockImpl::forward(const at::Tensor& x, int64_t layer, AttentionContext& attention) {
  const at::Tensor attended = x + attn(norm(x), layer, attention);
  return attended + mlp(norm(attended));
}

SimpleCausalTransformerImpl::SimpleCausalTransformerImpl(const StrideHybridConfig& config)
    : WindowedTransformerImpl(config) {
  h = register_module("h", ModuleList());
  for (int64_t i = 0; i < config.transformer.n_layer; ++i) {
    blocks_.emplace_back(config);
    h->push_back(blocks_.back().ptr());
  }
  norm_f = register_module("norm_f", RMSNorm(config.d_model, config.transformer.layer_norm_epsilon));
}

at::Tensor SimpleCausalTransformerImpl::Blocks(at::Tensor x, AttentionContext& attention) {
  for (size_t i = 0; i < blocks_.size(); ++i) x = blocks_[i](x, static_cast<int64_t>(i), attention);
  return norm_f(x);
}

}  // namespace smt
