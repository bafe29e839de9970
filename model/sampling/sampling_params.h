// How the next id is drawn from logits, and what is reported about it. Plain values, shared by host and device
// samplers.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace smt {

// Order of application: logit_bias, repetition, presence and frequency penalty, min_tokens mask, temperature, top_k,
// top_p, min_p, draw (docs/sampling.md). Ranges are checked by the service; the sampler trusts them.
struct SamplingParams {
  float temperature = 1.0f;                                // >= 0; 0 is argmax, ties to the lowest id
  int32_t top_k = 0;                                       // >= 0; 0 keeps all
  float top_p = 1.0f;                                      // (0, 1]; 1 keeps all
  float min_p = 0.0f;                                      // [0, 1]; 0 keeps all
  float repetition_penalty = 1.0f;                         // > 0; counts generated ids and the last m before them
  float presence_penalty = 0.0f;                           // [-2, 2]; generated ids
  float frequency_penalty = 0.0f;                          // [-2, 2]; generated ids
  std::vector<std::pair<int32_t, float>> logit_bias = {};  // each id once
  uint64_t seed = 0;                                       // with the position, the whole of the randomness
  int64_t min_tokens = 0;  // before that many generated ids, `masked_until_min_tokens` cannot be drawn
  std::vector<int32_t> masked_until_min_tokens = {};
  int32_t top_logprobs = -1;  // -1: no log-probabilities; 0: of the drawn id; k: and of the k likeliest
};

// The model's own log-probabilities: before bias, penalties and temperature.
struct TokenLogprobs {
  float logprob = 0;                           // of the id itself, natural logarithm
  std::vector<std::pair<int32_t, float>> top;  // likeliest first, ties to the lower id
};

}  // namespace smt
