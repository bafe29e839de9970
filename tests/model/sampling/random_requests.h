// Requests that bias, penalize and mask at random, and logits with everything that float32 has.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <set>
#include <span>
#include <vector>

#include "model/sampling/penalty_state.h"
#include "model/sampling/sampling_params.h"

namespace smt {

inline std::vector<uint32_t> BitsOf(std::span<const float> logits) {
  std::vector<uint32_t> bits;
  for (const float l : logits) bits.push_back(std::bit_cast<uint32_t>(l));
  return bits;
}

// A request in the middle of its work.
struct Request {
  SamplingParams params;
  std::vector<int32_t> prior, generated;

  PenaltyState Penalties(size_t unknown = 0) const {  // without the last `unknown` ids
    PenaltyState state;
    state.Bind(params, prior, std::span(generated).first(generated.size() - unknown));
    return state;
  }
};

class RandomRequests {
 public:
  explicit RandomRequests(uint32_t seed) : random_(seed) {}

  template <typename... Values>
  double Pick(Values... values) {
    const std::vector<double> options = {static_cast<double>(values)...};
    return options[random_() % options.size()];
  }
  int32_t Id(size_t vocab) { return static_cast<int32_t>(random_() % vocab); }

  std::vector<float> Logits(size_t vocab) {
    std::normal_distribution<float> normal(0, static_cast<float>(Pick(0.3, 2, 10)));
    std::vector<float> logits(vocab);
    for (float& l : logits) {
      l = normal(random_);
      if (random_() % 16 == 0)
        l = static_cast<float>(Pick(0, -0.0, 1e-42, -1e-42, 3e38, -3e38, INFINITY, -INFINITY, NAN));
    }
    return logits;
  }

  Request Next(size_t vocab, bool drew) {
    Request request;
    SamplingParams& p = request.params;
    p.temperature = static_cast<float>(Pick(0, 0.7, 1));
    p.top_k = static_cast<int32_t>(Pick(0, 0, 5));
    p.seed = random_();
    p.repetition_penalty = static_cast<float>(Pick(1, 1, 1.2, 0.8, 1e30));
    p.presence_penalty = static_cast<float>(Pick(0, 0, 0.6, -0.5));
    p.frequency_penalty = static_cast<float>(Pick(0, 0, 0.3, -0.1));
    p.min_tokens = static_cast<int64_t>(Pick(0, 4, 5));
    for (int i = static_cast<int>(Pick(0, 8)); i > 0; --i) request.prior.push_back(Id(vocab));
    for (int i = static_cast<int>(Pick(drew ? 1 : 0, 3, 4, 5, 12)); i > 0; --i) request.generated.push_back(Id(vocab));
    for (int i = static_cast<int>(Pick(0, 1, 3)); i > 0; --i) p.masked_until_min_tokens.push_back(Id(vocab));
    std::set<int32_t> biased;
    for (int i = static_cast<int>(Pick(0, 0, 2, 6)); i > 0; --i) biased.insert(Id(vocab));
    for (const int32_t id : biased) p.logit_bias.emplace_back(id, static_cast<float>(Pick(0, 3.7, -100, 1e-3)));
    return request;
  }

 private:
  std::mt19937 random_;
};

}  // namespace smt
