#include "model/mamba.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/log.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

namespace smt {

DepthwiseConvImpl::DepthwiseConvImpl(int64_t channels, int64_t taps) {
  weight = register_parameter("weight", at::empty({channels, 1, taps}, at::kFloat).normal_(0.0, 0.2));
  bias = register_parameter("bias", at::zeros({channels}));
}

MambaMixerImpl::MambaMixerImpl(const StrideHybridConfig& config)
    : d_inner(config.d_inner()), d_state(config.ssm.d_state), dt_rank(config.dt_rank()) {
  in_proj = register_module("in_proj", Linear(config.d_model, 2 * d_inner, /*with_bias=*/false));
  conv1d = register_module("conv1d", DepthwiseConv(d_inner, config.ssm.d_conv));
  x_proj = register_module("x_proj", Linear(d_inner, dt_rank + 2 * d_state, /*with_bias=*/false));
  dt_proj = register_module("dt_proj", Linear(dt_rank, d_inner, /*with_bias=*/true));
  out_proj = register_module("out_proj", Linear(d_inner, config.d_model, /*with_bias=*/false));
  A_log = register_parameter("A_log", at::log(at::arange(1, d_state + 1, at::kFloat)).repeat({d_inner, 1}));
  D = register_parameter("D", at::ones({d_inner}));
}

MambaMixerImpl::Selection MambaMixerImpl::Select(const at::Tensor& x) {
  const at::Tensor parameters = x_proj(x);
  const at::Tensor dt = at::softplus(dt_proj(parameters.narrow(-1, 0, dt_rank))).unsqueeze(-1);  // [..., d_inner, 1]
  const at::Tensor b = parameters.narrow(-1, dt_rank, d_state).unsqueeze(-2);                    // [..., 1, d_state]
  const at::Tensor a = -at::exp(A_log);
  return {at::exp(dt * a), dt * b * x.unsqueeze(-1), parameters.narrow(-1, dt_rank + d_state, d_state)};
}

at::Tensor MambaMixerImpl::Read(const at::Tensor& h, const Selection& selection, const at::Tensor& x,
                                const at::Tensor& gate) {
  const at::Tensor y = at::sum(h * selection.c.unsqueeze(-2), {-1}) + D * x;
  return out_proj(y * at::silu(gate));
}

at::Tensor MambaMixerImpl::Step(const at::Tensor& input, at::Tensor& conv, at::Tensor& state) {
  const at::Tensor projected = in_proj(input);
  const at::Tensor entering = projected.narrow(-1, 0, d_inner), gate = projected.narrow(-1, d_inner, d_inner);
  conv = at::cat({conv.narrow(2, 1, conv.size(2) - 1), entering.unsqueeze(-1)}, 2);
  const at::Tensor x = at::silu(at::sum(conv * conv1d->weight.select(1, 0), {-1}) + conv1d->bias);
  const Selection selection = Select(x);
  state = selection.decay * state + selection.increment;
  return Read(state, selection, x, gate);
}

at::Tensor MambaMixerImpl::Scan(const at::Tensor& inputs, at::Tensor& conv, at::Tensor& state) {
  const int64_t steps = inputs.size(1), taps = conv.size(2);
  const at::Tensor projected = in_proj(inputs);
  const at::Tensor entering = projected.narrow(-1, 0, d_inner), gate = projected.narrow(-1, d_inner, d_inner);
  // All that the convolution sees: what came before, then the new inputs. Tap k of step t is column t + k + 1.
  const at::Tensor seen = at::cat({conv, entering.transpose(1, 2)}, 2);               // [B, d_inner, taps + T]
  const at::Tensor windows = seen.narrow(2, 1, taps + steps - 1).unfold(2, taps, 1);  // [B, d_inner, T, taps]
  const at::Tensor convolved = at::sum(windows * conv1d->weight, {-1}).transpose(1, 2) + conv1d->bias;
  conv = seen.narrow(2, steps, taps).contiguous();
  const at::Tensor x = at::silu(convolved);  // [B, T, d_inner]
  const Selection selection = Select(x);
  const at::Tensor h = LinearRecurrence(selection.decay, selection.increment, state);
  state = h.select(1, steps - 1).contiguous();
  return Read(h, selection, x, gate);
}

MambaBlockImpl::MambaBlockImpl(const StrideHybridConfig& config) {
  norm = register_module("norm", RMSNorm(config.d_model, config.ssm.rms_norm_epsilon));
  mixer = register_module("mixer", MambaMixer(config));
}

MambaImpl::MambaImpl(const StrideHybridConfig& config)
    : d_inner_(config.d_inner()), d_conv_(config.ssm.d_conv), d_state_(config.ssm.d_state) {
  ModuleList backbone = register_module("backbone", ModuleList());
  ModuleList layers = backbone->register_module("layers", ModuleList());
  for (int64_t i = 0; i < config.ssm.n_layer; ++i) {
    blocks_.emplace_back(config);
    layers->push_back(blocks_.back().ptr());
  }
  norm_f = backbone->register_module("norm_f", RMSNorm(config.d_model, config.ssm.rms_norm_epsilon));
}

SsmState MambaImpl::InitialState(int64_t batch, const at::TensorOptions& options) const {
  SsmState state;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    state.conv.push_back(at::zeros({batch, d_inner_, d_conv_}, options));
    state.state.push_back(at::zeros({batch, d_inner_, d_state_}, options));
  }
  return state;
}

SsmResult MambaImpl::Step(const at::Tensor& input, const SsmState& state) {
  SsmResult result{input, state};
  at::Tensor& x = result.output;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    MambaBlockImpl& block = *blocks_[i];
    x = x + block.mixer->Step(block.norm(x), result.state.conv[i], result.state.state[i]);
  }
  x = norm_f(x);
  return result;
}

SsmResult MambaImpl::Scan(const at::Tensor& inputs, const SsmState& state) {
  SsmResult result{inputs, state};
  at::Tensor& x = result.output;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    MambaBlockImpl& block = *blocks_[i];
    x = x + block.mixer->Scan(block.norm(x), result.state.conv[i], result.state.state[i]);
  }
  x = norm_f(x);
  return result;
}

}  // namespace smt
