// Writes of many sessions at once: attention pooling, one SSM step, push onto memory. All float32.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "model/config.h"
#include "model/cuda/cuda_weights.h"
#include "model/cuda/device_memory.h"
#include "model/cuda/graph_cache.h"
#include "model/cuda/kernels.h"
#include "model/cuda/memory_layers.h"
#include "model/cuda/pinned_uploads.h"

namespace smt::cuda {

class WritePass {
 public:
  static constexpr int kMaxWrites = 256;  // of one pass; each of another slot

  // `uploads`: of the stream.
  WritePass(const StrideHybridConfig& config, const CudaWeights* weights, cudaStream_t stream, PinnedUploads* uploads);

  // `ids`: of the writes' token rows, at most m a write, where Write::ids_at counts. Waits for nothing; the spans may
  // be reused as soon as this returns.
  void Run(std::span<const Write> writes, std::span<const int32_t> ids, const SlotMemory& slots);
  // Of ids in the slots' rings; Write::ids_at counts in all of them. Few writes are one kernel on `blocks`
  // multiprocessors; kApart: a kernel for each part, which leaves room for others; 0: nothing else runs, whichever is
  // done sooner.
  static constexpr int kApart = -1;
  void Run(std::span<const Write> writes, const IdRings& rings, const SlotMemory& slots, int blocks);

  // Of the last Run, in device memory: [writes, W] and [writes, output_stride()].
  const float* pool_weights() const { return pool_weights_.as<float>(); }
  const float* outputs() const { return layers_.outputs(); }
  int64_t output_stride() const { return layers_.output_stride(); }

 private:
  void Run(const Pooling& pooling, int blocks);
  void RunFew(WritePassCall call);
  WritePassCall AtOnce(const Pooling& pooling) const;

  const CudaWeights& weights_;
  const int m_, n_;
  const cudaStream_t stream_;
  PinnedUploads& uploads_;
  MemoryLayers layers_;
  DeviceMemory plan_, pool_weights_, scores_;
  DeviceMemory layer_weights_, arrived_;
  Arrivals arrivals_;
  bool at_once_ = false;            // RunWritePass serves this shape
  DeviceMemory exchange_;           // of RunFewWrites; empty where it does not serve this shape
  uint32_t next_tag_ = 0xffff0000;  // not long before they begin anew, so that every long run comes by there
  GraphCache graphs_;
};

}  // namespace smt::cuda
