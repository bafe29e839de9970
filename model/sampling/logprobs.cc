#include "model/sampling/logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "model/sampling/log_softmax.h"
#include "model/sampling/logit_scan.h"

namespace smt {
namespace {

using Candidate = std::pair<int32_t, float>;

// Likelier, ties to the lower id. As a heap's order it keeps the least likely candidate in front.
bool Better(const Candidate& a, const Candidate& b) {
  return a.second != b.second ? a.second > b.second : a.first < b.first;
}

void LargestLogits(std::span<const float> logits, size_t count, std::vector<Candidate>* out) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  out->clear();
  if (count == 0) return;
  for (size_t i = 0; i < logits.size(); ++i) {
    const bool full = out->size() == count;
    // Ids come in ascending order, so an equal logit never displaces one that is there. NaN is never greater.
    if (full && !(logits[i] > out->front().second)) continue;
    const Candidate candidate(static_cast<int32_t>(i), std::isnan(logits[i]) ? kLowest : logits[i]);
    if (full) {
      std::pop_heap(out->begin(), out->end(), Better);
      out->back() = candidate;
    } else {
      out->push_back(candidate);
    }
    std::push_heap(out->begin(), out->end(), Better);
  }
  std::sort_heap(out->begin(), out->end(), Better);
}

}  // namespace

void ComputeLogprobs(std::span<const float> logits, int32_t id, int32_t top, TokenLogprobs* out) {
  const float max = MaxLogit(logits);
  const double log_sum = std::isfinite(max) ? LogOfTerms(SumExp(logits, max)) : 0.0;
  const auto logprob = [&](float logit) { return LogprobOf(logit, max, log_sum); };
  LargestLogits(logits, static_cast<size_t>(std::max(top, 0)), &out->top);
  for (Candidate& candidate : out->top) candidate.second = logprob(candidate.second);
  out->logprob = id >= 0 && static_cast<size_t>(id) < logits.size() ? logprob(logits[id])
                                                                    : -std::numeric_limits<float>::infinity();
}

}  // namespace smt
