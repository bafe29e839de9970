// An Executor that computes nothing: a step takes a set time, two are in flight, and ids come of position and seed.
// What remains of a server on it is the engine, the service, the sessions and the store, at the rate of a device that
// this machine need not have.
#pragma once

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/engine/executor.h"

namespace smt::bench {

class PacedExecutor final : public Executor {
 public:
  // state_bytes: of a session, at least eight; zeros but for its position.
  PacedExecutor(int32_t slots, int32_t vocab_size, absl::Duration step, int64_t state_bytes)
      : step_(step), slots_(slots) {
    info_.device = "none";
    info_.dtype = "float32";
    info_.numerics_id = "none";
    info_.deterministic = true;
    info_.slots = slots;
    info_.max_in_flight = 2;
    info_.state_bytes = info_.slot_bytes = state_bytes;
    info_.vocab_size = vocab_size;
    info_.stride = 16;
    info_.input_tokens = 50;
    info_.memory_vectors = 15;
  }

  const ExecutorInfo& info() const override { return info_; }
  int64_t position(int32_t slot) const override { return slots_[slot].position; }
  void Reset(int32_t slot) override { slots_[slot].position = 0; }
  Ticket Load(int32_t slot, std::span<const std::byte> state) override {
    std::memcpy(&slots_[slot].position, state.data(), sizeof(int64_t));
    return Issue({}, absl::ZeroDuration());
  }
  Ticket Save(int32_t slot, std::span<std::byte> state) override {
    std::fill(state.begin(), state.end(), std::byte{0});
    std::memcpy(state.data(), &slots_[slot].position, sizeof(int64_t));
    return Issue({}, absl::ZeroDuration());
  }
  Ticket Copy(int32_t from, int32_t to) override {
    slots_[to] = slots_[from];
    return Issue({}, absl::ZeroDuration());
  }
  void BindSampling(int32_t slot, std::shared_ptr<const SamplingParams> params, std::span<const int32_t>,
                    std::span<const int32_t>) override {
    slots_[slot].seed = params != nullptr ? params->seed : 0;
  }
  absl::StatusOr<Ticket> Submit(std::span<const PlanItem> plan) override {
    StepResult result;
    for (const PlanItem& item : plan) {
      Slot& slot = slots_[item.slot];
      slot.position += static_cast<int64_t>(item.ids.size()) + (item.append_last_sampled ? 1 : 0);
      ItemResult& out = result.items.emplace_back();
      if (item.want == Want::kSample) {
        const uint64_t mixed = (slot.seed + static_cast<uint64_t>(slot.position)) * 0x9e3779b97f4a7c15;
        out.id = static_cast<int32_t>((mixed >> 32) % static_cast<uint64_t>(info_.vocab_size));
      }
      out.scores.resize(item.targets.size());
    }
    return Issue(std::move(result), step_);
  }
  absl::StatusOr<bool> Poll(Ticket ticket, bool wait, StepResult* result) override {
    const auto it = std::find_if(issued_.begin(), issued_.end(), [&](const Issued& i) { return i.ticket == ticket; });
    if (it == issued_.end()) return absl::InternalError("unknown ticket");
    const absl::Duration left = it->done - absl::Now();
    if (left > absl::ZeroDuration()) {
      if (!wait) return false;
      absl::SleepFor(left);
    }
    if (result != nullptr) *result = std::move(it->result);
    issued_.erase(it);
    return true;
  }

 private:
  struct Slot {
    int64_t position = 0;
    uint64_t seed = 0;
  };
  struct Issued {
    Ticket ticket;
    absl::Time done;
    StepResult result;
  };
  // One after the other, as a device would.
  Ticket Issue(StepResult result, absl::Duration takes) {
    busy_until_ = std::max(busy_until_, absl::Now()) + takes;
    issued_.push_back({++last_, busy_until_, std::move(result)});
    return last_;
  }

  const absl::Duration step_;
  ExecutorInfo info_;
  std::vector<Slot> slots_;
  std::deque<Issued> issued_;
  absl::Time busy_until_ = absl::InfinitePast();
  Ticket last_ = 0;
};

}  // namespace smt::bench
