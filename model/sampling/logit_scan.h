// Passes over a whole row of logits, the sampler's only cost that matters. Vectorised where the CPU has AVX2 and FMA;
// the results are the same bits without.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace smt {

// Ids whose weights are summed together, to find a draw without visiting every id again.
inline constexpr size_t kWeightBlock = 256;

// The largest logit, NaN ignored; -infinity when there is none.
float MaxLogit(std::span<const float> logits);

// weights[i] = ExpWeight(logits[i] / temperature - max_scaled) with max_scaled = largest logit / temperature, finite;
// block_sums[b] = the sum over ids b * kWeightBlock ... Returns the sum of all.
uint64_t WeighLogits(std::span<const float> logits, float temperature, float max_scaled, uint64_t* weights,
                     uint64_t* block_sums);

// Sum of ExpTerm(logits[i] - max) (model/sampling/log_softmax.h), NaN counting nothing; `max` is the largest logit,
// finite.
uint64_t SumExp(std::span<const float> logits, float max);

// The same functions without vector instructions, for tests.
namespace scalar {
float MaxLogit(std::span<const float> logits);
uint64_t WeighLogits(std::span<const float> logits, float temperature, float max_scaled, uint64_t* weights,
                     uint64_t* block_sums);
uint64_t SumExp(std::span<const float> logits, float max);
}  // namespace scalar

}  // namespace smt
