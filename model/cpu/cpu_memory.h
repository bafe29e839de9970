// The memory path on the batch-invariant kernels: attention pooling and the SSM, float32 always. Writes of many
// sessions, or successive writes of one, go through together; a session's own stay in order.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/cpu/scratch.h"
#include "model/cpu/weight_source.h"
#include "model/ops/kernels.h"
#include "model/ops/packed_linear.h"
#include "model/ops/parallel.h"

namespace smt {

class CpuMemory {
 public:
  struct Write {
    const float* rows;  // [count, D] dense: what is pooled
    int64_t count;      // >= 1
    float* conv;        // the session's convolution state, all layers; advanced
    float* state;       // the session's SSM state, all layers; advanced
    float* weights;     // [count] pooling weights, written
    float* output;      // [D] what goes onto memory, written
  };

  static absl::StatusOr<std::unique_ptr<CpuMemory>> Create(const StrideHybridConfig& config,
                                                           const WeightSource& source);

  // Writes of one session in the order of time.
  void Run(const ops::Kernels& kernels, ops::ThreadPool& pool, std::span<const Write> writes);

 private:
  struct MambaLayer {
    std::vector<float> norm;                    // [D]
    ops::PackedLinear in_proj;                  // D -> 2 d_inner (x, gate)
    std::vector<float> conv_weight, conv_bias;  // [d_inner, d_conv], [d_inner]
    ops::PackedLinear x_proj;                   // d_inner -> dt_rank + 2 d_state
    ops::PackedLinear dt_proj;                  // dt_rank -> d_inner
    std::vector<float> a;                       // [d_inner, d_state] = -exp(A_log)
    std::vector<float> skip;                    // [d_inner]
    ops::PackedLinear out_proj;                 // d_inner -> D
  };
  // h = sigmoid(decay) h + in_proj(x); x = x + out_proj(h) + skip x.
  struct SimpleLayer {
    ops::PackedLinear in_proj, out_proj;  // D -> D
    std::vector<float> decay, skip;       // [D]; decay after the sigmoid
  };

  explicit CpuMemory(const StrideHybridConfig& config);
  void Pool(const ops::Kernels& kernels, ops::ThreadPool& pool, std::span<const Write> writes);  // into x_
  // One layer over x_.
  void RunMambaLayer(const ops::Kernels& kernels, ops::ThreadPool& pool, std::span<const Write> writes, int64_t l);
  void RunSimpleLayer(const ops::Kernels& kernels, ops::ThreadPool& pool, std::span<const Write> writes, int64_t l);
  absl::Status LoadMamba(const WeightSource& source);
  absl::Status LoadSimple(const WeightSource& source);

  const int64_t d_, d_inner_, d_state_, d_conv_, dt_rank_, n_layer_;
  const float epsilon_;
  ops::PackedLinear query_, key_transposed_;  // D -> D: q = Wq mean, u = Wk^T q
  std::vector<MambaLayer> mamba_;             // one of the two is empty
  std::vector<SimpleLayer> simple_;
  std::vector<float> norm_f_;  // Mamba's last RMSNorm
  Scratch x_, normed_, xz_, convolved_, parameters_, dt_, scanned_, query_rows_, key_rows_;
};

}  // namespace smt
