// An AsyncRunner over any SlotRunner: does its work when it is queued and keeps what it drew until it is taken. At the
// end of a stride it appends without drawing where other items ride along, and now and then puts an item off, so that
// the executor above goes through all that a device may do, on a CPU. Every third step is "measured" and takes kTimes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "model/async_runner.h"
#include "model/sampling/sampler.h"

namespace smt {

class BackgroundRunner : public AsyncRunner {
 public:
  static constexpr Times kTimes = {.window = 0.25, .writes = 0.5, .draw = 0.125};

  explicit BackgroundRunner(std::unique_ptr<SlotRunner> inner)
      : inner_(std::move(inner)),
        sampler_(static_cast<int32_t>(inner_->config().vocab_size)),
        logits_(static_cast<size_t>(inner_->config().vocab_size)),
        slots_(static_cast<size_t>(inner_->slots())) {}

  const StrideHybridConfig& config() const override { return inner_->config(); }
  const StateLayout& layout() const override { return inner_->layout(); }
  int32_t slots() const override { return inner_->slots(); }
  bool deterministic() const override { return inner_->deterministic(); }
  std::string numerics_id() const override { return inner_->numerics_id(); }
  int64_t position(int32_t slot) const override { return inner_->position(slot); }
  void Reset(int32_t slot) override {
    slots_[static_cast<size_t>(slot)] = {};
    inner_->Reset(slot);
  }
  void Load(int32_t slot, std::span<const std::byte> state) override {
    inner_->Load(slot, state);
    slots_[static_cast<size_t>(slot)] = {};
  }
  void Save(int32_t slot, std::span<std::byte> state) override { inner_->Save(slot, state); }
  void Copy(int32_t from, int32_t to) override {
    inner_->Copy(from, to);
    if (from != to) slots_[static_cast<size_t>(to)] = {};
  }
  void Ingest(std::span<const Chunk> chunks) override {
    for (const Chunk& chunk : chunks) slots_[static_cast<size_t>(chunk.slot)].owes_draw = false;
    inner_->Ingest(chunks);
  }
  void Step(std::span<const int32_t> slots, std::span<const int32_t> ids, float* logits) override {
    inner_->Step(slots, ids, logits);
  }
  void Logits(std::span<const int32_t> slots, float* logits) override { inner_->Logits(slots, logits); }
  void SetWriteObserver(std::function<void(const WriteEvent&)> observer) override {
    inner_->SetWriteObserver(std::move(observer));
  }
  AsyncRunner* async() override { return this; }

  int64_t Queue(std::span<const Item> items, std::span<Part> parts) override {
    EXPECT_LT(queued_.size(), static_cast<size_t>(max_queued()));
    Results& results = queued_.emplace_back();
    results.ids.assign(items.size(), -1);
    results.logprobs.resize(items.size());
    for (size_t i = 0; i < items.size(); ++i) {
      parts[i] = PartOf(items[i], items.size());
      Run(items[i], parts[i], &results.ids[i], &results.logprobs[i]);
    }
    if (++last_step_ % 3 == 0) results.times = kTimes;
    return last_step_;
  }
  int32_t max_queued() const override { return 2; }
  bool Take(int64_t step, bool wait, Results* results) override {
    EXPECT_EQ(step, last_step_ - static_cast<int64_t>(queued_.size()) + 1);
    if (!wait && random_() % 2 == 0) return false;
    *results = std::move(queued_.front());
    queued_.pop_front();
    return true;
  }
  int64_t QueueSave(int32_t slot, std::span<std::byte> state) override {
    std::vector<std::byte> bytes(state.size());
    inner_->Save(slot, bytes);
    transfers_[++last_transfer_] = {state, std::move(bytes)};
    return last_transfer_;
  }
  bool TakeTransfer(int64_t transfer, bool wait) override {
    if (!wait && random_() % 2 == 0) return false;
    const auto found = transfers_.find(transfer);
    std::copy(found->second.second.begin(), found->second.second.end(), found->second.first.begin());
    transfers_.erase(found);
    return true;
  }

 private:
  struct Slot {
    int32_t last = -1;
    bool owes_draw = false;
  };

  Part PartOf(const Item& item, size_t items) {
    const Slot& slot = slots_[static_cast<size_t>(item.slot)];
    const bool appends = item.append >= 0 || (item.append == Item::kLast && !slot.owes_draw);
    const bool ends = appends && (position(item.slot) + 1) % config().stride == 0;
    if (!ends || item.whole) return {.appended = appends, .drawn = true};
    if (items > 1 && random_() % 4 == 0) return {};
    return {.appended = true, .drawn = items == 1};
  }
  void Run(const Item& item, const Part& part, int32_t* drawn, TokenLogprobs* logprobs) {
    Slot& slot = slots_[static_cast<size_t>(item.slot)];
    const int32_t id = item.append >= 0 ? item.append : slot.last;
    if (part.appended && !part.drawn) {
      const Chunk chunk = {item.slot, {&id, 1}};
      inner_->Ingest({&chunk, 1});
      slot.owes_draw = true;
    }
    if (!part.drawn) return;
    slot.owes_draw = false;
    if (part.appended) {
      inner_->Step({&item.slot, 1}, {&id, 1}, logits_.data());
    } else {
      inner_->Logits({&item.slot, 1}, logits_.data());
    }
    PenaltyState penalties = *item.penalties;
    if (item.behind) penalties.Add(slot.last);
    SampledToken token;
    if (!sampler_.Sample(logits_, *item.sampling, penalties, position(item.slot) + 1, &token).ok()) token.id = -1;
    slot.last = *drawn = token.id;
    *logprobs = std::move(token.logprobs);
  }

  const std::unique_ptr<SlotRunner> inner_;
  Sampler sampler_;
  std::vector<float> logits_;
  std::vector<Slot> slots_;
  std::deque<Results> queued_;
  int64_t last_step_ = 0, last_transfer_ = 0;
  std::map<int64_t, std::pair<std::span<std::byte>, std::vector<std::byte>>> transfers_;
  std::mt19937 random_{7};
};

}  // namespace smt
