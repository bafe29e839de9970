// What a token costs: multiply-adds and bytes, counted from the shapes, for each way of using the model.
//
// Two kinds of figures:
//   Published   the architecture's headline comparison: one attention layer, no projections, MLP or head
//   per token   everything a token really needs, all layers, MLP and head included, next to a GPT-2 of the same shape
//               with a key/value cache of L tokens: what to compare like for like
//
// Counts are averages over a stride in a long session (full window, full memory). Norms, activations and softmax are
// left out: they are well under 1% at any width worth serving.
#pragma once

#include <cstdint>
#include <string>

#include "model/config.h"

namespace smt {

struct TokenCost {
  double multiply_adds = 0;  // 1 multiply-add = 2 FLOPs
  double weight_bytes = 0;   // weights read, once a step however many sessions share the step
  double session_bytes = 0;  // cache and state read and written for this session alone
};

class CostModel {
 public:
  // `config` must be valid. bytes_per_weight: of the stored matrices, 4 for float32, 2 for bfloat16.
  explicit CostModel(const StrideHybridConfig& config, double bytes_per_weight = 4);

  // One generated token.
  TokenCost Hop() const;    // one column over cached keys and values; a refill and a write every s tokens
  TokenCost Slide() const;  // the whole window; a write every s tokens
  // One prompt token: 1/s of a write. The transformer is not needed.
  TokenCost Ingest() const;
  // One write: pooling and one step of the SSM.
  TokenCost Write() const;
  // One token of a GPT-2 of this transformer's shape that holds the keys and values of `context` earlier tokens.
  TokenCost CachedGpt2(int64_t context) const;

  // Multiply-adds a token, as published: attention W^2 D, pooling W D^2 / s, SSM D^2 / s.
  struct Published {
    double window_attention, pooling, ssm, total;
    double full_attention;      // L^2 D: a whole sequence's matrix
    double window_activations;  // W D floats
    double full_activations;    // L D floats
  };
  Published PublishedNumbers(int64_t full_context = 4096) const;

  // Bytes that grow with a session: SMT's token log, and a GPT-2's key/value cache of `context` tokens (float32).
  double CacheBytes(int64_t context) const;

  // For people; both kinds of figures.
  std::string Report(int64_t full_context = 4096) const;

 private:
  double BlockWeights() const;       // parameters of the transformer's blocks
  double Column(double keys) const;  // multiply-adds of one row through all blocks, seeing `keys` rows
  double Rows(int64_t rows) const;   // of `rows` rows at once, each seeing those before it and itself
  double HeadWeights() const { return static_cast<double>(config_.vocab_size) * static_cast<double>(config_.d_model); }

  StrideHybridConfig config_;
  double bytes_per_weight_;
};

}  // namespace smt
