#include "model/state_layout.h"

namespace smt {
namespace {
size_t Align(size_t at) { return (at + 63) / 64 * 64; }
}  // namespace

StateLayout::StateLayout(const StrideHybridConfig& c)
    : n_(c.n_ssm_outputs), m_(c.m_input_tokens), s_(c.stride), d_(c.d_model) {
  const bool mamba = c.ssm.kind == SsmKind::kMamba;
  conv_numel_ = mamba ? c.ssm.n_layer * c.d_inner() * c.ssm.d_conv : 0;
  state_numel_ = c.ssm.n_layer * (mamba ? c.d_inner() * c.ssm.d_state : d_);
  tokens_at_ = 64;
  memory_at_ = Align(tokens_at_ + m_ * sizeof(int32_t));
  conv_at_ = Align(memory_at_ + n_ * d_ * sizeof(float));
  state_at_ = Align(conv_at_ + conv_numel_ * sizeof(float));
  bytes_ = Align(state_at_ + state_numel_ * sizeof(float));
}

}  // namespace smt
