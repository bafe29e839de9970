// Executor: what the engine talks to. Values and slot numbers, no tensors. One contract suite runs over every
// implementation (tests/server/engine/executor_contract.h).
//
// A slot holds one session's state at position t (ids absorbed) and, once sampled, the id drawn last but not yet
// appended. Phases (t mod s, writes, refills) are derived inside, so a caller cannot disagree with them.
//
// Order: operations take effect in the order they were issued. Submit may return before the work is done; results come
// by Poll, in any order of tickets. A Save issued after a Submit sees that step's state.
// Faults: after one the executor and its slots are dead. It is told by Submit and Poll (INTERNAL); the other methods do
// not throw, theirs is told with their ticket or the next one.
// Threads: one thread calls; the object may use threads of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/sampling/sampling_params.h"
#include "model/slot_capacity.h"

namespace smt {

enum class Want : uint8_t {
  kNothing,  // absorb the ids
  kSample,   // absorb the ids, then draw the next one with the slot's bound sampling parameters
  kScore,    // absorb the ids; after each give the log-probability of the matching target
};

struct PlanItem {
  int32_t slot = 0;
  bool append_last_sampled = false;   // first append the id this slot drew last
  std::span<const int32_t> ids = {};  // then these; valid until the ticket is polled. Both empty with kSample:
                                      // draw from the logits of the present position (t >= 1)
  Want want = Want::kNothing;
  std::span<const int32_t> targets = {};  // kScore: targets[i] is scored after ids[i]; or, when ids is empty, one
                                          // target scored at the present position (t >= 1)
  int32_t top_logprobs = -1;              // kScore: alternatives for each target
};

// An item that appends the id drawn last and draws the next one may take two steps: one appends (`absorbed`) and defers
// the draw, and the same item in a later step draws without appending again.
struct ItemResult {
  bool deferred = false;              // what was wanted is not done; submit the item again
  bool absorbed = true;               // the item's ids were appended by this step
  int32_t id = -1;                    // kSample
  TokenLogprobs logprobs;             // kSample with top_logprobs >= 0
  std::vector<TokenLogprobs> scores;  // kScore, one a target
  absl::Status status;                // kSample: INTERNAL when no id can be drawn (every logit is NaN or masked); the
                                      // ids were absorbed, other items and the slot are unharmed. With steps in
                                      // flight: so for the item that was to append what this one should have drawn
};

// Seconds spent in each phase of the step. With steps in flight `write`, `decode` (with refills) and `sample` are the
// device's, of some steps only, and overlap.
struct StepTimings {
  double ingest = 0, write = 0, refill = 0, decode = 0, sample = 0;
};

struct StepResult {
  std::vector<ItemResult> items;  // in plan order
  StepTimings timings;
};

struct ExecutorInfo {
  std::string device;       // "cpu", "cuda:0 NVIDIA H200"
  std::string dtype;        // "float32" | "bfloat16" | "float16"
  std::string numerics_id;  // states are comparable bit for bit where this is equal
  bool deterministic = false;
  int32_t slots = 0;
  int32_t max_in_flight = 1;  // Submits that may be outstanding
  int64_t state_bytes = 0;    // of a Load / Save buffer (model/state_layout.h)
  int64_t slot_bytes = 0;     // device memory a slot costs, derived state included
  SlotCapacity capacity;      // what `slots` were chosen from, where that is known
  int32_t vocab_size = 0;
  int32_t stride = 0;
  int32_t input_tokens = 0;    // m
  int32_t memory_vectors = 0;  // n
};

using Ticket = int64_t;

class Executor {
 public:
  virtual ~Executor() = default;
  virtual const ExecutorInfo& info() const = 0;

  virtual int64_t position(int32_t slot) const = 0;  // ids absorbed, all issued work counted
  virtual void Reset(int32_t slot) = 0;
  // INVALID_ARGUMENT with the ticket, the slot being as before, where it is no state. Buffers stay valid until the
  // ticket is done.
  virtual Ticket Load(int32_t slot, std::span<const std::byte> state) = 0;
  virtual Ticket Save(int32_t slot, std::span<std::byte> state) = 0;
  virtual Ticket Copy(int32_t from, int32_t to) = 0;

  // Parameters of the slot's coming draws. `prior` are the last <= m ids before generation (repetition penalty counts
  // them), `generated` those of this request already drawn (a resumed request). Penalty counts start from these.
  virtual void BindSampling(int32_t slot, std::shared_ptr<const SamplingParams> params, std::span<const int32_t> prior,
                            std::span<const int32_t> generated) = 0;

  // At most one item a slot.
  virtual absl::StatusOr<Ticket> Submit(std::span<const PlanItem> plan) = 0;
  // True when the ticket is done (then it is forgotten); `wait` blocks until it is. `result` may be null for Load,
  // Save and Copy tickets.
  virtual absl::StatusOr<bool> Poll(Ticket ticket, bool wait, StepResult* result) = 0;
};

}  // namespace smt
