// A plan runs in three parts, each batched over its items: ids that need no logits are ingested; then rounds of one id
// a slot give logits (the last id of a sampling item, every id of a scoring one); items that ask about the present
// position take its logits without appending. Draws follow.
#include "server/engine/torch_executor.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <map>
#include <stdexcept>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/base/status_macros.h"
#include "model/sampling/logprobs.h"
#include "model/sampling/penalty_state.h"
#include "model/sampling/sampler.h"

namespace smt {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class TorchExecutor final : public Executor {
 public:
  TorchExecutor(std::unique_ptr<SlotRunner> runner, std::string device, std::string dtype)
      : runner_(std::move(runner)),
        sampler_(static_cast<int32_t>(runner_->config().vocab_size)),
        slots_(static_cast<size_t>(runner_->slots())) {
    const StrideHybridConfig& config = runner_->config();
    info_ = {.device = std::move(device),
             .dtype = std::move(dtype),
             .numerics_id = runner_->numerics_id(),
             .deterministic = runner_->deterministic(),
             .slots = runner_->slots(),
             .max_in_flight = 1,
             .state_bytes = static_cast<int64_t>(runner_->layout().bytes()),
             .slot_bytes = runner_->slot_bytes(),
             .capacity = runner_->capacity(),
             .vocab_size = static_cast<int32_t>(config.vocab_size),
             .stride = static_cast<int32_t>(config.stride),
             .input_tokens = static_cast<int32_t>(config.m_input_tokens)};
  }

  const ExecutorInfo& info() const override { return info_; }
  int64_t position(int32_t slot) const override { return runner_->position(slot); }
  void Reset(int32_t slot) override;
  Ticket Load(int32_t slot, std::span<const std::byte> state) override;
  Ticket Save(int32_t slot, std::span<std::byte> state) override;
  Ticket Copy(int32_t from, int32_t to) override;
  void BindSampling(int32_t slot, std::shared_ptr<const SamplingParams> params, std::span<const int32_t> prior,
                    std::span<const int32_t> generated) override;
  absl::StatusOr<Ticket> Submit(std::span<const PlanItem> plan) override;
  absl::StatusOr<bool> Poll(Ticket ticket, bool wait, StepResult* result) override;

 private:
  struct Slot {
    std::shared_ptr<const SamplingParams> params;
    PenaltyState penalties;
    int32_t drawn = -1;  // not yet appended
  };
  struct Done {
    absl::Status status;
    StepResult result;
  };
  // An item while its plan runs.
  struct Work {
    const PlanItem* item;
    ItemResult* result;
    std::vector<int32_t> ids;  // everything to append
    size_t logits_from;        // ids from this index on are stepped, those before ingested
    size_t scored = 0;         // targets done
  };

  Slot& At(int32_t slot) { return slots_[static_cast<size_t>(slot)]; }
  bool Known(int32_t slot) const { return slot >= 0 && slot < info_.slots; }
  absl::Status CheckSlot(int32_t slot) const;
  absl::Status Check(std::span<const PlanItem> plan);
  absl::Status CheckItem(const PlanItem& item);

  // Runs `body`, which may throw, and gives the ticket of its outcome. std::invalid_argument is the caller's mistake.
  template <typename Body>
  Ticket Finish(const Body& body);
  absl::Status Die(const char* what);

  void Run(std::span<const PlanItem> plan, StepResult* result);
  void IngestPart(std::vector<Work>& work, StepTimings* timings);
  void RunRounds(std::vector<Work>& work, StepTimings* timings);
  // Logits of these works' slots, after appending the next id of each (step) or as they stand.
  void Evaluate(std::span<Work* const> batch, bool step, size_t round, StepTimings* timings);
  // Draws on the device where it can: those of `batch` that need no more than that. Returns the others.
  std::vector<Work*> DrawOnDevice(std::span<Work* const> batch, bool step, size_t round);
  void Keep(Work& work, SampledToken token);
  void Use(Work& work, std::span<const float> logits);
  void Draw(Work& work, std::span<const float> logits);

