// TorchSlotRunner: a SlotRunner of LibTorch operators, on any LibTorch device. It computes what StrideHybridModel's
// reference steps compute, for many sessions at different phases in a batch.
//
// hop keeps keys and values (model/key_value_cache.h). A slot's cache is always what one refill at the last write and
// single columns since give; where it is behind (after Ingest, Load or Copy) it is brought up that way when logits are
// asked for. slide recomputes every window.
//
// deterministic: every operator runs in one fixed shape, the batch cut into tiles padded with rows of nobody, so that a
// slot's numbers do not depend on its company; on a CPU a tile is one row, see the .cc: CpuSlotRunner is the fast one
// there. Otherwise batches are taken as they come.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "model/slot_runner.h"
#include "model/stride_hybrid_model.h"

namespace smt {

struct TorchSlotRunnerOptions {
  int32_t slots = 16;  // sessions that can be resident; >= 1
  bool deterministic = true;
  std::optional<WindowPolicy> window_policy = std::nullopt;  // over the config's
};

// Runs on the model's device, windows in its window_dtype(). Several runners may share a model that nobody trains.
// INVALID_ARGUMENT names the option, its value and what is allowed.
absl::StatusOr<std::unique_ptr<SlotRunner>> NewTorchSlotRunner(StrideHybridModel model,
                                                               const TorchSlotRunnerOptions& options);

}  // namespace smt
