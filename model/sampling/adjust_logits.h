// The first three steps of docs/sampling.md on a row of logits: bias, penalties, the min_tokens mask.
#pragma once

#include <span>

#include "model/sampling/logit_edit.h"
#include "model/sampling/penalty_state.h"
#include "model/sampling/sampling_params.h"

namespace smt {

inline Penalties PenaltiesOf(const SamplingParams& params) {
  return {params.repetition_penalty, params.presence_penalty, params.frequency_penalty};
}

// Whether AdjustLogits could change anything.
bool AdjustsLogits(const SamplingParams& params, const PenaltyState& penalties);

// In place. Ids outside of `logits` are passed over.
void AdjustLogits(const SamplingParams& params, const PenaltyState& penalties, std::span<float> logits);

}  // namespace smt
