#include "model/cuda/write_pass.h"

#include <cstring>
#include <limits>

namespace smt::cuda {
namespace {

constexpr Recurrence kOneStep = {MambaConv, MambaScan, MambaStep, SimpleSsm, PushMemory};

}  // namespace

WritePass::WritePass(const StrideHybridConfig& config, const CudaWeights* weights, cudaStream_t stream,
                     PinnedUploads* uploads)
    : weights_(*weights),
      m_(static_cast<int>(config.m_input_tokens)),
      n_(static_cast<int>(config.n_ssm_outputs)),
      stream_(stream),
      uploads_(*uploads),
      layers_(config, weights, kMaxWrites, stream),
      graphs_(stream) {
  plan_ = DeviceMemory(kMaxWrites * (sizeof(Write) + static_cast<size_t>(m_) * sizeof(int32_t)));
  pool_weights_ = DeviceMemory(kMaxWrites * static_cast<size_t>(n_ + m_) * sizeof(float));
  layers_.ReserveAddends();
  if (weights_.mamba.empty() || weights_.query.type != Type::kSplit) return;
  at_once_ = CanRunWritePass(AtOnce(layers_.Pool(nullptr, nullptr, 0, {})));
  if (!at_once_) return;
  scores_ = DeviceMemory(pool_weights_.bytes());
  layer_weights_ = DeviceMemory(weights_.mamba.size() * sizeof(MambaWeights));
  CheckCuda(cudaMemcpy(layer_weights_.data(), weights_.mamba.data(), layer_weights_.bytes(), cudaMemcpyHostToDevice),
            "uploading the layers");
  arrived_ = DeviceMemory(sizeof(uint32_t));
  arrivals_ = {arrived_.as<uint32_t>(), 0};
  const WritePassCall call = AtOnce(layers_.Pool(nullptr, nullptr, 0, {}));
  if (CanRunFewWrites(call)) exchange_ = DeviceMemory(FewWritesExchangeBytes(call));
}

WritePassCall WritePass::AtOnce(const Pooling& pooling) const {
  WritePassCall call = layers_.AtOnce(pooling);
  call.layers = layer_weights_.as<MambaWeights>();
  call.scores = scores_.as<float>();
  call.pool_weights = pool_weights_.as<float>();
  return call;
}

void WritePass::Run(std::span<const Write> writes, std::span<const int32_t> ids, const SlotMemory& slots) {
  // One copy, the writes first.
  const size_t bytes = writes.size_bytes() + ids.size_bytes();
  auto* plan = static_cast<std::byte*>(uploads_.Reserve(bytes));
  std::memcpy(plan, writes.data(), writes.size_bytes());
  std::memcpy(plan + writes.size_bytes(), ids.data(), ids.size_bytes());
  uploads_.Upload(plan_.data(), bytes);
  const auto* const device_ids = reinterpret_cast<const int32_t*>(plan_.as<std::byte>() + writes.size_bytes());
  Run(layers_.Pool(plan_.as<Write>(), device_ids, static_cast<int>(writes.size()), slots), 0);
}

void WritePass::Run(std::span<const Write> writes, const IdRings& rings, const SlotMemory& slots, int blocks) {
  uploads_.Copy(plan_.data(), writes.data(), writes.size_bytes());
  Pooling pooling = layers_.Pool(plan_.as<Write>(), rings.ids, static_cast<int>(writes.size()), slots);
  pooling.ids_mask = rings.size - 1;
  Run(pooling, blocks);
}

void WritePass::RunFew(WritePassCall call) {
  const auto tags = static_cast<uint32_t>(call.layer_count) + 1;
  if (next_tag_ > std::numeric_limits<uint32_t>::max() - tags) {
    CheckCuda(cudaMemsetAsync(exchange_.data(), 0, exchange_.bytes(), stream_), "clearing tags");
    next_tag_ = 1;
  }
  call.exchange = exchange_.as<uint64_t>();
  call.tag = next_tag_;
  next_tag_ += tags;
  RunFewWrites(call, &arrivals_, 0, stream_);
}

void WritePass::Run(const Pooling& pooling, int blocks) {
  // Alone on the device, and more than a few, kernels apart are done sooner than one that waits for all its blocks.
  const bool apart =
      blocks == kApart || (blocks == 0 && pooling.count > kMaxFewWrites && layers_.CanRunApart(pooling.count));
  if (at_once_ && !apart && pooling.count <= kMaxWritePassWrites) {
    const WritePassCall call = AtOnce(pooling);
    if (exchange_.bytes() > 0 && pooling.count <= kMaxFewWrites && blocks == 0) return RunFew(call);
    return RunWritePass(call, &arrivals_, blocks, stream_);
  }
  const auto queue = [&] { layers_.Run(pooling, pool_weights_.as<float>(), kOneStep); };
  graphs_.Run(static_cast<uint64_t>(pooling.count) * 2 + (pooling.ids_mask == 0x7fffffff ? 1 : 0), queue);
}

}  // namespace smt::cuda
