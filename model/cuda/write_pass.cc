#include "model/cuda/write_pass.h"

#include <algorithm>
#include <cstring>

namespace smt::cuda {
namespace {

constexpr int kMaxGraphWrites = 128;  // above, the device is busy for longer than launching takes

}  // namespace

WritePass::WritePass(const StrideHybridConfig& config, const CudaWeights* weights, cudaStream_t stream)
    : weights_(*weights),
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
      ld_parameters_(Padded(shape_.dt_rank + 2 * static_cast<int64_t>(shape_.d_state))),
      graphs_(stream) {
  const auto floats = [](int64_t columns) {
    return DeviceMemory(static_cast<size_t>(kMaxWrites * columns) * sizeof(float));
  };
  plan_ = DeviceMemory(kMaxWrites * (sizeof(Write) + static_cast<size_t>(m_) * sizeof(int32_t)));
  pool_weights_ = floats(n_ + m_);
  for (DeviceMemory* rows : {&x_, &normed_, &query_, &key_}) *rows = floats(ld_);
  if (weights->query.type == Type::kSplit) scratch_ = floats(std::max({ld_, ld_inner_, ld_parameters_}));
  if (weights_.mamba.empty()) return;
  xz_ = floats(ld_xz_);
  for (DeviceMemory* rows : {&convolved_, &dt_, &scanned_}) *rows = floats(ld_inner_);
  parameters_ = floats(ld_parameters_);
  if (weights->query.type != Type::kSplit) return;
  at_once_ = CanRunWritePass(AtOnce({.m = m_, .n = n_, .d = d_}));
  if (!at_once_) return;
  scores_ = floats(n_ + m_);
  layers_ = DeviceMemory(weights_.mamba.size() * sizeof(MambaWeights));
  CheckCuda(cudaMemcpy(layers_.data(), weights_.mamba.data(), layers_.bytes(), cudaMemcpyHostToDevice),
            "uploading the layers");
  arrived_ = DeviceMemory(sizeof(uint32_t));
  arrivals_ = {arrived_.as<uint32_t>(), 0};
}

WritePassCall WritePass::AtOnce(const Pooling& pooling) const {
  return {.pooling = pooling,
          .query = weights_.query,
          .key_transposed = weights_.key_transposed,
          .layers = layers_.as<MambaWeights>(),
          .layer_count = static_cast<int>(weights_.mamba.size()),
          .norm_f = weights_.ssm_norm,
          .epsilon = epsilon_,
          .shape = shape_,
          .x = x_.as<float>(),
          .normed = normed_.as<float>(),
          .query_rows = query_.as<float>(),
          .key_rows = key_.as<float>(),
          .scores = scores_.as<float>(),
          .pool_weights = pool_weights_.as<float>(),
          .xz = xz_.as<float>(),
          .convolved = convolved_.as<float>(),
          .scanned = scanned_.as<float>(),
          .parameters = parameters_.as<float>(),
          .ld = ld_,
          .ld_xz = ld_xz_,
          .ld_inner = ld_inner_,
          .ld_parameters = ld_parameters_,
          .work_bytes = 0,
          .ring_bytes = 0};
}

void WritePass::Product(const Linear& linear, const DeviceMemory& x, int64_t ldx, const DeviceMemory& y, int64_t ldy,
                        int rows, const float* residual, Activation activation) {
  RunLinear(linear,
            {.x = x.data(),
             .ldx = ldx,
             .rows = rows,
             .y = y.data(),
             .ldy = ldy,
             .float_output = true,
             .residual = residual,
             .activation = activation,
             .scratch = scratch_.data()},
            stream_);
}

void WritePass::RunMambaLayer(const Pooling& pooling, int layer) {
  const MambaWeights& weights = weights_.mamba[static_cast<size_t>(layer)];
  const int count = pooling.count;
  Normalize(Type::kFloat32, x_.as<float>(), ld_, nullptr, count, d_, weights.norm, nullptr, epsilon_, normed_.data(),
            ld_, stream_);
  Product(weights.in_proj, normed_, ld_, xz_, ld_xz_, count);
  MambaConv(pooling, shape_, layer, xz_.as<float>(), ld_xz_, weights.conv_weight, weights.conv_bias,
            convolved_.as<float>(), ld_inner_, stream_);
  Product(weights.x_proj, convolved_, ld_inner_, parameters_, ld_parameters_, count);
  Product(weights.dt_proj, parameters_, ld_parameters_, dt_, ld_inner_, count, nullptr, Activation::kSoftplus);
  MambaScan(pooling, shape_, layer, convolved_.as<float>(), ld_inner_, dt_.as<float>(), ld_inner_,
            parameters_.as<float>(), ld_parameters_, weights.a, weights.skip, xz_.as<float>(), ld_xz_,
            scanned_.as<float>(), ld_inner_, stream_);
  Product(weights.out_proj, scanned_, ld_inner_, x_, ld_, count, x_.as<float>());
}

void WritePass::Run(std::span<const Write> writes, std::span<const int32_t> ids, const SlotMemory& slots) {
  // One copy, the writes first; from pageable memory, so host_plan_ may be reused as soon as this returns.
  host_plan_.resize(writes.size_bytes() + ids.size_bytes());
  std::memcpy(host_plan_.data(), writes.data(), writes.size_bytes());
  std::memcpy(host_plan_.data() + writes.size_bytes(), ids.data(), ids.size_bytes());
  CheckCuda(cudaMemcpyAsync(plan_.data(), host_plan_.data(), host_plan_.size(), cudaMemcpyHostToDevice, stream_),
            "uploading writes");
  const Pooling pooling = {.writes = plan_.as<Write>(),
                           .ids = reinterpret_cast<const int32_t*>(plan_.as<std::byte>() + writes.size_bytes()),
                           .count = static_cast<int>(writes.size()),
                           .m = m_,
                           .n = n_,
                           .d = d_,
                           .slots = slots,
                           .embedding_type = weights_.embedding_type,
                           .embeddings = weights_.embeddings,
                           .ld_embeddings = weights_.ld_embeddings};
  outputs_ = weights_.mamba.empty() ? x_.as<float>() : normed_.as<float>();
  if (at_once_ && pooling.count <= kMaxWritePassWrites) return RunWritePass(AtOnce(pooling), &arrivals_, stream_);
  const auto queue = [&] { Queue(pooling); };
  if (pooling.count > kMaxGraphWrites) return queue();
  graphs_.Run(static_cast<uint64_t>(pooling.count), queue);
}

void WritePass::Queue(const Pooling& pooling) {
  PoolMean(pooling, normed_.as<float>(), ld_, stream_);
  Product(weights_.query, normed_, ld_, query_, ld_, pooling.count);
  Product(weights_.key_transposed, query_, ld_, key_, ld_, pooling.count);
  PoolAttend(pooling, key_.as<float>(), ld_, pool_weights_.as<float>(), x_.as<float>(), ld_, stream_);
  if (weights_.mamba.empty()) {
    for (size_t l = 0; l < weights_.simple.size(); ++l) {
      const SimpleSsmWeights& layer = weights_.simple[l];
      Product(layer.in_proj, x_, ld_, normed_, ld_, pooling.count);
      SimpleSsm(pooling, static_cast<int>(l), layer.decay, layer.skip, x_.as<float>(), ld_, normed_.as<float>(), ld_,
                query_.as<float>(), ld_, stream_);
      Product(layer.out_proj, query_, ld_, x_, ld_, pooling.count, x_.as<float>());
    }
  } else {
    for (size_t l = 0; l < weights_.mamba.size(); ++l) RunMambaLayer(pooling, static_cast<int>(l));
    Normalize(Type::kFloat32, x_.as<float>(), ld_, nullptr, pooling.count, d_, weights_.ssm_norm, nullptr, epsilon_,
              normed_.data(), ld_, stream_);
  }
  PushMemory(pooling, outputs_, ld_, stream_);
}

}  // namespace smt::cuda
