#include "model/simple_ssm.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/zeros.h>

namespace smt {

SimpleSSMLayerImpl::SimpleSSMLayerImpl(int64_t d_model) {
  in_proj = register_module("in_proj", Linear(d_model, d_model, /*with_bias=*/false));
  out_proj = register_module("out_proj", Linear(d_model, d_model, /*with_bias=*/false));
  decay = register_parameter("decay", at::ones({d_model}));
  skip = register_parameter("skip", at::zeros({d_model}));
}

SimpleSSMImpl::SimpleSSMImpl(const StrideHybridConfig& config) : d_model_(config.d_model) {
  ModuleList layers = register_module("layers", ModuleList());
  for (int64_t i = 0; i < config.ssm.n_layer; ++i) {
    layers_.emplace_back(config.d_model);
    layers->push_back(layers_.back().ptr());
  }
}

SsmState SimpleSSMImpl::InitialState(int64_t batch, const at::TensorOptions& options) const {
  SsmState state;
  for (size_t i = 0; i < layers_.size(); ++i) state.state.push_back(at::zeros({batch, d_model_}, options));
  return state;
}

SsmResult SimpleSSMImpl::Step(const at::Tensor& input, const SsmState& state) {
  SsmResult result{input, state};
  at::Tensor& x = result.output;
  for (size_t i = 0; i < layers_.size(); ++i) {
    SimpleSSMLayerImpl& layer = *layers_[i];
    at::Tensor& h = result.state.state[i];
    h = at::sigmoid(layer.decay) * h + layer.in_proj(x);
    x = x + layer.out_proj(h) + layer.skip * x;
  }
  return result;
}

SsmResult SimpleSSMImpl::Scan(const at::Tensor& inputs, const SsmState& state) {
  SsmResult result{inputs, state};
  at::Tensor& x = result.output;
  for (size_t i = 0; i < layers_.size(); ++i) {
    SimpleSSMLayerImpl& layer = *layers_[i];
    const at::Tensor increment = layer.in_proj(x);
    const at::Tensor h =
        LinearRecurrence(at::sigmoid(layer.decay).expand_as(increment), increment, result.state.state[i]);
    result.state.state[i] = h.select(1, h.size(1) - 1).contiguous();
    x = x + layer.out_proj(h) + layer.skip * x;
  }
  return result;
}

}  // namespace smt