  const std::unique_ptr<SlotRunner> runner_;
  ExecutorInfo info_;
  Sampler sampler_;
  std::vector<Slot> slots_;
  std::vector<float> logits_;  // of one batch, [items, V]
  std::map<Ticket, Done> done_;
  Ticket next_ticket_ = 1;
  absl::Status dead_;
};

absl::Status TorchExecutor::CheckSlot(int32_t slot) const {
  if (Known(slot)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("slot is ", slot, "; allowed: 0 to ", info_.slots - 1));
}

absl::Status TorchExecutor::Die(const char* what) {
  dead_ = absl::InternalError(what);
  return dead_;
}

template <typename Body>
Ticket TorchExecutor::Finish(const Body& body) {
  Done& done = done_[next_ticket_];
  if (!dead_.ok()) {
    done.status = dead_;
    return next_ticket_++;
  }
  try {
    done.status = body();
  } catch (const std::invalid_argument& error) {
    done.status = absl::InvalidArgumentError(error.what());
  } catch (const std::exception& error) {
    done.status = Die(error.what());
  }
  return next_ticket_++;
}

void TorchExecutor::Reset(int32_t slot) {
  if (!Known(slot) || !dead_.ok()) return;
  try {
    runner_->Reset(slot);
  } catch (const std::exception& error) {
    Die(error.what()).IgnoreError();
  }
  At(slot).drawn = -1;
}

Ticket TorchExecutor::Load(int32_t slot, std::span<const std::byte> state) {
  return Finish([&]() -> absl::Status {
    RETURN_IF_ERROR(CheckSlot(slot));
    runner_->Load(slot, state);
    At(slot).drawn = -1;
    return absl::OkStatus();
  });
}

Ticket TorchExecutor::Save(int32_t slot, std::span<std::byte> state) {
  return Finish([&]() -> absl::Status {
    RETURN_IF_ERROR(CheckSlot(slot));
    runner_->Save(slot, state);
    return absl::OkStatus();
  });
}

Ticket TorchExecutor::Copy(int32_t from, int32_t to) {
  return Finish([&]() -> absl::Status {
    RETURN_IF_ERROR(CheckSlot(from));
    RETURN_IF_ERROR(CheckSlot(to));
    runner_->Copy(from, to);
    if (from != to) At(to).drawn = -1;
    return absl::OkStatus();
  });
}

void TorchExecutor::BindSampling(int32_t slot, std::shared_ptr<const SamplingParams> params,
                                 std::span<const int32_t> prior, std::span<const int32_t> generated) {
  if (!Known(slot)) return;
  At(slot).params = std::move(params);
  if (At(slot).params != nullptr) At(slot).penalties.Bind(*At(slot).params, prior, generated);
}

absl::Status TorchExecutor::CheckItem(const PlanItem& item) {
  RETURN_IF_ERROR(CheckSlot(item.slot));
  const auto refuse = [&](auto... parts) {
    return absl::InvalidArgumentError(absl::StrCat("slot ", item.slot, ": ", parts...));
  };
  for (const std::span<const int32_t> ids : {item.ids, item.targets}) {
    for (const int32_t id : ids) {
      if (id < 0 || id >= info_.vocab_size) {
        return refuse("token id is ", id, "; allowed: 0 to ", info_.vocab_size - 1);
      }
    }
  }
  const Slot& slot = At(item.slot);
  if (item.append_last_sampled && slot.drawn < 0) return refuse("there is no drawn id to append");
  const bool appends = item.append_last_sampled || !item.ids.empty();
  if (item.want == Want::kSample && slot.params == nullptr) return refuse("no sampling parameters are bound");
  if (item.want != Want::kNothing && !appends && runner_->position(item.slot) == 0) {
    return refuse("is empty: it has no logits yet");
  }
  if (item.want == Want::kScore) {
    const size_t expected = item.ids.empty() ? 1 : item.ids.size();
    if (item.targets.size() != expected) {
      return refuse("has ", item.targets.size(), " targets; expected ", expected);
    }
  }
  return absl::OkStatus();
}

absl::Status TorchExecutor::Check(std::span<const PlanItem> plan) {
  std::vector<bool> taken(slots_.size());
  for (const PlanItem& item : plan) {
    RETURN_IF_ERROR(CheckItem(item));
    if (taken[static_cast<size_t>(item.slot)]) {
      return absl::InvalidArgumentError(absl::StrCat("slot ", item.slot, " is in the plan twice"));
    }
    taken[static_cast<size_t>(item.slot)] = true;
  }
  return absl::OkStatus();
}

absl::StatusOr<Ticket> TorchExecutor::Submit(std::span<const PlanItem> plan) {
  if (!dead_.ok()) return dead_;
  RETURN_IF_ERROR(Check(plan));
  StepResult result;
  result.items.resize(plan.size());
  try {
    Run(plan, &result);
  } catch (const std::exception& error) {
    return Die(error.what());
  }
  done_[next_ticket_].result = std::move(result);
  return next_ticket_++;
}

absl::StatusOr<bool> TorchExecutor::Poll(Ticket ticket, bool wait, StepResult* result) {
  const auto found = done_.find(ticket);
  if (found == done_.end()) {
    return absl::InvalidArgumentError(absl::StrCat("ticket ", ticket, " was never handed out or is done"));
  }
  Done done = std::move(found->second);
  done_.erase(found);
  if (result != nullptr) *result = std::move(done.result);
  if (!done.status.ok()) return done.status;
  return true;
}

void TorchExecutor::Run(std::span<const PlanItem> plan, StepResult* result) {
  runner_->TakeTimings();
  std::vector<Work> work;
  work.reserve(plan.size());
  for (size_t i = 0; i < plan.size(); ++i) {
    const PlanItem& item = plan[i];
    Work w = {.item = &item, .result = &result->items[i], .ids = {}, .logits_from = 0};
    if (item.append_last_sampled) w.ids.push_back(At(item.slot).drawn);
    w.ids.insert(w.ids.end(), item.ids.begin(), item.ids.end());
    if (!w.ids.empty()) At(item.slot).drawn = -1;
    switch (item.want) {
      case Want::kNothing:
        w.logits_from = w.ids.size();
        break;
      case Want::kSample:
        w.logits_from = w.ids.empty() ? 0 : w.ids.size() - 1;
        break;
      case Want::kScore:
        w.logits_from = w.ids.size() - item.ids.size();
        break;
    }
    work.push_back(std::move(w));
  }
  IngestPart(work, &result->timings);
  RunRounds(work, &result->timings);
}

void TorchExecutor::IngestPart(std::vector<Work>& work, StepTimings* timings) {
  std::vector<SlotRunner::Chunk> chunks;
  for (const Work& w : work) {
    if (w.logits_from > 0) chunks.push_back({w.item->slot, std::span(w.ids).first(w.logits_from)});
  }
  if (chunks.empty()) return;
  const Clock::time_point start = Clock::now();
  runner_->Ingest(chunks);
  timings->ingest += SecondsSince(start);
  runner_->TakeTimings();  // its writes are part of the ingestion
}

void TorchExecutor::RunRounds(std::vector<Work>& work, StepTimings* timings) {
  std::vector<Work*> standing, stepping;
  for (Work& w : work) {
    if (w.item->want != Want::kNothing && w.logits_from == w.ids.size()) standing.push_back(&w);
  }
  if (!standing.empty()) Evaluate(standing, /*step=*/false, 0, timings);
  for (size_t round = 0;; ++round) {
    stepping.clear();
    for (Work& w : work) {
      if (w.logits_from + round < w.ids.size()) stepping.push_back(&w);
    }
    if (stepping.empty()) return;
    Evaluate(stepping, /*step=*/true, round, timings);
  }
}

// Whether a device that knows only of temperature, top_k, top_p, min_p and seed draws the same id.
bool IsPlainDraw(const SamplingParams& params, const PenaltyState& penalties) {
  return params.top_logprobs < 0 && params.logit_bias.empty() && penalties.entries().empty() &&
         (params.masked_until_min_tokens.empty() || penalties.generated_total() >= params.min_tokens);
}

std::vector<TorchExecutor::Work*> TorchExecutor::DrawOnDevice(std::span<Work* const> batch, bool step, size_t round) {
  std::vector<Work*> plain, others;
  std::vector<int32_t> slots, ids;
  std::vector<SlotRunner::Draw> draws;
  for (Work* w : batch) {
    const Slot& slot = At(w->item->slot);
    if (w->item->want != Want::kSample || !IsPlainDraw(*slot.params, slot.penalties)) {
      others.push_back(w);
      continue;
    }
    plain.push_back(w);
    slots.push_back(w->item->slot);
    if (step) ids.push_back(w->ids[w->logits_from + round]);
    draws.push_back({.temperature = slot.params->temperature,
                     .top_k = slot.params->top_k,
                     .top_p = slot.params->top_p,
                     .min_p = slot.params->min_p,
                     .seed = slot.params->seed});
  }
  std::vector<int32_t> drawn(plain.size());
  if (plain.empty() || !runner_->StepAndDraw(slots, ids, draws, drawn.data())) {
    return std::vector<Work*>(batch.begin(), batch.end());
  }
  for (size_t i = 0; i < plain.size(); ++i) {
    if (drawn[i] < 0) {
      plain[i]->result->status = NoIdCanBeDrawn();
    } else {
      Keep(*plain[i], {.id = drawn[i], .logprobs = {}});
    }
  }
  return others;
}

void TorchExecutor::Evaluate(std::span<Work* const> all, bool step, size_t round, StepTimings* timings) {
  Clock::time_point start = Clock::now();
  const std::vector<Work*> batch = DrawOnDevice(all, step, round);
  if (batch.empty()) {
    const SlotRunner::Timings parts = runner_->TakeTimings();
    timings->write += parts.write;
    timings->refill += parts.refill;
    timings->decode += SecondsSince(start) - parts.write - parts.refill;
    return;
  }
  std::vector<int32_t> slots, ids;
  for (const Work* w : batch) {
    slots.push_back(w->item->slot);
    if (step) ids.push_back(w->ids[w->logits_from + round]);
  }
  const size_t vocab = static_cast<size_t>(info_.vocab_size);
  logits_.resize(std::max(logits_.size(), batch.size() * vocab));
  if (step) {
    runner_->Step(slots, ids, logits_.data());
  } else {
    runner_->Logits(slots, logits_.data());
  }
  const SlotRunner::Timings parts = runner_->TakeTimings();
  timings->write += parts.write;
  timings->refill += parts.refill;
  timings->decode += SecondsSince(start) - parts.write - parts.refill;
  start = Clock::now();
  for (size_t i = 0; i < batch.size(); ++i) Use(*batch[i], std::span(logits_).subspan(i * vocab, vocab));
  timings->sample += SecondsSince(start);
}

void TorchExecutor::Use(Work& work, std::span<const float> logits) {
  if (work.item->want == Want::kSample) return Draw(work, logits);
  TokenLogprobs scored;
  ComputeLogprobs(logits, work.item->targets[work.scored++], work.item->top_logprobs, &scored);
  work.result->scores.push_back(std::move(scored));
}

void TorchExecutor::Draw(Work& work, std::span<const float> logits) {
  Slot& slot = At(work.item->slot);
  SampledToken token;
  const int64_t position = runner_->position(work.item->slot) + 1;
  work.result->status = sampler_.Sample(logits, *slot.params, slot.penalties, position, &token);
  if (work.result->status.ok()) Keep(work, std::move(token));
}

void TorchExecutor::Keep(Work& work, SampledToken token) {
  Slot& slot = At(work.item->slot);
  slot.penalties.Add(token.id);
  slot.drawn = token.id;
  work.result->id = token.id;
  work.result->logprobs = std::move(token.logprobs);
}

}  // namespace

std::unique_ptr<Executor> NewTorchExecutor(std::unique_ptr<SlotRunner> runner, std::string device, std::string dtype) {
  return std::make_unique<TorchExecutor>(std::move(runner), std::move(device), std::move(dtype));
}

}  // namespace smt
