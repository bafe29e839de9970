// The model's own log-probabilities, from logits as the model gave them.
#pragma once

#include <cstdint>
#include <span>

#include "model/sampling/sampling_params.h"

namespace smt {

// The log-probability of `id` and of the `top` likeliest ids, ties to the lower id. NaN counts as -infinity; where a
// logit is +infinity those that are have log-probability 0 and all others -infinity. `out` keeps its capacity.
void ComputeLogprobs(std::span<const float> logits, int32_t id, int32_t top, TokenLogprobs* out);

}  // namespace smt
