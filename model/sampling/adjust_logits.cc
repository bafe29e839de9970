#include "model/sampling/adjust_logits.h"

#include <cstdint>
#include <limits>

namespace smt {
namespace {

bool Masks(const SamplingParams& params, const PenaltyState& penalties) {
  return penalties.generated_total() < params.min_tokens && !params.masked_until_min_tokens.empty();
}

}  // namespace

bool AdjustsLogits(const SamplingParams& params, const PenaltyState& penalties) {
  return !params.logit_bias.empty() || !penalties.entries().empty() || Masks(params, penalties);
}

void AdjustLogits(const SamplingParams& params, const PenaltyState& penalties, std::span<float> logits) {
  const auto known = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < logits.size(); };
  for (const auto& [id, bias] : params.logit_bias) {
    if (known(id)) logits[id] += bias;
  }
  const Penalties how = PenaltiesOf(params);
  for (const PenaltyState::Entry& entry : penalties.entries()) {
    if (known(entry.id)) logits[entry.id] = PenalizedLogit(logits[entry.id], entry.generated, true, how);
  }
  if (Masks(params, penalties)) {
    for (int32_t id : params.masked_until_min_tokens) {
      if (known(id)) logits[id] = -std::numeric_limits<float>::infinity();
    }
  }
}

}  // namespace smt
