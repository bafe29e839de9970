// The complete state of B sessions at one common position, as values: Forward takes one and gives one.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "model/config.h"
#include "model/ssm_memory.h"
#include "model/state_layout.h"

namespace smt {

struct HybridState {
  int64_t position = 0;  // t, tokens absorbed
  at::Tensor tokens;     // int64 [B, min(t, m)], the last ids, oldest first
  at::Tensor memory;     // float32 [B, min(t / s, n), D], the last memory vectors, oldest first
  SsmState ssm;
};

// The flat bytes of model/state_layout.h, of one row, and back (B = 1, on the CPU). `bytes` has layout.bytes().
// Unpack throws std::invalid_argument on a negative position or an id outside the vocabulary.
void PackState(const HybridState& state, int64_t row, const StateLayout& layout, std::span<std::byte> bytes);
HybridState UnpackState(const StrideHybridConfig& config, const StateLayout& layout, std::span<const std::byte> bytes);

// Cuts the state out of the autograd graph, for truncated backpropagation.
HybridState Detach(const HybridState& state);

}  // namespace smt
