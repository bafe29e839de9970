// The short-term half of the model: a causal transformer over one window [n memory vectors | up to m tokens]. It takes
// embeddings, never ids, and adds the learned position of each window slot itself.
//
// The blocks do not know how their keys and values are kept; an AttentionContext does: whole windows at once
// (WindowAttention), or one new column against the cached ones (CachedColumnAttention, model/key_value_cache.h).
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <memory>

#include "model/config.h"
#include "model/layers.h"

namespace smt {

class AttentionContext {
 public:
  virtual ~AttentionContext() = default;
  // q, k, v: [B, heads, w, head_dim] of the rows being computed. Returns what they attend to, in the same shape.
  virtual at::Tensor Attend(int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) = 0;
};

// Scores that are added before the softmax so that row i sees row j where j <= i and j is valid, and always itself
// (which keeps rows that do not count finite; nothing sees those).
// mask: bool [B, w] -> [B, 1, w, w] of `dtype`, 0 or -inf.
at::Tensor CausalBias(const at::Tensor& mask, at::ScalarType dtype);

// softmax(q k^T / sqrt(head_dim) + bias) v. q: [B, heads, r, head_dim]; k, v: [B, heads, w, head_dim]; bias: [B, 1, r,
// w].
at::Tensor ScaledAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias);

// Every row of every window at once.
class WindowAttention : public AttentionContext {
 public:
  explicit WindowAttention(at::Tensor causal_bias) : bias_(std::move(causal_bias)) {}
  at::Tensor Attend(int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) override {
    return ScaledAttention(q, k, v, bias_);
  }

 private:
  at::Tensor bias_;  // [B, 1, w, w]
};

class WindowedTransformerImpl : public torch::nn::Module {
 public:
  explicit WindowedTransformerImpl(const StrideHybridConfig& config);

  // The hidden state of every row, after the last norm.
  // embeddings: [B, w, D]; positions: int64 [w] or [B, w], window slots; mask: bool [B, w], or undefined: all count.
  at::Tensor forward(const at::Tensor& embeddings, const at::Tensor& positions, const at::Tensor& mask = {});

  // The same with attention of the caller's. x: [B, w, D].
  at::Tensor Run(const at::Tensor& embeddings, const at::Tensor& positions, AttentionContext& attention);

  Embedding wte{nullptr};  // [V, D], float32 always: the memory path reads it
  Embedding wpe{nullptr};  // [n_positions, D]

 protected:
  virtual at::Tensor Blocks(at::Tensor x, AttentionContext& attention) = 0;  // [B, w, D] -> [B, w, D]
};

// Gpt2Transformer or SimpleCausalTransformer, by config.transformer.kind; parameters under their checkpoint names, less
// the leading "transformer.".
std::shared_ptr<WindowedTransformerImpl> NewWindowedTransformer(const StrideHybridConfig& config);

}  // namespace smt
