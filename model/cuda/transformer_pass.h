// One pass of window rows through the transformer: columns of some sessions and whole windows of others share every
// matrix product. A row's bits do not depend on the rows beside it.
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
#include "model/cuda/pinned_uploads.h"

namespace smt::cuda {

class TransformerPass {
 public:
  static constexpr int kMaxRows = 8192;  // of one pass; a window must fit

  TransformerPass(const StrideHybridConfig& config, const CudaWeights* weights, int slots, cudaStream_t stream);

  // Runs rows [count], of which `wanted` (ascending indices) are last positions; the output of wanted[i], ready for the
  // head, goes to the slot to_slots[i]. Rows of one session come in order of their columns and are groups[i].
  // `keep_tokens`: later passes may ask for token rows' keys and
  // values; they may for memory rows' always. `spare` multiprocessors are left to others.
  void Run(std::span<const Row> rows, std::span<const Group> groups, std::span<const int32_t> wanted,
           std::span<const int32_t> to_slots, bool keep_tokens, const SlotMemory& slots, const IdRings& rings,
           int spare = 0);
  // logits [count, V], rows logits_stride() apart, in device memory, of the outputs of `slots` (in device memory);
  // valid until the next call. `only`: the slot, where it is one and the host knows it.
  float* Head(const int32_t* slots, int count, int spare = 0, int only = -1);
  int64_t logits_stride() const { return ld_logits_; }
  static constexpr int kMaxHeadRows = 1024;  // of one Head

  int64_t cache_bytes_per_slot() const { return cache_.slot_stride * SizeOf(cache_.type); }
  int64_t output_bytes_per_slot() const { return static_cast<int64_t>(ld_) * SizeOf(weights_.window_type); }

 private:
  template <typename T>
  const T* Pack(std::span<const T> values, size_t* at);
  void Queue(int count, int wanted, bool keep_tokens, const SlotMemory& slots, const IdRings& rings, int spare);
  void RunAtOnce(int count, int groups, bool keep_tokens, const SlotMemory& slots, const IdRings& rings, int spare);
  bool CanRunAlone(int blocks) const;
  void RunAlone(WindowPass pass, int blocks);

  const CudaWeights& weights_;
  const int d_, n_, heads_, inner_, vocab_, ld_;
  bool by_groups_ = false, at_once_ = false;  // AttendGroups, RunWindowPass serve this shape
  const float epsilon_;
  const Activation activation_;
  const cudaStream_t stream_;
  Cache cache_;
  DeviceMemory cache_memory_, outputs_;
  DeviceMemory plan_;  // what Upload laid out
  std::vector<std::byte> host_plan_;
  const Row* rows_ = nullptr;
  const Group* groups_ = nullptr;
  const int32_t *wanted_ = nullptr, *to_slots_ = nullptr;
  int few_ = 0;  // leading groups of few rows
  DeviceMemory blocks_, arrived_, tickets_, exchange_;
  Arrivals arrivals_;
  uint32_t next_tag_ = 1;  // of exchange_
  DeviceMemory x_, x_wanted_, normed_, qkv_, attended_, inner_rows_, head_rows_, logits_;
  DeviceMemory addends_;  // of one product; empty: all products are complete
  int64_t ld_qkv_, ld_inner_, ld_logits_;
  PinnedUploads uploads_;
  GraphCache graphs_;
};

}  // namespace smt::cuda
