// Small models of odd shapes with random weights, large enough that every part shows in the logits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/stride_hybrid_model.h"

namespace smt {

struct TinyCase {
  std::string name;  // a word
  StrideHybridConfig config;
};
// Both transformers, both SSMs, both pool scopes, tied and untied heads; every shape odd in its own way. All have s <
// m.
const std::vector<TinyCase>& TinyCases();

StrideHybridModel RandomModel(const StrideHybridConfig& config, uint32_t seed = 1);
std::vector<int32_t> RandomIds(int64_t count, int64_t vocab_size, uint32_t seed = 2);
at::Tensor AsTensor(const std::vector<int32_t>& ids);  // int64 [1, L]

// The largest |a - b|; infinity where shapes differ or something is not finite.
double MaxDifference(const at::Tensor& a, const at::Tensor& b);

}  // namespace smt
