// The windows of sessions as they go: a ring of at most n memory vectors and a ring of the last m tokens each, with the
// SSM's state beside them: the complete state of a session. Adding to a ring is O(1): nothing shifts.
//
//   BatchedWindowManager  a fixed set of slots in device tensors; sessions may be at any phase (t mod s)
//   WindowManager         one session
//
// Values only: what a write computes and what a window's logits are is the model's. Not thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/hybrid_state.h"
#include "model/ssm_memory.h"
#include "model/state_layout.h"
#include "model/window_policy.h"

namespace smt {

// Windows of one fixed width, left-aligned on both sides.
struct WindowBatch {
  at::Tensor memory;  // float32 [B, n, D], oldest first; rows beyond the valid ones are finite
  at::Tensor ids;     // int64 [B, width], oldest first, then 0
  at::Tensor mask;    // bool [B, n + width], true where a row counts
  at::Tensor last;    // int64 [B], the row of the newest token, n + count - 1
};

class BatchedWindowManager {
 public:
  // All slots empty (t = 0). One more, scratch(), is nobody's: for rows that only pad a batch to a fixed shape.
  BatchedWindowManager(const StrideHybridConfig& config, const SSMMemoryImpl& ssm, int32_t slots, at::Device device);
  // Tensors would be shared: fork with Copy instead.
  BatchedWindowManager(const BatchedWindowManager&) = delete;
  BatchedWindowManager& operator=(const BatchedWindowManager&) = delete;

  int32_t slots() const { return slots_; }
  int32_t scratch() const { return slots_; }
  int64_t position(int32_t slot) const { return sessions_[slot].position; }
  const StateLayout& layout() const { return layout_; }
  const StrideHybridConfig& config() const { return config_; }

  void Reset(int32_t slot);
  // bytes: layout().bytes(). Load throws std::invalid_argument where UnpackState does, leaving the slot as it was.
  void Load(int32_t slot, std::span<const std::byte> bytes);
  void Save(int32_t slot, std::span<std::byte> bytes) const;
  void Copy(int32_t from, int32_t to);  // fork

  // Appends one id. The caller writes where WritesAt(position) says so.
  void Append(int32_t slot, int32_t id);
  int32_t TokenAt(int32_t slot, int64_t position) const;  // one of the last min(t, m)

  // The memory of each slot as it is, and the tokens of `ranges[i]`, each at most `width` and within the last m.
  WindowBatch Gather(std::span<const int32_t> slots, std::span<const TokenRange> ranges, int64_t width) const;

  // The SSM's state of these slots (rows in order), and its replacement together with the pushed output [B, D].
  SsmState GatherSsm(std::span<const int32_t> slots) const;
  void Push(std::span<const int32_t> slots, const SsmResult& written);

 private:
  struct Session {
    int64_t position = 0;
    int64_t writes = 0;           // outputs pushed; write number w (from 0) sits in ring row w % n
    std::vector<int32_t> tokens;  // [m] ring; the token at position t sits at (t - 1) % m
  };
  int64_t memory_valid(const Session& session) const { return std::min(session.writes, config_.n_ssm_outputs); }
  at::Tensor Rows(std::span<const int32_t> slots) const;  // int64 on the device

  const StrideHybridConfig config_;
  const StateLayout layout_;
  const int32_t slots_;
  const at::Device device_;
  std::vector<Session> sessions_;  // slots + scratch; ids come from the host and go up inside a window's ids
  at::Tensor memory_;              // [(slots + 1) * n, D] float32 rings
  SsmState ssm_;                   // each [slots + 1, ...] float32
};

class WindowManager {
 public:
  WindowManager(const StrideHybridConfig& config, const SSMMemoryImpl& ssm, at::Device device = at::kCPU)
      : slots_(config, ssm, 1, device) {}

  int64_t position() const { return slots_.position(0); }
  const StateLayout& layout() const { return slots_.layout(); }
  void Reset() { slots_.Reset(0); }
  void Load(std::span<const std::byte> bytes) { slots_.Load(0, bytes); }
  void Save(std::span<std::byte> bytes) const { slots_.Save(0, bytes); }
  // Becomes a fork of `other`, which must be of the same model.
  void ForkFrom(const WindowManager& other);

  void Append(int32_t id) { slots_.Append(0, id); }
  // What a write at the present position pools over, and what its logits are computed from: exact widths, B = 1.
  WindowBatch WriteWindow() const;
  WindowBatch LogitsWindow(WindowPolicy policy) const;
  SsmState Ssm() const { return slots_.GatherSsm(kSlot); }
  void Push(const SsmResult& written) { slots_.Push(kSlot, written); }  // output [1, D]

  BatchedWindowManager& slots() { return slots_; }  // itself, as a batch of one

 private:
  static constexpr int32_t kSlot[1] = {0};
  BatchedWindowManager slots_;
};

}  // namespace smt
