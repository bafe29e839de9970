#include "model/layers.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/normal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/zeros.h>

#include <memory>
#include <string>
#include <utility>

namespace smt {
namespace {

thread_local bool skip_initial_values = false;

// GPT-2's initial scale.
at::Tensor Normal(at::IntArrayRef shape) {
  const at::Tensor values = at::empty(shape, at::kFloat);
  return skip_initial_values ? values : values.normal_(0.0, 0.02);
}

at::Tensor As(const at::Tensor& parameter, const at::Tensor& x) { return parameter.to(x.scalar_type()); }

}  // namespace

SkipInitialValues::SkipInitialValues() { skip_initial_values = true; }
SkipInitialValues::~SkipInitialValues() { skip_initial_values = false; }

LinearImpl::LinearImpl(int64_t in, int64_t out, bool with_bias) {
  weight = register_parameter("weight", Normal({out, in}));
  if (with_bias) bias = register_parameter("bias", at::zeros({out}));
}

at::Tensor LinearImpl::forward(const at::Tensor& x) {
  return at::linear(x, As(weight, x), bias.defined() ? As(bias, x) : bias);
}

Conv1DImpl::Conv1DImpl(int64_t in, int64_t out) {
  weight = register_parameter("weight", Normal({in, out}));
  bias = register_parameter("bias", at::zeros({out}));
}

at::Tensor Conv1DImpl::forward(const at::Tensor& x) {
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = weight.size(1);
  return at::addmm(As(bias, x), x.reshape({-1, x.size(-1)}), As(weight, x)).view(shape);
}

LayerNormImpl::LayerNormImpl(int64_t width, double epsilon) : epsilon(epsilon) {
  weight = register_parameter("weight", at::ones({width}));
  bias = register_parameter("bias", at::zeros({width}));
}

at::Tensor LayerNormImpl::forward(const at::Tensor& x) {
  return at::layer_norm(x, {x.size(-1)}, As(weight, x), As(bias, x), epsilon);
}

RMSNormImpl::RMSNormImpl(int64_t width, double epsilon) : epsilon(epsilon) {
  weight = register_parameter("weight", at::ones({width}));
}

at::Tensor RMSNormImpl::forward(const at::Tensor& x) {
  const at::Tensor mean_square = at::mean(x * x, {-1}, /*keepdim=*/true);
  return x * at::rsqrt(mean_square + epsilon) * As(weight, x);
}

EmbeddingImpl::EmbeddingImpl(int64_t rows, int64_t width) {
  weight = register_parameter("weight", Normal({rows, width}));
}

at::Tensor EmbeddingImpl::forward(const at::Tensor& ids) { return at::embedding(weight, ids); }

void ModuleListImpl::push_back(std::shared_ptr<torch::nn::Module> module) {
  register_module(std::to_string(children().size()), std::move(module));
}

}  // namespace smt
