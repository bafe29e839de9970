// A stack of Mamba-1 blocks as published, each x + mixer(RMSNorm(x)), and one RMSNorm at the end. Children:
// backbone.layers.N.{norm, mixer.{in_proj, conv1d, x_proj, dt_proj, A_log, D, out_proj}}, backbone.norm_f.
#pragma once

#include "model/layers.h"
#include "model/ssm_memory.h"

namespace smt {

// The depthwise convolution's parameters.
struct DepthwiseConvImpl : torch::nn::Module {
  DepthwiseConvImpl(int64_t channels, int64_t taps);

  at::Tensor weight;  // [channels, 1, taps], the newest input's tap last
  at::Tensor bias;    // [channels]
};
TORCH_MODULE(DepthwiseConv);

// The selective SSM: with x convolved and gated,
//   h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t    y_t = C_t h_t + D x_t    dt, B, C functions of x_t.
struct MambaMixerImpl : torch::nn::Module {
  explicit MambaMixerImpl(const StrideHybridConfig& config);
  // input: [B, D]. conv [B, d_inner, d_conv] and state [B, d_inner, d_state] are replaced by the next.
  at::Tensor Step(const at::Tensor& input, at::Tensor& conv, at::Tensor& state);
  // inputs: [B, T, D].
  at::Tensor Scan(const at::Tensor& inputs, at::Tensor& conv, at::Tensor& state);

  const int64_t d_inner, d_state, dt_rank;
  Linear in_proj{nullptr};  // D -> 2 d_inner: x | gate
  DepthwiseConv conv1d{nullptr};
  Linear x_proj{nullptr};    // d_inner -> dt_rank + 2 d_state: dt | B | C
  Linear dt_proj{nullptr};   // dt_rank -> d_inner, with bias
  Linear out_proj{nullptr};  // d_inner -> D
  at::Tensor A_log;          // [d_inner, d_state]; A = -exp(A_log)
  at::Tensor D;              // [d_inner]

 private:
  struct Selection {
    at::Tensor decay;      // exp(dt A)   [..., d_inner, d_state]
    at::Tensor increment;  // dt B x      [..., d_inner, d_state]
    at::Tensor c;          // C           [..., d_state]
  };
  Selection Select(const at::Tensor& x);  // x: [..., d_inner] after the convolution
  // h: [..., d_inner, d_state] -> [..., D]
  at::Tensor Read(const at::Tensor& h, const Selection& selection, const at::Tensor& x, const at::Tensor& gate);
};
TORCH_MODULE(MambaMixer);

struct MambaBlockImpl : torch::nn::Module {
  explicit MambaBlockImpl(const StrideHybridConfig& config);

  RMSNorm norm{nullptr};
  MambaMixer mixer{nullptr};
};
TORCH_MODULE(MambaBlock);

class MambaImpl : public SSMMemoryImpl {
 public:
  explicit MambaImpl(const StrideHybridConfig& config);
  SsmState InitialState(int64_t batch, const at::TensorOptions& options) const override;
  SsmResult Step(const at::Tensor& input, const SsmState& state) override;
  SsmResult Scan(const at::Tensor& inputs, const SsmState& state) override;

 private:
  const int64_t d_inner_, d_conv_, d_state_;
  std::vector<MambaBlock> blocks_;  // backbone.layers' children
  RMSNorm norm_f{nullptr};
};

}  // namespace smt
