// CpuSlotRunner: the whole model on our own batch-invariant float32 CPU kernels (model/ops); what a server without a
// GPU runs. Deterministic always: a slot's state and logits are a function of its ids alone, bit for bit, whatever else
// is in the call, however ids are split over calls, whatever the number of threads and the vector width.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/cpu/weight_source.h"
#include "model/ops/kernels.h"
#include "model/slot_runner.h"

namespace smt {

struct CpuSlotRunnerOptions {
  int32_t slots = 16;     // sessions that can be resident; >= 1
  bool bfloat16 = false;  // window matrices rounded to bfloat16 (arithmetic and memory path stay float32)
  int threads = 0;        // 0: one a hardware thread, 16 at most
  const ops::Kernels* kernels = nullptr;  // null: the best this processor has; any gives the same bits
};

// INVALID_ARGUMENT names the option, its value and what is allowed; what `source` answers where a tensor is missing or
// has another shape. Both window policies, both pool scopes, GPT-2 and simple transformers, Mamba and simple SSMs.
absl::StatusOr<std::unique_ptr<SlotRunner>> NewCpuSlotRunner(const StrideHybridConfig& config,
                                                             const WeightSource& source,
                                                             const CpuSlotRunnerOptions& options);

}  // namespace smt
