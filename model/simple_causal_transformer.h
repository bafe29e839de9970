// The small stand-in for tests: a causal transformer without biases, ReLU, one RMSNorm a block used twice. Children:
// h.N.{norm, attn.{query, key, value, out}, mlp.{up, down}}, norm_f.
//
//   a = x + out(attention(norm(x)))    x' = a + down(relu(up(norm(a))))
#pragma once

#include "model/layers.h"
#include "model/windowed_transformer.h"

namespace smt {

struct SimpleAttentionImpl : torch::nn::Module {
  SimpleAttentionImpl(int64_t d_model, int64_t heads);
  at::Tensor forward(const at::Tensor& x, int64_t layer, AttentionContext& attention);  // [B, w, D] -> [B, w, D]

  const int64_t heads;
  Linear query{nullptr}, key{nullptr}, value{nullptr}, out{nullptr};  // [D, D]
};
TORCH_MODULE(SimpleAttention);

struct SimpleMlpImpl : torch::nn::Module {
  SimpleMlpImpl(int64_t d_model, int64_t width);
  at::Tensor forward(const at::Tensor& x);

  Linear up{nullptr}, down{nullptr};  // D -> width -> D
};
TORCH_MODULE(SimpleMlp);

struct SimpleBlockImpl : torch::nn::Module {
  explicit SimpleBlockImpl(const StrideHybridConfig& config);
  at::Tensor forward(const at::Tensor& x, int64_t layer, AttentionContext& attention);

  RMSNorm norm{nullptr};
  SimpleAttention attn{nullptr};
  SimpleMlp mlp{nullptr};
};
TORCH_MODULE(SimpleBlock);

class SimpleCausalTransformerImpl : public WindowedTransformerImpl {
 public:
  explicit SimpleCausalTransformerImpl(const StrideHybridConfig& config);

 protected:
  at::Tensor Blocks(at::Tensor x, AttentionContext& attention) override;

 private:
  ModuleList h{nullptr};
  std::vector<SimpleBlock> blocks_;  // h's children
  RMSNorm norm_f{nullptr};
};

}  // namespace smt
