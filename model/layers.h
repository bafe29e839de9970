// The layers that both the transformers and the SSMs are made of. Unlike torch::nn's they take their compute type from
// the input: parameters are cast to it where they differ, so float32 parameters can train under a bfloat16 window.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>

namespace smt {

// While one lives, this thread's new layers leave their matrices uninitialised: a checkpoint is about to fill them.
class SkipInitialValues {
 public:
  SkipInitialValues();
  ~SkipInitialValues();
};

// y = x W^T + b.
struct LinearImpl : torch::nn::Module {
  LinearImpl(int64_t in, int64_t out, bool with_bias);
  at::Tensor forward(const at::Tensor& x);  // [..., in] -> [..., out]

  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out], undefined without bias
};
TORCH_MODULE(Linear);

// GPT-2's layout of the same: y = x W + b.
struct Conv1DImpl : torch::nn::Module {
  Conv1DImpl(int64_t in, int64_t out);
  at::Tensor forward(const at::Tensor& x);  // [..., in] -> [..., out]

  at::Tensor weight;  // [in, out]
  at::Tensor bias;    // [out]
};
TORCH_MODULE(Conv1D);

struct LayerNormImpl : torch::nn::Module {
  LayerNormImpl(int64_t width, double epsilon);
  at::Tensor forward(const at::Tensor& x);  // over the last dimension

  const double epsilon;
  at::Tensor weight, bias;  // [width]
};
TORCH_MODULE(LayerNorm);

// x / sqrt(mean(x^2) + epsilon) * weight.
struct RMSNormImpl : torch::nn::Module {
  RMSNormImpl(int64_t width, double epsilon);
  at::Tensor forward(const at::Tensor& x);  // over the last dimension

  const double epsilon;
  at::Tensor weight;  // [width]
};
TORCH_MODULE(RMSNorm);

struct EmbeddingImpl : torch::nn::Module {
  EmbeddingImpl(int64_t rows, int64_t width);
  at::Tensor forward(const at::Tensor& ids);  // int64 [...] -> [..., width]

  at::Tensor weight;  // [rows, width]
};
TORCH_MODULE(Embedding);

// A list of modules, children named "0", "1", ...; like torch::nn::ModuleList without its cost to compile.
struct ModuleListImpl : torch::nn::Module {
  void push_back(std::shared_ptr<torch::nn::Module> module);
};
TORCH_MODULE(ModuleList);

}  // namespace smt
