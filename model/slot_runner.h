// SlotRunner: a Stride Memory Transformer stepping many sessions at once. A slot holds one session's fixed-size state
// on the device; sessions in one call may be at any phase (t mod s). Two implementations, tested for equality:
//   TorchSlotRunner  LibTorch operators, any LibTorch device; reads like the paper
//   CpuSlotRunner    our own batch-invariant float32 CPU kernels (model/ops); what the server runs on a CPU
//
// Deterministic runners are batch-invariant: a slot's state and logits are a function of its ids alone, bit for bit,
// whatever else is in the call, however ids are split over calls, and after Save and Load.
//
// Not thread-safe: one thread drives a runner. Throws c10::Error or std::exception on a device fault.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "model/config.h"
#include "model/slot_capacity.h"
#include "model/state_layout.h"

namespace smt {

class AsyncRunner;

class SlotRunner {
 public:
  // Ids to append to one slot.
  struct Chunk {
    int32_t slot;
    std::span<const int32_t> ids;
  };
  // What one write did; for verification and visualisation.
  struct WriteEvent {
    int32_t slot;
    int64_t position;                     // t, a multiple of s
    std::span<const float> pool_weights;  // [W]: valid memory rows oldest first, then tokens, then zeros
    std::span<const float> ssm_output;    // [D]
  };

  // Seconds spent on each part of Step and Logits since the last TakeTimings.
  struct Timings {
    double write = 0;   // pooling, SSM
    double refill = 0;  // window rows other than the newest token's
    double decode = 0;  // the newest token's rows and the LM head
  };

  virtual ~SlotRunner() = default;

  virtual const StrideHybridConfig& config() const = 0;
  virtual const StateLayout& layout() const = 0;
  virtual int32_t slots() const = 0;
  virtual bool deterministic() const = 0;
  // What bit-identity holds under: implementation, dtype, device, mode. E.g. "cpu/float32/fma1/deterministic".
  virtual std::string numerics_id() const = 0;

  virtual int64_t position(int32_t slot) const = 0;
  virtual void Reset(int32_t slot) = 0;                                   // t = 0, empty
  virtual void Load(int32_t slot, std::span<const std::byte> state) = 0;  // layout().bytes()
  virtual void Save(int32_t slot, std::span<std::byte> state) = 0;
  virtual void Copy(int32_t from, int32_t to) = 0;  // fork

  // Appends each chunk's ids, writing at stride boundaries; no logits. Each slot at most once in a call.
  virtual void Ingest(std::span<const Chunk> chunks) = 0;
  // Appends one id to each slot (writing where a stride ends) and gives the logits after it.
  // logits: [slots.size(), V] float32, row-major, host memory.
  virtual void Step(std::span<const int32_t> slots, std::span<const int32_t> ids, float* logits) = 0;
  // The logits after what each slot has absorbed already (t >= 1); appends nothing. Equal to what Step gave.
  virtual void Logits(std::span<const int32_t> slots, float* logits) = 0;

  // Called after each write, from the driving thread. Costs a copy of each output while set.
  virtual void SetWriteObserver(std::function<void(const WriteEvent&)> observer) = 0;

  // Memory that a slot costs, derived state included.
  virtual int64_t slot_bytes() const { return static_cast<int64_t>(layout().bytes()); }
  // What its slots were chosen from; not known from a runner that does not count.
  virtual SlotCapacity capacity() const { return {}; }
  // All zeros from a runner that does not measure.
  virtual Timings TakeTimings() { return {}; }
  // Itself, where its steps can run in the background.
  virtual AsyncRunner* async() { return nullptr; }
};

}  // namespace smt
