#include "model/key_value_cache.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>

#include <limits>

namespace smt {
namespace {

// Every column 0 <= j < width of each row: rows * W + j, flat.
at::Tensor Columns(const at::Tensor& rows, int64_t window, int64_t width) {
  return (rows.unsqueeze(1) * window + at::arange(width, rows.options())).flatten();
}

// [B, heads, w, head_dim] -> [B * w, D].
at::Tensor Flat(const at::Tensor& split) {
  return split.transpose(1, 2).reshape({split.size(0) * split.size(2), split.size(1) * split.size(3)});
}

}  // namespace

KeyValueCache::KeyValueCache(const StrideHybridConfig& config, int64_t slots, at::ScalarType dtype, at::Device device)
    : window(config.window()) {
  const at::TensorOptions options = at::TensorOptions().dtype(dtype).device(device);
  for (int64_t i = 0; i < config.transformer.n_layer; ++i) {
    keys.push_back(at::zeros({slots * window, config.d_model}, options));
    values.push_back(at::zeros({slots * window, config.d_model}, options));
  }
}

RefillAttention::RefillAttention(KeyValueCache& cache, const at::Tensor& rows, const at::Tensor& causal_bias)
    : cache_(cache), kept_(rows.size(0)), at_(Columns(rows, cache.window, causal_bias.size(-1))), bias_(causal_bias) {}

at::Tensor RefillAttention::Attend(int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  cache_.keys[layer].index_copy_(0, at_, Flat(k.narrow(0, 0, kept_)));
  cache_.values[layer].index_copy_(0, at_, Flat(v.narrow(0, 0, kept_)));
  return ScaledAttention(q, k, v, bias_);
}

CachedColumnAttention::CachedColumnAttention(KeyValueCache& cache, const at::Tensor& rows, const at::Tensor& columns,
                                             const at::Tensor& mask, int64_t kept)
    : cache_(cache),
      kept_(kept),
      at_((rows * cache.window + columns).narrow(0, 0, kept)),
      gathered_(Columns(rows, cache.window, cache.window)),
      bias_(at::zeros(mask.sizes(), mask.options().dtype(cache.keys[0].scalar_type()))
                .masked_fill(mask.logical_not(), -std::numeric_limits<double>::infinity())
                .view({mask.size(0), 1, 1, mask.size(1)})) {}

at::Tensor CachedColumnAttention::Update(at::Tensor& cache, const at::Tensor& column) const {
  cache.index_copy_(0, at_, Flat(column.narrow(0, 0, kept_)));
  const int64_t batch = column.size(0), heads = column.size(1), head_dim = column.size(3);
  return at::index_select(cache, 0, gathered_).view({batch, cache_.window, heads, head_dim}).transpose(1, 2);
}

at::Tensor CachedColumnAttention::Attend(int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const at::Tensor keys = Update(cache_.keys[layer], k), values = Update(cache_.values[layer], v);
  return ScaledAttention(q, keys, values, bias_);
}

}  // namespace smt
