// GPT-2 as published: pre-LN blocks with fused qkv, tanh-GELU and a final norm. Children: h.N.{ln_1, attn.{c_attn,
// c_proj}, ln_2, mlp.{c_fc, c_proj}}, ln_f.
#pragma once

#include "model/layers.h"
#include "model/windowed_transformer.h"

namespace smt {

struct Gpt2AttentionImpl : torch::nn::Module {
  Gpt2AttentionImpl(int64_t d_model, int64_t heads);
  at::Tensor forward(const at::Tensor& x, int64_t layer, AttentionContext& attention);  // [B, w, D] -> [B, w, D]

  const int64_t heads;
  Conv1D c_attn{nullptr};  // D -> 3D: q | k | v
  Conv1D c_proj{nullptr};  // D -> D
};
TORCH_MODULE(Gpt2Attention);

struct Gpt2MlpImpl : torch::nn::Module {
  Gpt2MlpImpl(int64_t d_model, int64_t width);
  at::Tensor forward(const at::Tensor& x);

  Conv1D c_fc{nullptr};    // D -> width
  Conv1D c_proj{nullptr};  // width -> D
};
TORCH_MODULE(Gpt2Mlp);

struct Gpt2BlockImpl : torch::nn::Module {
  explicit Gpt2BlockImpl(const StrideHybridConfig& config);
  at::Tensor forward(const at::Tensor& x, int64_t layer, AttentionContext& attention);

  LayerNorm ln_1{nullptr}, ln_2{nullptr};
  Gpt2Attention attn{nullptr};
  Gpt2Mlp mlp{nullptr};
};
TORCH_MODULE(Gpt2Block);

class Gpt2TransformerImpl : public WindowedTransformerImpl {
 public:
  explicit Gpt2TransformerImpl(const StrideHybridConfig& config);

 protected:
  at::Tensor Blocks(at::Tensor x, AttentionContext& attention) override;

 private:
  ModuleList h{nullptr};
  std::vector<Gpt2Block> blocks_;  // h's children
  LayerNorm ln_f{nullptr};
};

}  // namespace smt
