// A model of a few lines: the id after position p is script[p mod length]. So what is generated depends on where the
// session stands and on nothing else, and every test can say beforehand what must come out. Its states are laid out as
// a model's, and depend on every id.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "model/state_layout.h"
#include "server/engine/executor.h"

namespace smt {

inline constexpr int32_t kFakeVocab = 264;

inline StrideHybridConfig FakeConfig() {
  StrideHybridConfig config;
  config.vocab_size = kFakeVocab;
  config.d_model = 4;
  config.n_ssm_outputs = 2;
  config.m_input_tokens = 8;
  config.stride = 4;
  config.ssm.kind = SsmKind::kSimple;
  config.ssm.n_layer = 1;
  return config;
}

// What tests turn while the executor runs.
struct FakeModel {
  std::vector<int32_t> script = {'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j'};
  std::atomic<int64_t> step_us{0};    // each step takes that long
  std::atomic<int64_t> ingest_us{0};  // each id absorbed, too
  std::atomic<bool> broken{false};    // steps fail from now on
  std::atomic<int64_t> steps{0};
  std::atomic<int64_t> absorbed{0};  // ids
};

class FakeExecutor final : public Executor {
 public:
  FakeExecutor(std::shared_ptr<FakeModel> model, int32_t slots)
      : model_(std::move(model)),
        positions_(slots, 0),
        hashes_(slots, 0),
        recent_(slots),
        last_(slots, -1),
        params_(slots) {
    info_.device = "fake";
    info_.dtype = "float32";
    info_.numerics_id = "fake";
    info_.deterministic = true;
    info_.slots = slots;
    info_.state_bytes = info_.slot_bytes = static_cast<int64_t>(layout_.bytes());
    info_.vocab_size = kFakeVocab;
    info_.stride = static_cast<int32_t>(FakeConfig().stride);
    info_.input_tokens = static_cast<int32_t>(FakeConfig().m_input_tokens);
  }

  const ExecutorInfo& info() const override { return info_; }
  int64_t position(int32_t slot) const override { return positions_[slot]; }
  void Reset(int32_t slot) override {
    positions_[slot] = 0;
    hashes_[slot] = 0;
    recent_[slot].clear();
    last_[slot] = -1;
  }
  Ticket Load(int32_t slot, std::span<const std::byte> state) override {
    positions_[slot] = layout_.position(state);
    std::memcpy(&hashes_[slot], layout_.state(state).data(), sizeof(uint64_t));
    const std::span<const int32_t> tokens = layout_.tokens(state);
    recent_[slot].assign(tokens.begin(), tokens.begin() + layout_.tokens_valid(positions_[slot]));
    last_[slot] = -1;
    return Done({});
  }
  Ticket Save(int32_t slot, std::span<std::byte> state) override {
    std::memset(state.data(), 0, state.size());
    layout_.position(state) = positions_[slot];
    std::copy(recent_[slot].begin(), recent_[slot].end(), layout_.tokens(state).begin());
    std::memcpy(layout_.state(state).data(), &hashes_[slot], sizeof(uint64_t));
    return Done({});
  }
  Ticket Copy(int32_t from, int32_t to) override {
    positions_[to] = positions_[from];
    hashes_[to] = hashes_[from];
    recent_[to] = recent_[from];
    last_[to] = last_[from];
    return Done({});
  }
  void BindSampling(int32_t slot, std::shared_ptr<const SamplingParams> params, std::span<const int32_t>,
                    std::span<const int32_t>) override {
    params_[slot] = std::move(params);
  }
  absl::StatusOr<Ticket> Submit(std::span<const PlanItem> plan) override {
    if (model_->broken) return absl::InternalError("the device is on fire");
    StepResult result;
    int64_t absorbed = 0;
    for (const PlanItem& item : plan) {
      ItemResult& out = result.items.emplace_back();
      if (item.append_last_sampled) Absorb(item.slot, last_[item.slot]);
      for (const int32_t id : item.ids) Absorb(item.slot, id);
      absorbed += static_cast<int64_t>(item.ids.size());
      if (item.want == Want::kSample) {
        out.id = last_[item.slot] = model_->script[positions_[item.slot] % model_->script.size()];
        if (params_[item.slot]->top_logprobs >= 0) out.logprobs = Logprobs(out.id, params_[item.slot]->top_logprobs);
      }
      if (item.want == Want::kScore) {
        for (const int32_t target : item.targets) out.scores.push_back(Logprobs(target, item.top_logprobs));
      }
    }
    ++model_->steps;
    model_->absorbed += absorbed;
    const int64_t us = model_->step_us + absorbed * model_->ingest_us;
    if (us > 0) absl::SleepFor(absl::Microseconds(us));
    return Done(std::move(result));
  }
  absl::StatusOr<bool> Poll(Ticket ticket, bool, StepResult* result) override {
    const auto it = done_.find(ticket);
    if (it == done_.end()) return absl::InternalError("unknown ticket");
    if (result != nullptr) *result = std::move(it->second);
    done_.erase(it);
    return true;
  }

  // -1/2 for id 0, -3/2 for id 1, ... of the id itself; alternatives are ids 0, 1, 2, ...
  static TokenLogprobs Logprobs(int32_t id, int32_t top) {
    TokenLogprobs out;
    out.logprob = -0.5f - static_cast<float>(id);
    for (int32_t i = 0; i < top; ++i) out.top.emplace_back(i, -0.5f - static_cast<float>(i));
    return out;
  }

 private:
  void Absorb(int32_t slot, int32_t id) {
    ++positions_[slot];
    hashes_[slot] = (hashes_[slot] ^ static_cast<uint64_t>(id + 1)) * 0x9e3779b97f4a7c15;
    recent_[slot].push_back(id);
    if (recent_[slot].size() > 8) recent_[slot].erase(recent_[slot].begin());
  }
  Ticket Done(StepResult result) {
    done_[next_] = std::move(result);
    return next_++;
  }

  const std::shared_ptr<FakeModel> model_;
  const StateLayout layout_{FakeConfig()};
  ExecutorInfo info_;
  std::vector<int64_t> positions_;
  std::vector<uint64_t> hashes_;              // of every id
  std::vector<std::vector<int32_t>> recent_;  // the last m
  std::vector<int32_t> last_;
  std::vector<std::shared_ptr<const SamplingParams>> params_;
  std::map<Ticket, StepResult> done_;
  Ticket next_ = 1;
};

}  // namespace smt
