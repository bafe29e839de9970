// The small stand-in for tests: a stack of diagonal linear SSMs. Children: layers.N.{in_proj, out_proj, decay, skip}.
//
//   h_t = sigmoid(decay) h_(t-1) + in_proj(x_t)    x'_t = x_t + out_proj(h_t) + skip x_t
#pragma once

#include "model/layers.h"
#include "model/ssm_memory.h"

namespace smt {

struct SimpleSSMLayerImpl : torch::nn::Module {
  explicit SimpleSSMLayerImpl(int64_t d_model);

  Linear in_proj{nullptr}, out_proj{nullptr};  // [D, D], no bias
  at::Tensor decay;                            // [D], before the sigmoid
  at::Tensor skip;                             // [D]
};
TORCH_MODULE(SimpleSSMLayer);

class SimpleSSMImpl : public SSMMemoryImpl {
 public:
  explicit SimpleSSMImpl(const StrideHybridConfig& config);
  SsmState InitialState(int64_t batch, const at::TensorOptions& options) const override;
  SsmResult Step(const at::Tensor& input, const SsmState& state) override;
  SsmResult Scan(const at::Tensor& inputs, const SsmState& state) override;

 private:
  const int64_t d_model_;
  std::vector<SimpleSSMLayer> layers_;
};

}  // namespace smt
