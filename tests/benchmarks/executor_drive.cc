#include "tests/benchmarks/executor_drive.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <numeric>
#include <utility>

#include "model/base/status_macros.h"
#include "model/sampling/sampling_params.h"
#include "tests/benchmarks/bench_util.h"
#include "tests/benchmarks/random_ids.h"

namespace smt::bench {
namespace {

constexpr size_t kFilledTogether = 256;  // slots
constexpr int kMostDeferrals = 1000;     // of one item, before we believe that it is never done

struct Flying {
  Ticket ticket = 0;
  std::vector<PlanItem> plan;
};

// Steps in flight. Ends them when a stretch is left early, except after a fault: then the executor is dead.
class FlyingSteps {
 public:
  explicit FlyingSteps(Executor& executor) : executor_(executor) {}
  ~FlyingSteps() {
    for (const Flying& step : steps_) executor_.Poll(step.ticket, true, &result_).IgnoreError();
  }
  size_t size() const { return steps_.size(); }

  absl::Status Submit(std::vector<PlanItem> plan) {
    Flying step{.plan = std::move(plan)};
    const absl::StatusOr<Ticket> ticket = executor_.Submit(step.plan);
    if (!ticket.ok()) return Fault(ticket.status());
    step.ticket = *ticket;
    steps_.push_back(std::move(step));
    return absl::OkStatus();
  }
  // The oldest one's plan and results.
  absl::StatusOr<std::pair<std::vector<PlanItem>, const StepResult*>> Take() {
    Flying step = std::move(steps_.front());
    steps_.pop_front();
    for (absl::StatusOr<bool> done = false; !*done;) {
      done = executor_.Poll(step.ticket, true, &result_);
      if (!done.ok()) return Fault(done.status());
    }
    if (result_.items.size() != step.plan.size()) return absl::InternalError("not one result an item");
    return std::pair(std::move(step.plan), static_cast<const StepResult*>(&result_));
  }

 private:
  absl::Status Fault(const absl::Status& status) {
    steps_.clear();
    return status;
  }

  Executor& executor_;
  std::deque<Flying> steps_;
  StepResult result_;
};

}  // namespace

std::vector<int32_t> SlotRange(int32_t first, int32_t count) {
  std::vector<int32_t> slots(static_cast<size_t>(count));
  std::iota(slots.begin(), slots.end(), first);
  return slots;
}

void ExecutorDrive::BindSampling(Slots slots) {
  for (const int32_t slot : slots) {
    auto params = std::make_shared<SamplingParams>();
    params->temperature = 0.8f;
    params->top_p = 0.95f;
    params->seed = static_cast<uint64_t>(slot);
    executor_.BindSampling(slot, std::move(params), {}, {});
  }
}

absl::Status ExecutorDrive::Wait(Ticket ticket) {
  for (bool done = false; !done;) {
    ASSIGN_OR_RETURN(done, executor_.Poll(ticket, true, nullptr));
  }
  return absl::OkStatus();
}

absl::Status ExecutorDrive::Finish(std::vector<PlanItem> plan) {
  FlyingSteps steps(executor_);
  for (int attempt = 0; !plan.empty(); ++attempt) {
    if (attempt == kMostDeferrals) return absl::InternalError("the executor defers an item for ever");
    RETURN_IF_ERROR(steps.Submit(std::move(plan)));
    ASSIGN_OR_RETURN(const auto taken, steps.Take());
    const auto& [done, result] = taken;
    plan.clear();
    for (size_t i = 0; i < done.size(); ++i) {
      RETURN_IF_ERROR(result->items[i].status);
      if (result->items[i].deferred) plan.push_back(done[i]);
    }
  }
  return absl::OkStatus();
}

absl::Status ExecutorDrive::Begin(Slots slots) {
  BindSampling(slots);
  std::vector<PlanItem> plan;
  for (const int32_t slot : slots) plan.push_back({.slot = slot, .want = Want::kSample});
  return Finish(std::move(plan));
}

absl::Status ExecutorDrive::Fill(Slots slots, int64_t length, const std::function<int64_t(int32_t slot)>& extra) {
  const ExecutorInfo& info = executor_.info();
  for (size_t first = 0; first < slots.size(); first += kFilledTogether) {
    const Slots group = slots.subspan(first, std::min(kFilledTogether, slots.size() - first));
    std::vector<std::vector<int32_t>> texts;
    std::vector<PlanItem> plan;
    for (const int32_t slot : group) {
      executor_.Reset(slot);
      const int64_t more = extra ? extra(slot) : slot % info.stride;
      texts.push_back(Ids(info.vocab_size, length + more, static_cast<uint32_t>(slot)));
    }
    BindSampling(group);
    for (size_t i = 0; i < group.size(); ++i) {
      plan.push_back({.slot = group[i], .ids = texts[i], .want = Want::kSample});
    }
    RETURN_IF_ERROR(Finish(std::move(plan)));
  }
  return absl::OkStatus();
}

absl::StatusOr<Stretch> ExecutorDrive::Draw(const std::function<Slots(int64_t step)>& slots_at, int64_t warm,
                                            int64_t steps, const std::function<absl::Status()>& between) {
  const auto in_flight = static_cast<size_t>(std::max(executor_.info().max_in_flight, 1));
  std::vector<double> last(static_cast<size_t>(executor_.info().slots), 0);  // when each slot's last id came; 0: never
  FlyingSteps flying(executor_);
  Stretch stretch;
  double begin = 0, previous = 0;
  for (int64_t taken = 0, submitted = 0; taken < warm + steps; ++taken) {
    for (; submitted < warm + steps && flying.size() < in_flight; ++submitted) {
      std::vector<PlanItem> plan;
      for (const int32_t slot : slots_at(submitted)) {
        plan.push_back({.slot = slot, .append_last_sampled = true, .want = Want::kSample});
      }
      RETURN_IF_ERROR(flying.Submit(std::move(plan)));
    }
    if (between) RETURN_IF_ERROR(between());
    ASSIGN_OR_RETURN(const auto result, flying.Take());
    const double now = Seconds();
    const bool counts = taken >= warm;
    for (size_t i = 0; i < result.first.size(); ++i) {
      const ItemResult& item = result.second->items[i];
      RETURN_IF_ERROR(item.status);
      if (counts && item.deferred) ++stretch.deferred;
      if (item.id < 0) continue;
      double& came = last[static_cast<size_t>(result.first[i].slot)];
      if (counts) ++stretch.tokens;
      if (counts && came > 0) stretch.intervals.push_back(now - came);
      came = now;
    }
    if (counts) {
      stretch.steps.push_back(now - previous);
      stretch.longest_gap = std::max(stretch.longest_gap, now - previous);
    }
    previous = now;
    if (!counts) begin = now;
  }
  stretch.seconds = previous - begin;
  return stretch;
}

absl::StatusOr<Stretch> ExecutorDrive::Draw(Slots slots, int64_t warm, int64_t steps,
                                            const std::function<absl::Status()>& between) {
  return Draw([slots](int64_t) { return slots; }, warm, steps, between);
}

}  // namespace smt::bench
