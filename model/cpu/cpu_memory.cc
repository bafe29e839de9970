// Pooling in its absorbed form: the scores q . (Wk x_i) / sqrt(D) are (Wk^T q) . x_i / sqrt(D), so the keys of the
// window are never formed; a write costs two products of one row instead of W + 1.
#include "model/cpu/cpu_memory.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "model/base/status_macros.h"

namespace smt {
namespace {

constexpr int64_t kChannelsAPiece = 64;

template <typename Body>
void ForChannels(ops::ThreadPool& pool, int64_t channels, const Body& body) {
  pool.For((channels + kChannelsAPiece - 1) / kChannelsAPiece,
           [&](int64_t piece) { body(piece * kChannelsAPiece, std::min(channels, (piece + 1) * kChannelsAPiece)); });
}

}  // namespace

CpuMemory::CpuMemory(const StrideHybridConfig& config)
    : d_(config.d_model),
      d_inner_(config.d_inner()),
      d_state_(config.ssm.d_state),
      d_conv_(config.ssm.d_conv),
      dt_rank_(config.dt_rank()),
      n_layer_(config.ssm.n_layer),
      epsilon_(static_cast<float>(config.ssm.rms_norm_epsilon)) {}

namespace {

// An [n, k] matrix.
absl::StatusOr<ops::PackedLinear> LoadLinear(const WeightSource& source, const std::string& name, int64_t k, int64_t n,
                                             const std::vector<float>& bias = {}) {
  ASSIGN_OR_RETURN(const std::vector<float> weight, source(name, {n, k}));
  return ops::PackedLinear(weight.data(), k, n, 1, k, bias.empty() ? nullptr : bias.data());
}

}  // namespace

absl::StatusOr<std::unique_ptr<CpuMemory>> CpuMemory::Create(const StrideHybridConfig& config,
                                                             const WeightSource& source) {
  std::unique_ptr<CpuMemory> model(new CpuMemory(config));
  const int64_t d = model->d_;
  ASSIGN_OR_RETURN(model->query_, LoadLinear(source, "pooling.query.weight", d, d));
  ASSIGN_OR_RETURN(const std::vector<float> key, source("pooling.key.weight", {d, d}));
  model->key_transposed_ = ops::PackedLinear(key.data(), d, d, d, 1, nullptr);
  RETURN_IF_ERROR(config.ssm.kind == SsmKind::kMamba ? model->LoadMamba(source) : model->LoadSimple(source));
  return model;
}

absl::Status CpuMemory::LoadMamba(const WeightSource& source) {
  const std::string root = "ssm.backbone.";
  for (int64_t i = 0; i < n_layer_; ++i) {
    const std::string at = root + "layers." + std::to_string(i) + ".";
    const std::string mixer = at + "mixer.";
    MambaLayer layer;
    ASSIGN_OR_RETURN(layer.norm, source(at + "norm.weight", {d_}));
    ASSIGN_OR_RETURN(layer.in_proj, LoadLinear(source, mixer + "in_proj.weight", d_, 2 * d_inner_));
    ASSIGN_OR_RETURN(layer.conv_weight, source(mixer + "conv1d.weight", {d_inner_, 1, d_conv_}));
    ASSIGN_OR_RETURN(layer.conv_bias, source(mixer + "conv1d.bias", {d_inner_}));
    ASSIGN_OR_RETURN(layer.x_proj, LoadLinear(source, mixer + "x_proj.weight", d_inner_, dt_rank_ + 2 * d_state_));
    ASSIGN_OR_RETURN(const std::vector<float> dt_bias, source(mixer + "dt_proj.bias", {d_inner_}));
    ASSIGN_OR_RETURN(layer.dt_proj, LoadLinear(source, mixer + "dt_proj.weight", dt_rank_, d_inner_, dt_bias));
    ASSIGN_OR_RETURN(layer.a, source(mixer + "A_log", {d_inner_, d_state_}));
    for (float& a : layer.a) a = -static_cast<float>(std::exp(static_cast<double>(a)));
    ASSIGN_OR_RETURN(layer.skip, source(mixer + "D", {d_inner_}));
    ASSIGN_OR_RETURN(layer.out_proj, LoadLinear(source, mixer + "out_proj.weight", d_inner_, d_));
    mamba_.push_back(std::move(layer));
  }
  ASSIGN_OR_RETURN(norm_f_, source(root + "norm_f.weight", {d_}));
  return absl::OkStatus();
}

absl::Status CpuMemory::LoadSimple(const WeightSource& source) {
  for (int64_t i = 0; i < n_layer_; ++i) {
    const std::string at = "ssm.layers." + std::to_string(i) + ".";
    SimpleLayer layer;
    ASSIGN_OR_RETURN(layer.in_proj, LoadLinear(source, at + "in_proj.weight", d_, d_));
    ASSIGN_OR_RETURN(layer.out_proj, LoadLinear(source, at + "out_proj.weight", d_, d_));
    ASSIGN_OR_RETURN(layer.decay, source(at + "decay", {d_}));
    for (float& x : layer.decay) x = static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(x))));
    ASSIGN_OR_RETURN(layer.skip, source(at + "skip", {d_}));
    simple_.push_back(std::move(layer));
  }
  return absl::OkStatus();
}

