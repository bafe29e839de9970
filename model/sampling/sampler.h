// Draws ids on the host, exactly as docs/sampling.md says: the id is a function of (logits, parameters, penalty state,
// seed, position) alone, the same on every device.
//
// What the page leaves open is settled so: a logit of NaN or -infinity is never drawn; when the largest logit divided
// by the temperature is not finite (a tiny temperature, an infinite logit) the draw is the argmax, as with temperature
// 0.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "model/sampling/penalty_state.h"
#include "model/sampling/sampling_params.h"

namespace smt {

struct SampledToken {
  int32_t id = -1;
  TokenLogprobs logprobs;  // with params.top_logprobs >= 0; before bias, penalties and temperature
};

// INTERNAL: every logit is NaN, -infinity or masked.
absl::Status NoIdCanBeDrawn();

// Scratch memory for rows of one vocabulary; no allocation after the first calls. Not thread-safe: one per thread.
class Sampler {
 public:
  explicit Sampler(int32_t vocab_size);
  ~Sampler();

  // Draws the id that takes `position` (1-based) from `logits` [vocab_size]. Does not change `penalties`: the caller
  // adds the id when it is kept. INTERNAL when no id can be drawn: every logit is NaN, -infinity or masked.
  absl::Status Sample(std::span<const float> logits, const SamplingParams& params, const PenaltyState& penalties,
                      int64_t position, SampledToken* out);

 private:
  // Which weights are kept: those greater, and equal ones up to an id.
  struct Cut {
    uint64_t weight = 1;
    int32_t last_id = INT32_MAX;
  };
  struct Histogram;

  std::span<const float> Adjust(std::span<const float> logits, const SamplingParams& params,
                                const PenaltyState& penalties);
  int32_t DrawFromAll(uint64_t random, uint64_t sum) const;
  int32_t DrawFromKept(uint64_t random, Cut cut);
  Cut FindCut(const SamplingParams& params, uint64_t sum);
  Cut CutAtCount(uint64_t count, uint64_t* sum_kept);
  Cut CutAtSum(uint64_t sum);
  void CollectBucket(size_t bucket);

  const size_t vocab_size_;
  std::vector<float> adjusted_;
  std::vector<uint64_t> weights_, block_sums_;
  std::unique_ptr<Histogram> histogram_;
  std::vector<int32_t> bucket_, kept_;  // ids
};

}  // namespace smt
