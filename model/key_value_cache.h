// Hop's derived state: keys and values of every window slot, for windows that stand still between writes. A write moves
// every memory vector, so the cache is filled anew by one refill and then grows by single columns.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/config.h"
#include "model/windowed_transformer.h"

namespace smt {

struct KeyValueCache {
  KeyValueCache(const StrideHybridConfig& config, int64_t slots, at::ScalarType dtype, at::Device device);

  const int64_t window;            // W, columns a slot
  std::vector<at::Tensor> keys;    // a layer: [slots * W, D]
  std::vector<at::Tensor> values;  // a layer: [slots * W, D]
};

// Whole windows at once, keeping keys and values: row j of window b goes to column j of slot rows[b]. Windows beyond
// rows' length only pad the batch.
class RefillAttention : public AttentionContext {
 public:
  // rows: int64 [R], R <= B; causal_bias: [B, 1, w, w].
  RefillAttention(KeyValueCache& cache, const at::Tensor& rows, const at::Tensor& causal_bias);
  at::Tensor Attend(int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) override;

 private:
  KeyValueCache& cache_;
  const int64_t kept_;   // R
  const at::Tensor at_;  // [R * w], rows of the cache
  const at::Tensor bias_;
};

// One new column a slot, attending to the slot's columns so far and itself.
class CachedColumnAttention : public AttentionContext {
 public:
  // rows: int64 [B], slots; columns: int64 [B], where each new column goes; mask: bool [B, W], what it sees, itself
  // included. The first `kept` rows are stored, the others only pad the batch.
  CachedColumnAttention(KeyValueCache& cache, const at::Tensor& rows, const at::Tensor& columns, const at::Tensor& mask,
                        int64_t kept);
  at::Tensor Attend(int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) override;

 private:
  at::Tensor Update(at::Tensor& cache, const at::Tensor& column) const;  // -> [B, heads, W, head_dim]

  KeyValueCache& cache_;
  const int64_t kept_;
  const at::Tensor at_;        // [kept], rows of the cache
  const at::Tensor gathered_;  // [B * W], rows of the cache
  const at::Tensor bias_;      // [B, 1, 1, W]
};

}  // namespace smt
