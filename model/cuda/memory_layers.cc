#include "model/cuda/memory_layers.h"

#include <algorithm>

namespace smt::cuda {
namespace {

// From so many rows on, a kernel that sums parameters once pays (measured on an H200).
constexpr int kRowsReadOften = 64;

}  // namespace

MemoryLayers::MemoryLayers(const StrideHybridConfig& config, const CudaWeights* weights, int rows, cudaStream_t stream)
    : weights_(*weights),
      rows_(rows),
      d_(static_cast<int>(config.d_model)),
      m_(static_cast<int>(config.m_input_tokens)),
      n_(static_cast<int>(config.n_ssm_outputs)),
      shape_{.d_inner = static_cast<int>(config.d_inner()),
             .d_state = static_cast<int>(config.ssm.d_state),
             .d_conv = static_cast<int>(config.ssm.d_conv),
             .dt_rank = static_cast<int>(config.dt_rank())},
      epsilon_(static_cast<float>(config.ssm.rms_norm_epsilon)),
      stream_(stream),
      ld_(Padded(d_)),
      ld_inner_(Padded(shape_.d_inner)),
      ld_xz_(Padded(2 * static_cast<int64_t>(shape_.d_inner))),
      // dt_proj reads Padded(dt_rank) of these columns; its weights are zero past dt_rank.
      ld_parameters_(Padded(shape_.dt_rank + 2 * static_cast<int64_t>(shape_.d_state))) {
  const auto floats = [rows](int64_t columns) {
    return DeviceMemory(static_cast<size_t>(rows) * static_cast<size_t>(columns) * sizeof(float));
  };
  scores_ = floats(n_ + m_);
  for (DeviceMemory* each : {&x_, &normed_, &query_, &key_}) *each = floats(ld_);
  const bool split = weights_.query.type == Type::kSplit;
  if (split) tickets_ = DeviceMemory(sizeof(uint32_t));
  if (split) scratch_ = floats(std::max(ld_, ld_parameters_));
  if (weights_.mamba.empty()) return;
  if (split) {
    split_normed_ = floats(ld_);
    split_inner_ = floats(ld_inner_);
  }
  xz_ = floats(ld_xz_);
  for (DeviceMemory* each : {&convolved_, &dt_, &scanned_}) *each = floats(ld_inner_);
  parameters_ = floats(ld_parameters_);
}

int64_t MemoryLayers::BytesPerRow(const StrideHybridConfig& config) {
  const int64_t ld = Padded(config.d_model), ld_inner = Padded(config.d_inner());
  const int64_t ld_parameters = Padded(config.dt_rank() + 2 * config.ssm.d_state);
  const int64_t columns = config.window() + 4 * ld + Padded(2 * config.d_inner()) + 3 * ld_inner + ld_parameters;
  return static_cast<int64_t>(sizeof(float)) * (columns + std::max(ld, ld_parameters) + ld + ld_inner);
}

Pooling MemoryLayers::Pool(const Write* writes, const int32_t* ids, int count, const SlotMemory& slots) const {
  return {.writes = writes,
          .ids = ids,
          .count = count,
          .m = m_,
          .n = n_,
          .d = d_,
          .slots = slots,
          .embedding_type = weights_.embedding_type,
          .embeddings = weights_.embeddings,
          .ld_embeddings = weights_.ld_embeddings};
}

const float* MemoryLayers::outputs() const { return weights_.mamba.empty() ? x_.as<float>() : normed_.as<float>(); }

WritePassCall MemoryLayers::AtOnce(const Pooling& pooling) const {
  return {.pooling = pooling,
          .query = weights_.query,
          .key_transposed = weights_.key_transposed,
          .layers = nullptr,
          .layer_count = static_cast<int>(weights_.mamba.size()),
          .norm_f = weights_.ssm_norm,
          .epsilon = epsilon_,
          .shape = shape_,
          .x = x_.as<float>(),
          .normed = normed_.as<float>(),
          .query_rows = query_.as<float>(),
          .key_rows = key_.as<float>(),
          .scores = nullptr,
          .pool_weights = nullptr,
          .xz = xz_.as<float>(),
          .convolved = convolved_.as<float>(),
          .scanned = scanned_.as<float>(),
          .parameters = parameters_.as<float>(),
          .ld = ld_,
          .ld_xz = ld_xz_,
          .ld_inner = ld_inner_,
          .ld_parameters = ld_parameters_,
          .work_bytes = 0,
          .ring_bytes = 0,
          .exchange = nullptr,
          .tag = 0};
}

LinearCall MemoryLayers::CallOf(const Rows& x, const DeviceMemory& y, int64_t ldy, int rows, const float* residual,
                                Activation activation) const {
  return {.x = x.floats,
          .ldx = x.ld,
          .rows = rows,
          .y = y.data(),
          .ldy = ldy,
          .float_output = true,
          .residual = residual,
          .activation = activation,
          .scratch = scratch_.data(),
          .tickets = tickets_.as<uint32_t>(),
          .split = x.split};
}

void MemoryLayers::Product(const Linear& linear, const Rows& x, const DeviceMemory& y, int64_t ldy, int rows,
                           const float* residual, Activation activation) {
  RunLinear(linear, CallOf(x, y, ldy, rows, residual, activation), stream_);
}

void MemoryLayers::RunMambaLayer(const Pooling& pooling, int layer, const Recurrence& recurrence) {
  const MambaWeights& weights = weights_.mamba[static_cast<size_t>(layer)];
  const int count = pooling.count;
  Rows normed = Floats(normed_, ld_), convolved = Floats(convolved_, ld_inner_), scanned = Floats(scanned_, ld_inner_);
  const bool split = weights.in_proj.type == Type::kSplit && count > kMaxFewRows;
  if (split) {
    normed.split = Split(split_normed_, ld_);
    convolved.split = scanned.split = Split(split_inner_, ld_inner_);  // one is read before the other is made
    NormalizeSplit(x_.as<float>(), ld_, count, d_, weights.norm, epsilon_, normed.split, ld_, stream_);
  } else {
    Normalize(Type::kFloat32, x_.as<float>(), ld_, nullptr, count, d_, weights.norm, nullptr, epsilon_, normed_.data(),
              ld_, stream_);
  }
  Product(weights.in_proj, normed, xz_, ld_xz_, count);
  recurrence.conv(pooling, shape_, layer, xz_.as<float>(), ld_xz_, weights.conv_weight, weights.conv_bias,
                  convolved_.as<float>(), ld_inner_, convolved.split, stream_);
  Product(weights.x_proj, convolved, parameters_, ld_parameters_, count);
  if (split && recurrence.step != nullptr && CanRunMambaStep(weights.dt_proj, shape_)) {
    recurrence.step(pooling, shape_, layer, weights.dt_proj, convolved_.as<float>(), ld_inner_, parameters_.as<float>(),
                    ld_parameters_, {}, weights.a, weights.skip, xz_.as<float>(), ld_xz_, scanned.split, ld_inner_,
                    stream_);
  } else {
    Product(weights.dt_proj, Floats(parameters_, ld_parameters_), dt_, ld_inner_, count, nullptr,
            Activation::kSoftplus);
    recurrence.scan(pooling, shape_, layer, convolved_.as<float>(), ld_inner_, dt_.as<float>(), ld_inner_,
                    parameters_.as<float>(), ld_parameters_, weights.a, weights.skip, xz_.as<float>(), ld_xz_,
                    scanned_.as<float>(), ld_inner_, scanned.split, stream_);
  }
  Product(weights.out_proj, scanned, x_, ld_, count, x_.as<float>());
}

void MemoryLayers::ReserveAddends() {
  if (weights_.mamba.empty() || weights_.query.type != Type::kSplit || !CanLeaveAddends() || !CanFinishRows(d_) ||
      !CanFinishConv(shape_) || !CanRunMambaStep(weights_.mamba[0].dt_proj, shape_)) {
    return;
  }
  addends_ = DeviceMemory(kAddendRoomBytes);
}

Addends MemoryLayers::ProductApart(const Linear& linear, const Rows& x, const DeviceMemory& y, int64_t ldy, int rows,
                                   const float* residual) {
  return RunLinearApart(linear, CallOf(x, y, ldy, rows, residual, Activation::kNone),
                        {addends_.as<float>(), static_cast<int64_t>(addends_.bytes() / sizeof(float))}, stream_);
}

// What a product leaves is read before the next one begins: all share the room.
void MemoryLayers::RunMambaLayersApart(const Pooling& pooling) {
  const int count = pooling.count;
  const SplitRows normed = Split(split_normed_, ld_), inner = Split(split_inner_, ld_inner_);
  const Rows normed_rows = {nullptr, ld_, normed}, inner_rows = {nullptr, ld_inner_, inner};
  float *const x = x_.as<float>(), *const xz = xz_.as<float>();
  Addends left;  // of the layer before
  for (size_t l = 0; l < weights_.mamba.size(); ++l) {
    const MambaWeights& weights = weights_.mamba[l];
    const int layer = static_cast<int>(l);
    FinishAndNormalizeSplit(left, x, ld_, count, d_, weights.norm, epsilon_, normed, ld_, stream_);
    const Addends in = ProductApart(weights.in_proj, normed_rows, xz_, ld_xz_, count);
    FinishAndConvolve(pooling, shape_, layer, in, xz, ld_xz_, weights.conv_weight, weights.conv_bias,
                      convolved_.as<float>(), ld_inner_, inner, stream_);
    Addends parameters = ProductApart(weights.x_proj, inner_rows, parameters_, ld_parameters_, count);
    if (count > kRowsReadOften && parameters.count > 0) {  // a row's are read by each block of channels
      SumAddends(parameters, count, weights.x_proj.n, parameters_.as<float>(), ld_parameters_, stream_);
      parameters = {};
    }
    MambaStep(pooling, shape_, layer, weights.dt_proj, convolved_.as<float>(), ld_inner_, parameters_.as<float>(),
              ld_parameters_, parameters, weights.a, weights.skip, xz, ld_xz_, inner, ld_inner_, stream_);
    left = ProductApart(weights.out_proj, inner_rows, x_, ld_, count, x);
  }
  FinishAndNormalize(Type::kFloat32, left, nullptr, x, ld_, nullptr, count, d_, {weights_.ssm_norm, nullptr}, epsilon_,
                     normed_.data(), ld_, stream_);
}

void MemoryLayers::RunSimpleLayer(const Pooling& pooling, int layer, const Recurrence& recurrence) {
  const SimpleSsmWeights& weights = weights_.simple[static_cast<size_t>(layer)];
  Product(weights.in_proj, Floats(x_, ld_), normed_, ld_, pooling.count);
  recurrence.simple(pooling, layer, weights.decay, weights.skip, x_.as<float>(), ld_, normed_.as<float>(), ld_,
                    query_.as<float>(), ld_, stream_);
  Product(weights.out_proj, Floats(query_, ld_), x_, ld_, pooling.count, x_.as<float>());
}

void MemoryLayers::Run(const Pooling& pooling, float* pool_weights, const Recurrence& recurrence) {
  PoolMean(pooling, normed_.as<float>(), ld_, stream_);
  Product(weights_.query, Floats(normed_, ld_), query_, ld_, pooling.count);
  Product(weights_.key_transposed, Floats(query_, ld_), key_, ld_, pooling.count);
  PoolAttend(pooling, key_.as<float>(), ld_, scores_.as<float>(), pool_weights, x_.as<float>(), ld_, stream_);
  for (size_t l = 0; l < weights_.simple.size(); ++l) RunSimpleLayer(pooling, static_cast<int>(l), recurrence);
  if (recurrence.step != nullptr && CanRunApart(pooling.count)) {
    RunMambaLayersApart(pooling);
    return recurrence.push(pooling, outputs(), ld_, stream_);
  }
  for (size_t l = 0; l < weights_.mamba.size(); ++l) RunMambaLayer(pooling, static_cast<int>(l), recurrence);
  if (!weights_.mamba.empty()) {
    Normalize(Type::kFloat32, x_.as<float>(), ld_, nullptr, pooling.count, d_, weights_.ssm_norm, nullptr, epsilon_,
              normed_.data(), ld_, stream_);
  }
  recurrence.push(pooling, outputs(), ld_, stream_);
}

}  // namespace smt::cuda
