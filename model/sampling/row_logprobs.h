// Log-probabilities of a row of logits as a device computes them (model/cuda/logits.h): plain values that are copied as
// they are.
#pragma once

#include <stdint.h>

namespace smt {

inline constexpr int kMaxTopLogprobs = 20;

struct LogprobAsk {
  int32_t row = -1;    // of the logits; -1: none, skipped
  int32_t top = 0;     // in [0, kMaxTopLogprobs]
  int32_t edits = -1;  // the index of the row's RowEdits, or -1 where it has none
};

// What ComputeLogprobs (model/sampling/logprobs.h) gives for the row, bit for bit.
struct RowLogprobs {
  double log_sum;  // LogOfTerms; 0 where `max` is not finite
  float max;       // logit; -infinity: none
  float logprob;   // of the id that was drawn
  // The min(top, vocabulary) likeliest ids, likeliest first, ties to the lower id; then -1 and -infinity.
  int32_t ids[kMaxTopLogprobs];
  float logprobs[kMaxTopLogprobs];
};
static_assert(sizeof(RowLogprobs) == 16 + 8 * kMaxTopLogprobs);

}  // namespace smt
