// Writes of many sessions at once: attention pooling, one SSM step, push onto memory. All float32.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/cuda/cuda_weights.h"
#include "model/cuda/device_memory.h"
#include "model/cuda/graph_cache.h"
#include "model/cuda/kernels.h"

namespace smt::cuda {

class WritePass {
 public:
  static constexpr int kMaxWrites = 256;  // of one pass; each of another slot

  WritePass(const StrideHybridConfig& config, const CudaWeights* weights, cudaStream_t stream);

  // `ids`: [writes.size(), m], the token rows of each write.
  void Run(std::span<const Write> writes, std::span<const int32_t> ids, const SlotMemory& slots);

  // Of the last Run, in device memory: [writes, W] and [writes, output_stride()].
  const float* pool_weights() const { return pool_weights_.as<float>(); }
  const float* outputs() const { return outputs_; }
  int64_t output_stride() const { return ld_; }

 private:
  void Queue(const Pooling& pooling);
  WritePassCall AtOnce(const Pooling& pooling) const;
  void Product(const Linear& linear, const DeviceMemory& x, int64_t ldx, const DeviceMemory& y, int64_t ldy, int rows,
               const float* residual = nullptr, Activation activation = Activation::kNone);
  void RunMambaLayer(const Pooling& pooling, int layer);

  const CudaWeights& weights_;
  const int d_, m_, n_;
  const MambaShape shape_;
  const float epsilon_;
  const cudaStream_t stream_;
  const int64_t ld_, ld_inner_, ld_xz_, ld_parameters_;
  DeviceMemory plan_, pool_weights_;
  std::vector<std::byte> host_plan_;
  DeviceMemory x_, normed_, query_, key_;
  DeviceMemory xz_, convolved_, dt_, scanned_, parameters_;
  DeviceMemory scratch_, scores_;
  DeviceMemory layers_, arrived_;
  Arrivals arrivals_;
  bool at_once_ = false;  // RunWritePass serves this shape
  GraphCache graphs_;
  const float* outputs_ = nullptr;
};

}  // namespace smt::cuda
