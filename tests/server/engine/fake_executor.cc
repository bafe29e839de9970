#include "tests/server/engine/fake_executor.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <stdexcept>
#include <utility>

#include "absl/time/clock.h"

namespace smt {
namespace {

uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

void FakeState::Absorb(int32_t id) {
  hash = Mix(hash + 0x9e3779b97f4a7c15 + static_cast<uint64_t>(id));
  ++position;
}

int32_t FakeState::Draw(const SamplingParams& params, uint64_t prior_hash, int32_t vocab) const {
  return static_cast<int32_t>(Mix(hash ^ Mix(params.seed) ^ prior_hash) % static_cast<uint64_t>(vocab));
}

float FakeState::Score(int32_t target) const {
  return -static_cast<float>(Mix(hash + static_cast<uint64_t>(target)) % 1000) / 100.0f;
}

FakeState FakeState::Of(std::span<const int32_t> ids) {
  FakeState state;
  for (int32_t id : ids) state.Absorb(id);
  return state;
}

uint64_t FakeState::HashOf(std::span<const int32_t> ids) { return Of(ids).hash; }

// --- FakeControl ---------------------------------------------------------------------------------------------------

void FakeControl::Hold() {
  PlainLock lock(mu_);
  holding_ = true;
}

void FakeControl::LetThrough(int steps) {
  PlainLock lock(mu_);
  permits_ += steps;
  changed_.NotifyAll();
}

void FakeControl::LetAllThrough() {
  PlainLock lock(mu_);
  holding_ = false;
  changed_.NotifyAll();
}

void FakeControl::FailNextSubmit(bool by_throwing) {
  PlainLock lock(mu_);
  fail_submit_ = true;
  by_throwing_ = by_throwing;
}

void FakeControl::FailNextPoll(bool by_throwing) {
  PlainLock lock(mu_);
  fail_poll_ = true;
  by_throwing_ = by_throwing;
}

void FakeControl::FailNextLoad(absl::Status status) {
  PlainLock lock(mu_);
  fail_load_ = std::move(status);
}

void FakeControl::FailDraw(int64_t after_draws) {
  PlainLock lock(mu_);
  fail_draw_after_ = after_draws;
}

void FakeControl::HangIn(Call call) {
  PlainLock lock(mu_);
  hang_in_ = call;
  changed_.NotifyAll();
}

bool FakeControl::AwaitHang() {
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  PlainLock lock(mu_);
  while (!hangs_ && absl::Now() < deadline) changed_.WaitUntil(mu_, deadline);
  return hangs_;
}

void FakeControl::Pass(Call call) {
  PlainLock lock(mu_);
  while (hang_in_ == call) {
    hangs_ = true;
    changed_.NotifyAll();
    changed_.Wait(mu_);
  }
}

std::vector<FakeControl::Batch> FakeControl::batches() const {
  PlainLock lock(mu_);
  return batches_;
}

bool FakeControl::AwaitBatches(size_t count) {
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  PlainLock lock(mu_);
  while (batches_.size() < count && absl::Now() < deadline) changed_.WaitUntil(mu_, deadline);
  return batches_.size() >= count;
}

bool FakeControl::AwaitHeld() {
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  PlainLock lock(mu_);
  while (!held_ && absl::Now() < deadline) changed_.WaitUntil(mu_, deadline);
  return held_;
}

int64_t FakeControl::binds() const {
  PlainLock lock(mu_);
  return binds_;
}

// --- FakeExecutor --------------------------------------------------------------------------------------------------

FakeExecutor::FakeExecutor(Options options, std::shared_ptr<FakeControl> control)
    : options_(options),
      control_(std::move(control)),
      slots_(static_cast<size_t>(options.slots)),
      issued_(static_cast<size_t>(options.slots)),
      random_(options.seed) {
  info_.device = "fake";
  info_.numerics_id = "fake";
  info_.deterministic = true;
  info_.slots = options.slots;
  info_.max_in_flight = options.max_in_flight;
  info_.state_bytes = kStateBytes;
  info_.vocab_size = options.vocab;
  info_.stride = options.stride;
  info_.input_tokens = options.input_tokens;
}

// What is left runs now: buffers must outlive the executor.
FakeExecutor::~FakeExecutor() {
  StepResult ignored;
  for (Operation& operation : pending_) operation.run(&ignored);
}

void FakeExecutor::CheckThread() const {
  if (thread_ == std::thread::id()) thread_ = std::this_thread::get_id();
  EXPECT_EQ(thread_, std::this_thread::get_id()) << "the executor was called from two threads";
}

Ticket FakeExecutor::Issue(bool is_step, std::function<void(StepResult*)> run) {
  CheckThread();
  EXPECT_FALSE(dead_) << "the executor was used after its fault";
  pending_.push_back({++last_ticket_, is_step, std::move(run)});
  return last_ticket_;
}

int64_t FakeExecutor::position(int32_t slot) const { return issued_[slot]; }

void FakeExecutor::Reset(int32_t slot) {
  control_->Pass(FakeControl::Call::kReset);
  issued_[slot] = 0;
  Issue(false, [this, slot](StepResult*) { slots_[slot] = {}; });
}

Ticket FakeExecutor::Load(int32_t slot, std::span<const std::byte> state) {
  control_->Pass(FakeControl::Call::kLoad);
  {
    PlainLock lock(control_->mu_);
    if (!control_->fail_load_.ok()) {
      const Ticket ticket = Issue(false, [](StepResult*) {});
      failed_loads_[ticket] = std::exchange(control_->fail_load_, absl::OkStatus());
      return ticket;
    }
  }
  std::memcpy(&issued_[slot], state.data(), sizeof(int64_t));
  EXPECT_EQ(state.size(), static_cast<size_t>(kStateBytes));
  return Issue(false, [this, slot, state](StepResult*) {
    slots_[slot] = {};
    std::memcpy(&slots_[slot].state.position, state.data(), 8);
    std::memcpy(&slots_[slot].state.hash, state.data() + 8, 8);
  });
}

Ticket FakeExecutor::Save(int32_t slot, std::span<std::byte> state) {
  control_->Pass(FakeControl::Call::kSave);
  EXPECT_EQ(state.size(), static_cast<size_t>(kStateBytes));
  return Issue(false, [this, slot, state](StepResult*) {
    std::memcpy(state.data(), &slots_[slot].state.position, 8);
    std::memcpy(state.data() + 8, &slots_[slot].state.hash, 8);
  });
}

Ticket FakeExecutor::Copy(int32_t from, int32_t to) {
  issued_[to] = issued_[from];
  return Issue(false, [this, from, to](StepResult*) { slots_[to] = slots_[from]; });
}

void FakeExecutor::BindSampling(int32_t slot, std::shared_ptr<const SamplingParams> params,
                                std::span<const int32_t> prior, std::span<const int32_t> generated) {
  EXPECT_LE(prior.size(), static_cast<size_t>(options_.input_tokens));
  EXPECT_TRUE(generated.empty());
  Issue(false, [this, slot, params = std::move(params), hash = FakeState::HashOf(prior)](StepResult*) {
    slots_[slot].params = params;
    slots_[slot].prior_hash = hash;
    slots_[slot].last_drawn = -1;
    slots_[slot].draw_failed = slots_[slot].owes_draw = false;
  });
  PlainLock lock(control_->mu_);
  ++control_->binds_;
}

absl::StatusOr<Ticket> FakeExecutor::Submit(std::span<const PlanItem> plan) {
  CheckThread();
  control_->Pass(FakeControl::Call::kSubmit);
  EXPECT_FALSE(plan.empty());
  EXPECT_LT(steps_in_flight_, options_.max_in_flight) << "too many steps in flight";
  std::set<int32_t> seen;
  FakeControl::Batch batch;
  for (const PlanItem& item : plan) {
    EXPECT_TRUE(seen.insert(item.slot).second) << "slot " << item.slot << " is in the plan twice";
    EXPECT_TRUE(item.slot >= 0 && item.slot < options_.slots);
    batch.push_back({item.slot, item.append_last_sampled, static_cast<int64_t>(item.ids.size()), item.want});
    issued_[item.slot] += (item.append_last_sampled ? 1 : 0) + static_cast<int64_t>(item.ids.size());
  }
  {
    PlainLock lock(control_->mu_);
    control_->batches_.push_back(std::move(batch));
    control_->changed_.NotifyAll();
    if (std::exchange(control_->fail_submit_, false)) {
      return Die("injected fault at a submit", control_->by_throwing_);
    }
  }
  ++steps_in_flight_;
  return Issue(true, [this, items = std::vector<PlanItem>(plan.begin(), plan.end())](StepResult* result) {
    result->items.clear();
    for (const PlanItem& item : items) result->items.push_back(RunItem(item));
  });
}

absl::Status FakeExecutor::Die(const char* why, bool by_throwing) {
  dead_ = true;
  if (by_throwing) throw std::runtime_error(why);
  return absl::InternalError(why);
}

ItemResult FakeExecutor::RunItem(const PlanItem& item) {
  ItemResult result;
  SlotState& slot = slots_[item.slot];
  const bool draws_on = item.append_last_sampled && item.ids.empty() && item.want == Want::kSample;
  if (std::uniform_real_distribution<double>(0, 1)(random_) < options_.defer) {
    result.deferred = true;
    result.absorbed = false;
    // Now and then the id is appended all the same, and only the draw is still to come.
    if (draws_on && !slot.owes_draw && !slot.draw_failed && random_() % 2 == 0) {
      EXPECT_GE(slot.last_drawn, 0) << "slot " << item.slot << " has drawn nothing";
      slot.state.Absorb(slot.last_drawn);
      slot.last_drawn = -1;
      slot.owes_draw = result.absorbed = true;
    }
    return result;
  }
  const bool owed = std::exchange(slot.owes_draw, false) && draws_on;
  if (item.append_last_sampled && slot.draw_failed) {
    result.status = absl::InternalError("the draw before failed");
    return result;
  }
  if (owed) {
    result.absorbed = false;
  } else if (item.append_last_sampled) {
    EXPECT_GE(slot.last_drawn, 0) << "slot " << item.slot << " has drawn nothing";
    slot.state.Absorb(slot.last_drawn);
    slot.last_drawn = -1;
  }
  if (item.want == Want::kScore && item.ids.empty()) {
    EXPECT_EQ(item.targets.size(), 1u);
    EXPECT_GE(slot.state.position, 1);
    result.scores.push_back({.logprob = slot.state.Score(item.targets[0]), .top = {}});
  }
  for (size_t i = 0; i < item.ids.size(); ++i) {
    slot.state.Absorb(item.ids[i]);
    if (item.want == Want::kScore) {
      result.scores.push_back({.logprob = slot.state.Score(item.targets[i]), .top = {}});
    }
  }
  if (item.want == Want::kSample) {
    EXPECT_GE(slot.state.position, 1);
    if (slot.params == nullptr) {
      ADD_FAILURE() << "slot " << item.slot << " has no sampling parameters";
      return result;
    }
    {
      PlainLock lock(control_->mu_);
      if (control_->fail_draw_after_ >= 0 && control_->draws_ >= control_->fail_draw_after_) {
        slot.draw_failed = true;
        result.status = absl::InternalError("every logit is NaN");
        return result;
      }
      ++control_->draws_;
    }
    slot.last_drawn = result.id = slot.state.Draw(*slot.params, slot.prior_hash, options_.vocab);
    if (slot.params->top_logprobs >= 0) result.logprobs.logprob = slot.state.Score(result.id);
  }
  return result;
}

absl::StatusOr<bool> FakeExecutor::Poll(Ticket ticket, bool wait, StepResult* result) {
  CheckThread();
  EXPECT_FALSE(dead_) << "the executor was used after its fault";
  if (wait) control_->Pass(result == nullptr ? FakeControl::Call::kAwait : FakeControl::Call::kPoll);
  if (done_.count(ticket) == 0) {
    EXPECT_FALSE(pending_.empty() || ticket < pending_.front().ticket) << "ticket " << ticket << " was polled before";
    if (!wait && std::uniform_real_distribution<double>(0, 1)(random_) < options_.late_transfers) return false;
    // Without waiting, work behind a step that is held back is not done yet.
    while (!pending_.empty() && pending_.front().ticket <= ticket) {
      Operation operation = std::move(pending_.front());
      if (operation.is_step) {
        PlainLock lock(control_->mu_);
        while (control_->holding_ && control_->permits_ == 0) {
          if (!wait) {
            pending_.front() = std::move(operation);
            return false;
          }
          control_->held_ = true;
          control_->changed_.NotifyAll();
          control_->changed_.Wait(control_->mu_);
          control_->held_ = false;
        }
        if (control_->holding_) --control_->permits_;
        if (std::exchange(control_->fail_poll_, false)) {
          pending_.front() = std::move(operation);
          return Die("injected fault at a poll", control_->by_throwing_);
        }
      }
      pending_.pop_front();
      if (operation.is_step && options_.step_time > absl::ZeroDuration()) absl::SleepFor(options_.step_time);
      operation.run(&done_[operation.ticket]);
      if (operation.is_step) --steps_in_flight_;
    }
  }
  if (result != nullptr) *result = std::move(done_[ticket]);
  done_.erase(ticket);
  if (const auto failed = failed_loads_.find(ticket); failed != failed_loads_.end()) {
    const absl::Status status = failed->second;
    failed_loads_.erase(failed);
    dead_ = !absl::IsInvalidArgument(status);
    return status;
  }
  return true;
}

}  // namespace smt
