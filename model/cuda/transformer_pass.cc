#include "model/cuda/transformer_pass.h"

#include <utility>

namespace smt::cuda {
namespace {

constexpr int kMaxGraphRows = 512;  // above, the device is busy for longer than launching takes

void Upload(const DeviceMemory& to, const void* from, size_t bytes, cudaStream_t stream) {
  // From pageable memory, so `from` may be reused as soon as this returns.
  CheckCuda(cudaMemcpyAsync(to.data(), from, bytes, cudaMemcpyHostToDevice, stream), "uploading a plan");
}

}  // namespace

TransformerPass::TransformerPass(const StrideHybridConfig& config, const CudaWeights* weights, int slots,
                                 cudaStream_t stream)
    : weights_(*weights),
      d_(static_cast<int>(config.d_model)),
      n_(static_cast<int>(config.n_ssm_outputs)),
      heads_(static_cast<int>(config.transformer.n_head)),
      inner_(static_cast<int>(config.mlp_width())),
      vocab_(static_cast<int>(config.vocab_size)),
      ld_(Padded(d_)),
      epsilon_(static_cast<float>(config.transformer.layer_norm_epsilon)),
      activation_(config.transformer.kind == TransformerKind::kGpt2 ? Activation::kGelu : Activation::kRelu),
      stream_(stream),
      ld_qkv_(Padded(3 * static_cast<int64_t>(d_))),
      ld_inner_(Padded(inner_)),
      graphs_(stream) {
  const Type type = weights->window_type;
  const size_t size = SizeOf(type), rows = kMaxRows;
  cache_.type = type;
  cache_.window = static_cast<int>(config.window());
  cache_.d = d_;
  cache_.layer_stride = 2 * static_cast<int64_t>(cache_.window) * d_;
  cache_.slot_stride = (config.transformer.n_layer * cache_.layer_stride + 7) / 8 * 8;
  cache_memory_ = DeviceMemory(static_cast<size_t>(slots) * static_cast<size_t>(cache_bytes_per_slot()));
  cache_.base = cache_memory_.data();
  outputs_ = DeviceMemory(static_cast<size_t>(slots) * static_cast<size_t>(output_bytes_per_slot()));
  rows_ = DeviceMemory(rows * sizeof(Row));
  wanted_ = DeviceMemory(rows * sizeof(int32_t));
  to_slots_ = DeviceMemory(rows * sizeof(int32_t));
  x_ = DeviceMemory(rows * static_cast<size_t>(ld_) * sizeof(float));
  x_wanted_ = DeviceMemory(x_.bytes());
  normed_ = DeviceMemory(rows * static_cast<size_t>(ld_) * size);
  attended_ = DeviceMemory(normed_.bytes());
  qkv_ = DeviceMemory(rows * static_cast<size_t>(ld_qkv_) * size);
  inner_rows_ = DeviceMemory(rows * static_cast<size_t>(ld_inner_) * size);
  head_rows_ = DeviceMemory(size_t{kMaxHeadRows} * static_cast<size_t>(ld_) * size);
  logits_ = DeviceMemory(size_t{kMaxHeadRows} * static_cast<size_t>(vocab_) * sizeof(float));
}

void TransformerPass::Run(std::span<const Row> rows, std::span<const int32_t> wanted, std::span<const int32_t> to_slots,
                          const SlotMemory& slots) {
  Upload(rows_, rows.data(), rows.size_bytes(), stream_);
  Upload(wanted_, wanted.data(), wanted.size_bytes(), stream_);
  Upload(to_slots_, to_slots.data(), to_slots.size_bytes(), stream_);
  const auto count = static_cast<int>(rows.size()), last = static_cast<int>(wanted.size());
  const auto queue = [&] { Queue(count, last, slots); };
  if (count > kMaxGraphRows) return queue();
  graphs_.Run(static_cast<uint64_t>(count) * (kMaxRows + 1) + static_cast<uint64_t>(last), queue);
}

void TransformerPass::Queue(int count, int wanted, const SlotMemory& slots) {
  const Type type = weights_.window_type;
  const Row* device_rows = rows_.as<Row>();
  const int32_t* device_wanted = wanted_.as<int32_t>();
  float* x = x_.as<float>();
  EmbedRows(type, weights_.embedding_type, device_rows, count, slots, weights_.embeddings, weights_.ld_embeddings,
            weights_.positions, d_, x, ld_, stream_);
  const auto product = [&](const Linear& linear, const DeviceMemory& in, int64_t ldx, void* y, int64_t ldy,
                           const float* residual, Activation activation) {
    RunLinear(linear,
              {.x = in.data(),
               .ldx = ldx,
               .rows = count,
               .y = y,
               .ldy = ldy,
               .float_output = residual != nullptr,
               .residual = residual,
               .activation = activation,
               .scratch = nullptr},
              stream_);
  };
  const size_t layers = weights_.blocks.size();
  for (size_t l = 0; l < layers; ++l) {
    const BlockWeights& block = weights_.blocks[l];
    const int layer = static_cast<int>(l);
    Normalize(type, x, ld_, nullptr, nullptr, count, d_, block.norm_1.weight, block.norm_1.bias, epsilon_,
              normed_.data(), ld_, stream_);
    product(block.qkv, normed_, ld_, qkv_.data(), ld_qkv_, nullptr, Activation::kNone);
    StoreKeysValues(cache_, layer, device_rows, count, qkv_.data(), ld_qkv_, stream_);
    const int32_t* order = nullptr;
    if (l + 1 == layers && wanted < count) {
      // The last layer's keys and values are all that later columns need of the other rows.
      order = device_wanted;
      count = wanted;
      GatherRows(Type::kFloat32, x, ld_, order, count, x_wanted_.data(), stream_);
      x = x_wanted_.as<float>();
    }
    Attend(cache_, layer, device_rows, order, count, qkv_.data(), ld_qkv_, heads_, n_, attended_.data(), ld_, stream_);
    product(block.proj, attended_, ld_, x, ld_, x, Activation::kNone);
    Normalize(type, x, ld_, nullptr, nullptr, count, d_, block.norm_2.weight, block.norm_2.bias, epsilon_,
              normed_.data(), ld_, stream_);
    product(block.fc, normed_, ld_, inner_rows_.data(), ld_inner_, nullptr, activation_);
    product(block.mlp_proj, inner_rows_, ld_inner_, x, ld_, x, Activation::kNone);
  }
  Normalize(type, x, ld_, nullptr, to_slots_.as<int32_t>(), count, d_, weights_.norm_f.weight, weights_.norm_f.bias,
            epsilon_, outputs_.data(), ld_, stream_);
}

const float* TransformerPass::Head(std::span<const int32_t> slots) {
  const int count = static_cast<int>(slots.size());
  Upload(to_slots_, slots.data(), slots.size_bytes(), stream_);
  GatherRows(weights_.window_type, outputs_.data(), ld_, to_slots_.as<int32_t>(), count, head_rows_.data(), stream_);
  RunLinear(weights_.head,
            {.x = head_rows_.data(),
             .ldx = ld_,
             .rows = count,
             .y = logits_.data(),
             .ldy = vocab_,
             .float_output = true,
             .residual = nullptr,
             .activation = Activation::kNone,
             .scratch = nullptr},
            stream_);
  return logits_.as<float>();
}

}  // namespace smt::cuda
