// Texts of many strides at once, where writes do not pool over memory (pool_scope = tokens): pooling and matrix
// products take all strides of several sessions together, and only the SSM's state goes from stride to stride. The bits
// are those of a write at a time (write_pass.h).
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
#include "model/cuda/memory_layers.h"
#include "model/cuda/pinned_uploads.h"
#include "model/cuda/sequence.h"

namespace smt::cuda {

// Not thread-safe; used by the stream's one thread.
class SequencePass {
 public:
  static constexpr int kMaxRows = 1024;  // writes of one batch

  // `uploads`: of the stream. config.pool_scope is kTokens.
  SequencePass(const StrideHybridConfig& config, const CudaWeights* weights, cudaStream_t stream,
               PinnedUploads* uploads);

  // Upper bound of what it allocates on the device.
  static int64_t WorkBytes(const StrideHybridConfig& config);

  // What one session is to absorb.
  struct Text {
    int32_t slot;
    int64_t position;                 // t, tokens absorbed already
    std::span<const int32_t> before;  // ids of the last min(t, m) of them, oldest first
    std::span<const int32_t> ids;     // the next ones
  };
  // How many strides end in the text: the writes that it brings about.
  int64_t Writes(const Text& text) const {
    return (text.position + static_cast<int64_t>(text.ids.size())) / s_ - text.position / s_;
  }
  // Adds the text's writes to the batch, and queues the batch whenever it is full. The spans may be reused as soon as
  // this returns. A slot at most once between two calls of Finish.
  void Add(const Text& text, const SlotMemory& slots);
  // Queues what is left. Waits for nothing.
  void Finish(const SlotMemory& slots);

 private:
  void AddRows(const Text& text, int64_t first_write, int64_t count);
  void AddIds(const Text& text, int64_t from, int64_t to);

  const int64_t m_, n_, s_;
  PinnedUploads& uploads_;
  MemoryLayers layers_;
  DeviceMemory plan_;
  GraphCache graphs_;

  // The batch.
  std::vector<Write> writes_;
  std::vector<Sequence> sequences_;
  std::vector<int32_t> ids_;  // at most m a write
};

}  // namespace smt::cuda
