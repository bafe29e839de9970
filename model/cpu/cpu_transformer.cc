#include "model/cpu/cpu_transformer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "model/base/status_macros.h"

namespace smt {
namespace {

constexpr int64_t kRowsAPiece = 4;  // of row-wise work given to a thread at once

template <typename Body>
void ForRows(ops::ThreadPool& pool, int64_t rows, const Body& body) {
  pool.For((rows + kRowsAPiece - 1) / kRowsAPiece, [&](int64_t piece) {
    const int64_t end = std::min(rows, (piece + 1) * kRowsAPiece);
    for (int64_t i = piece * kRowsAPiece; i < end; ++i) body(i);
  });
}

}  // namespace

CpuTransformer::CpuTransformer(const StrideHybridConfig& config)
    : d_(config.d_model),
      n_(config.n_ssm_outputs),
      heads_(config.transformer.n_head),
      head_dim_(config.head_dim()),
      n_layer_(config.transformer.n_layer),
      inner_(config.mlp_width()),
      padded_((config.window() + 15) / 16 * 16),
      epsilon_(static_cast<float>(config.transformer.layer_norm_epsilon)),
      activation_(config.transformer.kind == TransformerKind::kGpt2 ? ops::Activation::kGelu : ops::Activation::kRelu) {
}

absl::StatusOr<std::unique_ptr<CpuTransformer>> CpuTransformer::Create(const StrideHybridConfig& config,
                                                                       const WeightSource& source, bool bf16) {
  std::unique_ptr<CpuTransformer> model(new CpuTransformer(config));
  const bool gpt2 = config.transformer.kind == TransformerKind::kGpt2;
  const int64_t d = model->d_;
  ASSIGN_OR_RETURN(model->positions_, source("transformer.wpe.weight", {config.transformer.n_positions, d}));
  model->positions_.resize(static_cast<size_t>(config.window() * d));
  if (bf16) {
    for (float& x : model->positions_) x = ops::FromBf16(ops::ToBf16(x));
  }
  for (int64_t i = 0; i < model->n_layer_; ++i) {
    const std::string prefix = "transformer.h." + std::to_string(i) + ".";
    ASSIGN_OR_RETURN(Layer layer,
                     gpt2 ? model->LoadGpt2Layer(source, prefix, bf16) : model->LoadSimpleLayer(source, prefix, bf16));
    model->layers_.push_back(std::move(layer));
  }
  ASSIGN_OR_RETURN(model->norm_f_.weight, source(gpt2 ? "transformer.ln_f.weight" : "transformer.norm_f.weight", {d}));
  if (gpt2) {
    ASSIGN_OR_RETURN(model->norm_f_.bias, source("transformer.ln_f.bias", {d}));
  }
  return model;
}

absl::StatusOr<CpuTransformer::Layer> CpuTransformer::LoadGpt2Layer(const WeightSource& source,
                                                                    const std::string& prefix, bool bf16) const {
  // GPT-2's Conv1D layout: weight [in, out].
  const auto linear = [&](const std::string& name, int64_t k, int64_t n) -> absl::StatusOr<ops::PackedLinear> {
    ASSIGN_OR_RETURN(const std::vector<float> weight, source(prefix + name + ".weight", {k, n}));
    ASSIGN_OR_RETURN(const std::vector<float> bias, source(prefix + name + ".bias", {n}));
    return ops::PackedLinear(weight.data(), k, n, n, 1, bias.data(), bf16);
  };
  Layer layer;
  ASSIGN_OR_RETURN(layer.norm_1.weight, source(prefix + "ln_1.weight", {d_}));
  ASSIGN_OR_RETURN(layer.norm_1.bias, source(prefix + "ln_1.bias", {d_}));
  ASSIGN_OR_RETURN(layer.norm_2.weight, source(prefix + "ln_2.weight", {d_}));
  ASSIGN_OR_RETURN(layer.norm_2.bias, source(prefix + "ln_2.bias", {d_}));
  ASSIGN_OR_RETURN(layer.qkv, linear("attn.c_attn", d_, 3 * d_));
  ASSIGN_OR_RETURN(layer.proj, linear("attn.c_proj", d_, d_));
  ASSIGN_OR_RETURN(layer.fc, linear("mlp.c_fc", d_, inner_));
  ASSIGN_OR_RETURN(layer.mlp_proj, linear("mlp.c_proj", inner_, d_));
  return layer;
}

absl::StatusOr<CpuTransformer::Layer> CpuTransformer::LoadSimpleLayer(const WeightSource& source,
                                                                      const std::string& prefix, bool bf16) const {
  // [out, in], no biases; one norm used twice.
  const auto linear = [&](const std::string& name, int64_t k, int64_t n) -> absl::StatusOr<ops::PackedLinear> {
    ASSIGN_OR_RETURN(const std::vector<float> weight, source(prefix + name + ".weight", {n, k}));
    return ops::PackedLinear(weight.data(), k, n, 1, k, nullptr, bf16);
  };
  std::vector<float> qkv;  // [3 D, D]
  for (const char* part : {"query", "key", "value"}) {
    ASSIGN_OR_RETURN(const std::vector<float> weight, source(prefix + "attn." + part + ".weight", {d_, d_}));
    qkv.insert(qkv.end(), weight.begin(), weight.end());
  }
  Layer layer;
  ASSIGN_OR_RETURN(layer.norm_1.weight, source(prefix + "norm.weight", {d_}));
  layer.norm_2 = layer.norm_1;
  layer.qkv = ops::PackedLinear(qkv.data(), d_, 3 * d_, 1, d_, nullptr, bf16);
  ASSIGN_OR_RETURN(layer.proj, linear("attn.out", d_, d_));
  ASSIGN_OR_RETURN(layer.fc, linear("mlp.up", d_, inner_));
  ASSIGN_OR_RETURN(layer.mlp_proj, linear("mlp.down", inner_, d_));
  return layer;
}

void CpuTransformer::Normalize(const ops::Kernels& kernels, const Norm& norm, const float* x, float* y) const {
  if (norm.bias.empty()) {
    kernels.rms_norm(x, norm.weight.data(), d_, epsilon_, y);
  } else {
    kernels.layer_norm(x, norm.weight.data(), norm.bias.data(), d_, epsilon_, y);
  }
}

void CpuTransformer::StoreKeysAndValues(const Row& row, int64_t layer, const float* qkv) const {
  float* key_column = keys(row.cache, layer) + row.column;  // transposed: [D, padded]
  for (int64_t e = 0; e < d_; ++e) key_column[e * padded_] = qkv[d_ + e];
  std::memcpy(values(row.cache, layer) + row.column * d_, qkv + 2 * d_, static_cast<size_t>(d_) * sizeof(float));
}

void CpuTransformer::Run(const ops::Kernels& kernels, ops::ThreadPool& pool, std::span<const Row> rows, Scratch& x,
                         float* out, int64_t out_stride) {
  int64_t count = static_cast<int64_t>(rows.size());
  normed_.Resize(count, d_);
  qkv_.Resize(count, 3 * d_);
  attended_.Resize(count, d_);
  inner_rows_.Resize(count, inner_);
  attention_.Resize(count, heads_ * (padded_ + 1));
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim_));

  for (int64_t l = 0; l < n_layer_; ++l) {
    const Layer& layer = layers_[static_cast<size_t>(l)];
    ForRows(pool, count, [&](int64_t i) {
      if (l == 0) kernels.add(x.row(i), positions_.data() + rows[i].column * d_, d_, x.row(i));
      Normalize(kernels, layer.norm_1, x.row(i), normed_.row(i));
    });
    layer.qkv.Forward(kernels, pool, normed_.data(), normed_.stride(), count, qkv_.data(), qkv_.stride());
    ForRows(pool, count, [&](int64_t i) { StoreKeysAndValues(rows[i], l, qkv_.row(i)); });
    if (l + 1 == n_layer_) {
      // The last layer's keys and values are all that later columns need of the other rows.
      kept_.clear();
      for (int64_t i = 0; i < count; ++i) {
        if (!rows[i].wanted) continue;
        const int64_t to = static_cast<int64_t>(kept_.size());
        if (to != i) {
          std::memcpy(x.row(to), x.row(i), static_cast<size_t>(d_) * sizeof(float));
          std::memcpy(qkv_.row(to), qkv_.row(i), static_cast<size_t>(d_) * sizeof(float));
        }
        kept_.push_back(rows[i]);
      }
      rows = kept_;
      count = static_cast<int64_t>(kept_.size());
    }
    ForRows(pool, count, [&](int64_t i) {
      const Row& row = rows[i];
      kernels.attention({.q = qkv_.row(i),
                         .keys = keys(row.cache, l),
                         .values = values(row.cache, l),
                         .heads = heads_,
                         .head_dim = head_dim_,
                         .padded = padded_,
                         .memory_valid = row.memory_valid,
                         .n = n_,
                         .position = row.column,
                         .scale = scale,
                         .scratch = attention_.row(i),
                         .out = attended_.row(i)});
    });
    layer.proj.Forward(kernels, pool, attended_.data(), attended_.stride(), count, x.data(), x.stride(),
                       ops::Activation::kNone, x.data(), x.stride());
    ForRows(pool, count, [&](int64_t i) { Normalize(kernels, layer.norm_2, x.row(i), normed_.row(i)); });
    layer.fc.Forward(kernels, pool, normed_.data(), normed_.stride(), count, inner_rows_.data(), inner_rows_.stride(),
                     activation_);
    layer.mlp_proj.Forward(kernels, pool, inner_rows_.data(), inner_rows_.stride(), count, x.data(), x.stride(),
                           ops::Activation::kNone, x.data(), x.stride());
  }
  ForRows(pool, count, [&](int64_t i) { Normalize(kernels, norm_f_, x.row(i), out + i * out_stride); });
}

}  // namespace smt
