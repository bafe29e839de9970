// The windowed transformer on the batch-invariant kernels: rows (one window column of one slot each) go through all
// layers together, whatever slots and phases they belong to. Keys and values of a slot's columns live in its cache, so
// a row may attend to columns computed by earlier calls.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/cpu/scratch.h"
#include "model/cpu/weight_source.h"
#include "model/ops/kernels.h"
#include "model/ops/packed_linear.h"
#include "model/ops/parallel.h"

namespace smt {

class CpuTransformer {
 public:
  struct Row {
    float* cache;          // the slot's, cache_floats(); zeros at first
    int64_t memory_valid;  // memory columns in use
    int64_t column;        // < n: memory, else n + j for the window's j-th token
    bool wanted;           // give the row's output
  };

  // `bf16` rounds the matrices and positions to bfloat16; arithmetic is float32 always.
  static absl::StatusOr<std::unique_ptr<CpuTransformer>> Create(const StrideHybridConfig& config,
                                                                const WeightSource& source, bool bf16);

  int64_t cache_floats() const { return n_layer_ * 2 * padded_ * d_; }

  // x: [rows, D] embeddings without positions, stride x.stride(); overwritten. Rows of a slot in column order; a row's
  // earlier columns are in its cache or in this call. Outputs after the final norm, in row order, into out [wanted, D].
  void Run(const ops::Kernels& kernels, ops::ThreadPool& pool, std::span<const Row> rows, Scratch& x, float* out,
           int64_t out_stride);

 private:
  // LayerNorm (gpt2), or RMSNorm (simple) where bias is empty.
  struct Norm {
    std::vector<float> weight, bias;  // [D]
  };
  struct Layer {
    Norm norm_1, norm_2;
    ops::PackedLinear qkv, proj, fc, mlp_proj;
  };

  explicit CpuTransformer(const StrideHybridConfig& config);
  absl::StatusOr<Layer> LoadGpt2Layer(const WeightSource& source, const std::string& prefix, bool bf16) const;
  absl::StatusOr<Layer> LoadSimpleLayer(const WeightSource& source, const std::string& prefix, bool bf16) const;
  void Normalize(const ops::Kernels& kernels, const Norm& norm, const float* x, float* y) const;
  float* keys(float* cache, int64_t layer) const { return cache + layer * 2 * padded_ * d_; }
  float* values(float* cache, int64_t layer) const { return keys(cache, layer) + padded_ * d_; }
  void StoreKeysAndValues(const Row& row, int64_t layer, const float* qkv) const;

  const int64_t d_, n_, heads_, head_dim_, n_layer_, inner_;
  const int64_t padded_;  // W up to a multiple of 16
  const float epsilon_;
  const ops::Activation activation_;
  std::vector<float> positions_;  // [W, D]
  std::vector<Layer> layers_;
  Norm norm_f_;
  Scratch normed_, qkv_, attended_, inner_rows_, attention_;
  std::vector<Row> kept_;
};

}  // namespace smt
