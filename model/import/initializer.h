// Random weights of a model that is about to be trained or tested: GPT-2's and Mamba's published initialisations.
//
//   embeddings      normal(0, 0.02), positions normal(0, 0.01)
//   transformer     matrices normal(0, 0.02), those that write to the residual stream / sqrt(2 layers)
//   SSM             matrices uniform(±1/sqrt(in)), out_proj / sqrt(layers); A = -(1 … d_state); D = 1; time steps
//                   log-uniform in [0.001, 0.1]; the simple SSM's decays between 0.73 and 0.99
//   pooling         identity + normal(0, 0.1/sqrt(D)): scores begin as similarity to the window's mean
//   gains 1, biases 0
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"
#include "model/tensor_names.h"

namespace smt {

// The values of one tensor, row-major. A function of (spec.name, seed, config) alone: tensors can be made in any order,
// and adding a tensor changes no other.
std::vector<float> InitialValues(const TensorSpec& spec, const StrideHybridConfig& config, uint64_t seed);

}  // namespace smt
