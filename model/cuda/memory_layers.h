// What writes go through once it is known what they pool over: attention pooling, the SSM's layers and the push onto
// memory, a row a write, all float32. Working memory and the order of the kernels. How a session's state gets from one
// of its writes to the next is the caller's: a step a session (write_pass.h) or many (sequence_pass.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "model/config.h"
#include "model/cuda/cuda_weights.h"
#include "model/cuda/device_memory.h"
#include "model/cuda/kernels.h"

namespace smt::cuda {

// The launchers of what carries state, all of kernels.h or all of sequence.h.
struct Recurrence {
  decltype(&MambaConv) conv;
  decltype(&MambaScan) scan;
  decltype(&MambaStep) step;  // dt_proj and scan at once; or null
  decltype(&SimpleSsm) simple;
  decltype(&PushMemory) push;
};

// Not thread-safe: each call uses the same memory, on one stream.
class MemoryLayers {
 public:
  // rows: the most of one call.
  MemoryLayers(const StrideHybridConfig& config, const CudaWeights* weights, int rows, cudaStream_t stream);

  // Upper bound of the device memory of one row.
  static int64_t BytesPerRow(const StrideHybridConfig& config);

  Pooling Pool(const Write* writes, const int32_t* ids, int count, const SlotMemory& slots) const;
  // Queues everything. pool_weights: [rows, W] or null, not wanted.
  void Run(const Pooling& pooling, float* pool_weights, const Recurrence& recurrence);
  // Of the last call, what was pushed: [rows, output_stride()] in device memory.
  const float* outputs() const;
  int64_t output_stride() const { return ld_; }

  // For rows that take a step each (not sequences), on devices and shapes it serves: Run with products of few tiles
  // apart, of up to kMaxRowsApart rows.
  static constexpr int kMaxRowsApart = 256;
  void ReserveAddends();
  bool CanRunApart(int rows) const { return addends_.bytes() > 0 && rows <= kMaxRowsApart; }

  // The same in one kernel, whose part of the memory is this; `layers`, scores and pool_weights are the caller's.
  WritePassCall AtOnce(const Pooling& pooling) const;

 private:
  // Rows between the kernels: float32, or, for many rows of split products, split once where they are made.
  struct Rows {
    const float* floats;
    int64_t ld;
    SplitRows split;
  };
  Rows Floats(const DeviceMemory& memory, int64_t ld) const { return {memory.as<float>(), ld, {}}; }
  SplitRows Split(const DeviceMemory& memory, int64_t ld) const { return {memory.as<__nv_bfloat16>(), rows_ * ld}; }
  LinearCall CallOf(const Rows& x, const DeviceMemory& y, int64_t ldy, int rows, const float* residual,
                    Activation activation) const;
  void Product(const Linear& linear, const Rows& x, const DeviceMemory& y, int64_t ldy, int rows,
               const float* residual = nullptr, Activation activation = Activation::kNone);
  void RunMambaLayer(const Pooling& pooling, int layer, const Recurrence& recurrence);
  Addends ProductApart(const Linear& linear, const Rows& x, const DeviceMemory& y, int64_t ldy, int rows,
                       const float* residual = nullptr);
  void RunMambaLayersApart(const Pooling& pooling);
  void RunSimpleLayer(const Pooling& pooling, int layer, const Recurrence& recurrence);

  const CudaWeights& weights_;
  const int rows_, d_, m_, n_;
  const MambaShape shape_;
  const float epsilon_;
  const cudaStream_t stream_;
  const int64_t ld_, ld_inner_, ld_xz_, ld_parameters_;
  DeviceMemory scores_, x_, normed_, query_, key_;
  DeviceMemory xz_, convolved_, dt_, scanned_, parameters_;
  DeviceMemory scratch_, tickets_;
  DeviceMemory split_normed_, split_inner_;
  DeviceMemory addends_;  // of one product; empty: nothing runs apart
};

}  // namespace smt::cuda
