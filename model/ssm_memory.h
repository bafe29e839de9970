// The long-term half of the model: a state space model that absorbs one pooled vector a write and gives the vector that
// is pushed onto memory. Its state has a fixed size and is float32 always, as is its arithmetic.
//
// Step is the recurrence; Scan goes over many writes at once, parallel over time, and gives the same numbers (to
// rounding). Neither changes its arguments; both are differentiable.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "model/config.h"
#include "model/layers.h"

namespace smt {

// One entry a layer.
struct SsmState {
  std::vector<at::Tensor> conv;   // mamba: [B, d_inner, d_conv], the convolution's last inputs, oldest first, the
                                  // newest included, zeros before the start. simple: no entries
  std::vector<at::Tensor> state;  // mamba: [B, d_inner, d_state]. simple: [B, D]
};

struct SsmResult {
  at::Tensor output;  // Step: [B, D]. Scan: [B, T, D]
  SsmState state;     // after it
};

class SSMMemoryImpl : public torch::nn::Module {
 public:
  virtual SsmState InitialState(int64_t batch, const at::TensorOptions& options) const = 0;  // zeros
  virtual SsmResult Step(const at::Tensor& input, const SsmState& state) = 0;                // [B, D]
  virtual SsmResult Scan(const at::Tensor& inputs, const SsmState& state) = 0;               // [B, T, D], T >= 1
};

// h_t = decay_t * h_(t-1) + increment_t over dimension 1, for all t at once: doubling within chunks (log2 of the chunk
// many passes over [B, chunk, ...]), the chunks in order. decay, increment: [B, T, ...]; initial: [B, ...].
at::Tensor LinearRecurrence(const at::Tensor& decay, const at::Tensor& increment, const at::Tensor& initial);

// Mamba or SimpleSSM, by config.ssm.kind; parameters under their checkpoint names, less the leading "ssm.".
std::shared_ptr<SSMMemoryImpl> NewSSMMemory(const StrideHybridConfig& config);

}  // namespace smt
