// What a model computes from ids, by its two ways of computing it, as plain values. Hides LibTorch from the commands.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/slot_runner.h"

namespace smt::tools {

struct Computed {
  std::vector<float> logits;        // [L, V], after each id
  std::vector<float> ssm_outputs;   // [writes, D]
  std::vector<float> pool_weights;  // [writes, W]
  std::vector<std::byte> state;     // StateLayout's bytes, after all ids
};

struct ComputeOptions {
  std::string model_dir;
  std::string device = "cpu";     // "cpu", "cuda", "cuda:N", "auto"
  std::string dtype = "float32";  // "float32" | "bfloat16"
  std::optional<WindowPolicy> window_policy;
};

// StrideHybridModel::Forward: all windows in parallel. `ids` must be in the vocabulary; none is fine.
absl::StatusOr<Computed> ComputeParallel(const ComputeOptions& options, std::span<const int32_t> ids);

// The serving path: one token at a time through a SlotRunner.
absl::StatusOr<Computed> ComputeStepwise(const ComputeOptions& options, std::span<const int32_t> ids);

// A runner with one slot.
absl::StatusOr<std::unique_ptr<SlotRunner>> NewRunner(const ComputeOptions& options);

// The tensor `input_ids` of a safetensors file: I32 or I64, [L] or [1, L], each id in [0, vocab_size).
absl::StatusOr<std::vector<int32_t>> ReadInputIds(const std::string& path, int64_t vocab_size);

}  // namespace smt::tools