void CpuMemory::Pool(const ops::Kernels& kernels, ops::ThreadPool& pool, std::span<const Write> writes) {
  const int64_t count = static_cast<int64_t>(writes.size());
  const float scale = 1.0f / std::sqrt(static_cast<float>(d_));
  pool.For(count, [&](int64_t i) {
    kernels.weighted_sum(writes[i].rows, nullptr, writes[i].count, d_, normed_.row(i));  // the mean
  });
  query_.Forward(kernels, pool, normed_.data(), normed_.stride(), count, query_rows_.data(), query_rows_.stride());
  key_transposed_.Forward(kernels, pool, query_rows_.data(), query_rows_.stride(), count, key_rows_.data(),
                          key_rows_.stride());
  pool.For(count, [&](int64_t i) {
    const Write& write = writes[i];
    for (int64_t r = 0; r < write.count; ++r) {
      write.weights[r] = kernels.dot(key_rows_.row(i), write.rows + r * d_, d_);
    }
    kernels.softmax(write.weights, write.count, scale);
    kernels.weighted_sum(write.rows, write.weights, write.count, d_, x_.row(i));
  });
}

void CpuMemory::RunMambaLayer(const ops::Kernels& kernels, ops::ThreadPool& pool, std::span<const Write> writes,
                              int64_t l) {
  const MambaLayer& layer = mamba_[static_cast<size_t>(l)];
  const int64_t count = static_cast<int64_t>(writes.size());
  for (int64_t i = 0; i < count; ++i) {
    kernels.rms_norm(x_.row(i), layer.norm.data(), d_, epsilon_, normed_.row(i));
  }
  layer.in_proj.Forward(kernels, pool, normed_.data(), normed_.stride(), count, xz_.data(), xz_.stride());
  ForChannels(pool, d_inner_, [&](int64_t first, int64_t last) {
    for (int64_t i = 0; i < count; ++i) {
      kernels.conv({.x = xz_.row(i),
                    .weight = layer.conv_weight.data(),
                    .bias = layer.conv_bias.data(),
                    .state = writes[i].conv + l * d_inner_ * d_conv_,
                    .d_conv = d_conv_,
                    .y = convolved_.row(i)},
                   first, last);
    }
  });
  layer.x_proj.Forward(kernels, pool, convolved_.data(), convolved_.stride(), count, parameters_.data(),
                       parameters_.stride());
  layer.dt_proj.Forward(kernels, pool, parameters_.data(), parameters_.stride(), count, dt_.data(), dt_.stride(),
                        ops::Activation::kSoftplus);
  ForChannels(pool, d_inner_, [&](int64_t first, int64_t last) {
    for (int64_t i = 0; i < count; ++i) {
      const float* parameters = parameters_.row(i);  // dt_rank, then B, then C
      kernels.scan({.x = convolved_.row(i),
                    .dt = dt_.row(i),
                    .a = layer.a.data(),
                    .b = parameters + dt_rank_,
                    .c = parameters + dt_rank_ + d_state_,
                    .d = layer.skip.data(),
                    .gate = xz_.row(i) + d_inner_,
                    .state = writes[i].state + l * d_inner_ * d_state_,
                    .d_state = d_state_,
                    .y = scanned_.row(i)},
                   first, last);
    }
  });
  layer.out_proj.Forward(kernels, pool, scanned_.data(), scanned_.stride(), count, x_.data(), x_.stride(),
                         ops::Activation::kNone, x_.data(), x_.stride());
}

void CpuMemory::RunSimpleLayer(const ops::Kernels& kernels, ops::ThreadPool& pool, std::span<const Write> writes,
                               int64_t l) {
  const SimpleLayer& layer = simple_[static_cast<size_t>(l)];
  const int64_t count = static_cast<int64_t>(writes.size());
  layer.in_proj.Forward(kernels, pool, x_.data(), x_.stride(), count, normed_.data(), normed_.stride());
  for (int64_t i = 0; i < count; ++i) {
    float* h = writes[i].state + l * d_;
    kernels.diagonal(layer.decay.data(), h, normed_.row(i), d_, h);
    std::copy(h, h + d_, normed_.row(i));
    kernels.diagonal(layer.skip.data(), x_.row(i), x_.row(i), d_, x_.row(i));
  }
  layer.out_proj.Forward(kernels, pool, normed_.data(), normed_.stride(), count, x_.data(), x_.stride(),
                         ops::Activation::kNone, x_.data(), x_.stride());
}

void CpuMemory::Run(const ops::Kernels& kernels, ops::ThreadPool& pool, std::span<const Write> writes) {
  const int64_t count = static_cast<int64_t>(writes.size());
  for (Scratch* rows : {&x_, &normed_, &query_rows_, &key_rows_}) rows->Resize(count, d_);
  Pool(kernels, pool, writes);
  if (mamba_.empty()) {
    for (int64_t l = 0; l < n_layer_; ++l) RunSimpleLayer(kernels, pool, writes, l);
    for (int64_t i = 0; i < count; ++i) std::copy(x_.row(i), x_.row(i) + d_, writes[i].output);
    return;
  }
  for (Scratch* rows : {&convolved_, &dt_, &scanned_}) rows->Resize(count, d_inner_);
  xz_.Resize(count, 2 * d_inner_);
  parameters_.Resize(count, dt_rank_ + 2 * d_state_);
  for (int64_t l = 0; l < n_layer_; ++l) RunMambaLayer(kernels, pool, writes, l);
  for (int64_t i = 0; i < count; ++i) {
    kernels.rms_norm(x_.row(i), norm_f_.data(), d_, epsilon_, writes[i].output);
  }
}

}  // namespace smt
