// A model of a few lines: the id after position p is script[p mod length]. So what is generated depends on where the
// session stands and on nothing else, and every test can say beforehand what must come out.
#pragma once

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "server/engine/executor.h"

namespace smt {

inline constexpr int32_t kFakeVocab = 264;

// What tests turn while the executor runs.
struct FakeModel {
  std::vector<int32_t> script = {'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j'};
  std::atomic<int64_t> step_us{0};    // each step takes that long
  std::atomic<int64_t> ingest_us{0};  // each id absorbed, too
  std::atomic<bool> broken{false};    // steps fail from now on
  std::atomic<int64_t> steps{0};
};

class FakeExecutor final : public Executor {
 public:
  FakeExecutor(std::shared_ptr<FakeModel> model, int32_t slots, int64_t state_bytes)
      : model_(std::move(model)), positions_(slots, 0), last_(slots, -1), params_(slots) {
    info_.device = "fake";
    info_.dtype = "float32";
    info_.numerics_id = "fake";
    info_.deterministic = true;
    info_.slots = slots;
    info_.state_bytes = info_.slot_bytes = state_bytes;
    info_.vocab_size = kFakeVocab;
    info_.stride = 4;
    info_.input_tokens = 8;
  }

  const ExecutorInfo& info() const override { return info_; }
  int64_t position(int32_t slot) const override { return positions_[slot]; }
  void Reset(int32_t slot) override {
    positions_[slot] = 0;
    last_[slot] = -1;
  }
  Ticket Load(int32_t slot, std::span<const std::byte> state) override {
    std::memcpy(&positions_[slot], state.data(), sizeof(int64_t));
    last_[slot] = -1;
    return Done({});
  }
  Ticket Save(int32_t slot, std::span<std::byte> state) override {
    std::memset(state.data(), 0, state.size());
    std::memcpy(state.data(), &positions_[slot], sizeof(int64_t));
    return Done({});
  }
  Ticket Copy(int32_t from, int32_t to) override {
    positions_[to] = positions_[from];
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
      if (item.append_last_sampled) ++positions_[item.slot];
      positions_[item.slot] += static_cast<int64_t>(item.ids.size());
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
  Ticket Done(StepResult result) {
    done_[next_] = std::move(result);
    return next_++;
  }

  const std::shared_ptr<FakeModel> model_;
  ExecutorInfo info_;
  std::vector<int64_t> positions_;
  std::vector<int32_t> last_;
  std::vector<std::shared_ptr<const SamplingParams>> params_;
  std::map<Ticket, StepResult> done_;
  Ticket next_ = 1;
};

}  // namespace smt
