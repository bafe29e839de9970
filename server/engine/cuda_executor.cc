#include "server/engine/cuda_executor.h"

#include <deque>
#include <exception>
#include <utility>
#include <vector>

#include "model/async_runner.h"
#include "model/base/status_macros.h"
#include "server/engine/runner_executor.h"

namespace smt {
namespace {

// Whether the item may take two steps.
bool DrawsOn(const PlanItem& item) {
  return item.want == Want::kSample && item.append_last_sampled && item.ids.empty();
}

class CudaExecutor final : public RunnerExecutor {
 public:
  CudaExecutor(std::unique_ptr<SlotRunner> runner, std::string device, std::string dtype)
      : RunnerExecutor(std::move(runner), std::move(device), std::move(dtype)),
        async_(*runner_->async()),
        flights_(slots_.size()) {
    info_.max_in_flight = async_.max_queued();
  }

  void Reset(int32_t slot) override {
    if (Known(slot)) flights_[static_cast<size_t>(slot)].Land();
    RunnerExecutor::Reset(slot);
  }
  Ticket Load(int32_t slot, std::span<const std::byte> state) override {
    const Ticket ticket = RunnerExecutor::Load(slot, state);
    if (Known(slot) && done_[ticket].status.ok()) FlightOf(slot).Land();
    return ticket;
  }
  Ticket Copy(int32_t from, int32_t to) override {
    if (Known(to) && from != to) FlightOf(to).Land();
    return RunnerExecutor::Copy(from, to);
  }
  void BindSampling(int32_t slot, std::shared_ptr<const SamplingParams> params, std::span<const int32_t> prior,
                    std::span<const int32_t> generated) override {
    if (Known(slot)) {
      ++FlightOf(slot).bindings;
      FlightOf(slot).draws_of_binding = 0;
    }
    RunnerExecutor::BindSampling(slot, std::move(params), prior, generated);
  }
  Ticket Save(int32_t slot, std::span<std::byte> state) override;
  absl::StatusOr<Ticket> Submit(std::span<const PlanItem> plan) override;
  absl::StatusOr<bool> Poll(Ticket ticket, bool wait, StepResult* result) override;

 protected:
  bool HasDrawn(const PlanItem& item) override {
    const Flight& flight = FlightOf(item.slot);
    return flight.last || (flight.owed && DrawsOn(item));
  }

 private:
  // What of a slot is on its way.
  struct Flight {
    bool last = false;             // an id is drawn, or will be by a step in flight, and not appended
    bool owed = false;             // its id is appended, the draw deferred
    int32_t draws = 0;             // on the device, not polled, since Land
    int32_t draws_of_binding = 0;  // since the parameters were bound
    int32_t landings = 0, bindings = 0;
    Ticket spoiled_until = 0;  // steps that appended what could not be drawn
    // The slot goes on without what was drawn.
    void Land() {
      last = owed = false;
      draws = 0;
      spoiled_until = 0;
      ++landings;
    }
  };
  struct DrawOf {
    size_t item;  // of the plan
    size_t part;  // of the runner's step
    int32_t slot;
    int32_t landings, bindings;
  };
  struct Pending {
    Ticket ticket = 0;
    int64_t step = 0;
    StepResult result;
    std::vector<DrawOf> draws;
  };

  Flight& FlightOf(int32_t slot) { return flights_[static_cast<size_t>(slot)]; }
  void Sort(std::span<const PlanItem> plan, Pending& pending);
  void AddDraw(const PlanItem& item, size_t index, int32_t append, bool whole, Pending& pending);
  void TakeParts(std::span<const PlanItem> plan, Pending& pending);
  bool TakeOldest(bool wait);
  void TakeDraw(const DrawOf& draw, AsyncRunner::Results& results, Pending& pending);
  void TakeAll() {
    while (!pending_.empty()) TakeOldest(true);
  }

  AsyncRunner& async_;
  std::vector<Flight> flights_;
  std::deque<Pending> pending_;  // oldest first
  std::map<Ticket, int64_t> transfers_;

