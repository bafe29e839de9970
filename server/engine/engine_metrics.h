// What the engine reports besides each request's events. Implemented over server/metrics.
#pragma once

#include <cstdint>

#include "absl/time/time.h"
#include "server/engine/executor.h"

namespace smt {

struct StepMetrics {
  int32_t batch_size = 0;        // slots in the step
  int64_t prompt_tokens = 0;     // ids absorbed other than generated ones, log tails included
  int64_t generated_tokens = 0;  // ids drawn
  int32_t deferred = 0;          // items the executor put off
  StepTimings timings;           // the executor's
  absl::Duration duration;       // from its submission to its results
};

enum class SaveKind {
  kSnapshot,  // of a running session
  kEviction,  // an idle session left its slot
};

// Called on the engine's delivery thread; must not block.
class EngineMetrics {
 public:
  virtual ~EngineMetrics() = default;
  virtual void OnStep(const StepMetrics& step) = 0;
  virtual void OnSave(SaveKind kind, absl::Duration duration, int64_t bytes) = 0;
};

}  // namespace smt