  // Of one Submit.
  std::vector<AsyncRunner::Item> items_;
  std::vector<AsyncRunner::Part> parts_;
  std::vector<Work> ingesting_, scoring_;
};

void CudaExecutor::AddDraw(const PlanItem& item, size_t index, int32_t append, bool whole, Pending& pending) {
  const Slot& slot = At(item.slot);
  pending.draws.push_back({.item = index, .part = items_.size(), .slot = item.slot, .landings = 0, .bindings = 0});
  items_.push_back({.slot = item.slot,
                    .append = append,
                    .whole = whole,
                    .sampling = slot.params.get(),
                    .penalties = &slot.penalties,
                    .behind = FlightOf(item.slot).draws_of_binding > 0});
}

// Who is ingested, drawn in the background, or scored at once.
void CudaExecutor::Sort(std::span<const PlanItem> plan, Pending& pending) {
  using Item = AsyncRunner::Item;
  items_.clear();
  ingesting_.clear();
  scoring_.clear();
  for (size_t i = 0; i < plan.size(); ++i) {
    const PlanItem& item = plan[i];
    ItemResult* const result = &pending.result.items[i];
    Flight& flight = FlightOf(item.slot);
    if (DrawsOn(item)) {
      AddDraw(item, i, At(item.slot).drawn >= 0 ? At(item.slot).drawn : Item::kLast, false, pending);
    } else if (item.want == Want::kSample && item.ids.empty()) {
      AddDraw(item, i, Item::kNone, false, pending);
    } else {
      if (item.append_last_sampled && At(item.slot).drawn < 0) TakeAll();
      Work work = Begin(item, result);
      flight.Land();
      if (item.want == Want::kScore) {
        scoring_.push_back(std::move(work));
        continue;
      }
      if (item.want == Want::kSample) AddDraw(item, i, work.ids.back(), true, pending);
      ingesting_.push_back(std::move(work));
    }
  }
}

void CudaExecutor::TakeParts(std::span<const PlanItem> plan, Pending& pending) {
  std::vector<DrawOf> draws;
  for (DrawOf& draw : pending.draws) {
    const AsyncRunner::Part part = parts_[draw.part];
    const AsyncRunner::Item& item = items_[draw.part];
    ItemResult& result = pending.result.items[draw.item];
    Flight& flight = FlightOf(draw.slot);
    result.absorbed = part.appended || item.append == AsyncRunner::Item::kNone;
    result.deferred = !part.drawn;
    if (part.appended) {
      flight.last = false;
      At(draw.slot).drawn = -1;
    }
    if (part.appended || part.drawn) flight.owed = !part.drawn;
    if (!part.drawn) continue;
    flight.last = true;
    ++flight.draws;
    ++flight.draws_of_binding;
    draw.landings = flight.landings;
    draw.bindings = flight.bindings;
    draws.push_back(draw);
  }
  pending.draws = std::move(draws);
}

absl::StatusOr<Ticket> CudaExecutor::Submit(std::span<const PlanItem> plan) {
  if (!dead_.ok()) return dead_;
  RETURN_IF_ERROR(Check(plan));
  Pending pending;
  pending.result.items.resize(plan.size());
  try {
    if (pending_.size() >= static_cast<size_t>(info_.max_in_flight)) TakeOldest(true);
    Sort(plan, pending);
    IngestPart(ingesting_, &pending.result.timings);
    parts_.assign(items_.size(), {});
    pending.step = async_.Queue(items_, parts_);
    pending.ticket = next_ticket_++;
    TakeParts(plan, pending);
    pending_.push_back(std::move(pending));
    if (!scoring_.empty()) {
      Pending& own = pending_.back();
      IngestPart(scoring_, &own.result.timings);
      RunRounds(scoring_, &own.result.timings);
    }
  } catch (const std::exception& error) {
    return Die(error.what());
  }
  return next_ticket_ - 1;
}

void CudaExecutor::TakeDraw(const DrawOf& draw, AsyncRunner::Results& results, Pending& pending) {
  ItemResult& result = pending.result.items[draw.item];
  Slot& slot = At(draw.slot);
  Flight& flight = FlightOf(draw.slot);
  const bool landed = flight.landings != draw.landings, bound_anew = flight.bindings != draw.bindings;
  const int32_t id = results.ids[draw.part];
  if (!landed) --flight.draws;
  if (!bound_anew) --flight.draws_of_binding;
  if (id < 0 || (!landed && pending.ticket <= flight.spoiled_until)) {
    result.status = NoIdCanBeDrawn();
    if (landed) return;
    if (id < 0) flight.spoiled_until = next_ticket_ - 1;
    if (flight.draws == 0) flight.last = false;
    return;
  }
  result.id = id;
  if (!results.logprobs.empty() && slot.params != nullptr) result.logprobs = std::move(results.logprobs[draw.part]);
  if (!bound_anew) slot.penalties.Add(id);
  if (!landed && flight.draws == 0 && flight.last) slot.drawn = id;
}

bool CudaExecutor::TakeOldest(bool wait) {
  Pending& pending = pending_.front();
  AsyncRunner::Results results;
  if (!async_.Take(pending.step, wait, &results)) return false;
  for (const DrawOf& draw : pending.draws) TakeDraw(draw, results, pending);
  StepTimings& timings = pending.result.timings;
  timings.decode += results.times.window;
  timings.write += results.times.writes;
  timings.sample += results.times.draw;
  done_[pending.ticket].result = std::move(pending.result);
  pending_.pop_front();
  return true;
}

Ticket CudaExecutor::Save(int32_t slot, std::span<std::byte> state) {
  const Ticket ticket = Finish([&]() -> absl::Status {
    RETURN_IF_ERROR(CheckSlot(slot));
    transfers_[next_ticket_] = async_.QueueSave(slot, state);
    return absl::OkStatus();
  });
  return ticket;
}

absl::StatusOr<bool> CudaExecutor::Poll(Ticket ticket, bool wait, StepResult* result) {
  try {
    while (dead_.ok() && !pending_.empty() && pending_.front().ticket <= ticket) {
      if (!TakeOldest(wait)) return false;
    }
    if (const auto transfer = transfers_.find(ticket); transfer != transfers_.end() && dead_.ok()) {
      if (!async_.TakeTransfer(transfer->second, wait)) return false;
      transfers_.erase(transfer);
    }
  } catch (const std::exception& error) {
    return Die(error.what());
  }
  if (!dead_.ok() && (!pending_.empty() || transfers_.contains(ticket))) return dead_;
  return RunnerExecutor::Poll(ticket, wait, result);
}

}  // namespace

std::unique_ptr<Executor> NewCudaExecutor(std::unique_ptr<SlotRunner> runner, std::string device, std::string dtype) {
  return std::make_unique<CudaExecutor>(std::move(runner), std::move(device), std::move(dtype));
}

}  // namespace smt
