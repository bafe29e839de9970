#include "server/engine/runner_executor.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/base/status_macros.h"
#include "model/sampling/logprobs.h"

namespace smt {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

RunnerExecutor::RunnerExecutor(std::unique_ptr<SlotRunner> runner, std::string device, std::string dtype)
    : runner_(std::move(runner)),
      slots_(static_cast<size_t>(runner_->slots())),
      sampler_(static_cast<int32_t>(runner_->config().vocab_size)) {
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
           .input_tokens = static_cast<int32_t>(config.m_input_tokens),
           .memory_vectors = static_cast<int32_t>(config.n_ssm_outputs)};
}

absl::Status RunnerExecutor::CheckSlot(int32_t slot) const {
  if (Known(slot)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("slot is ", slot, "; allowed: 0 to ", info_.slots - 1));
}

absl::Status RunnerExecutor::Die(const char* what) {
  dead_ = absl::InternalError(what);
  return dead_;
}

void RunnerExecutor::Reset(int32_t slot) {
  if (!Known(slot) || !dead_.ok()) return;
  try {
    runner_->Reset(slot);
  } catch (const std::exception& error) {
    Die(error.what()).IgnoreError();
  }
  At(slot).drawn = -1;
}

Ticket RunnerExecutor::Load(int32_t slot, std::span<const std::byte> state) {
  return Finish([&]() -> absl::Status {
    RETURN_IF_ERROR(CheckSlot(slot));
    runner_->Load(slot, state);
    At(slot).drawn = -1;
    return absl::OkStatus();
  });
}

Ticket RunnerExecutor::Save(int32_t slot, std::span<std::byte> state) {
  return Finish([&]() -> absl::Status {
    RETURN_IF_ERROR(CheckSlot(slot));
    runner_->Save(slot, state);
    return absl::OkStatus();
  });
}

Ticket RunnerExecutor::Copy(int32_t from, int32_t to) {
  return Finish([&]() -> absl::Status {
    RETURN_IF_ERROR(CheckSlot(from));
    RETURN_IF_ERROR(CheckSlot(to));
    runner_->Copy(from, to);
    if (from != to) At(to).drawn = -1;
    return absl::OkStatus();
  });
}

void RunnerExecutor::BindSampling(int32_t slot, std::shared_ptr<const SamplingParams> params,
                                  std::span<const int32_t> prior, std::span<const int32_t> generated) {
  if (!Known(slot)) return;
  At(slot).params = std::move(params);
  if (At(slot).params != nullptr) At(slot).penalties.Bind(*At(slot).params, prior, generated);
}

absl::Status RunnerExecutor::CheckItem(const PlanItem& item) {
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
  if (item.append_last_sampled && !HasDrawn(item)) return refuse("there is no drawn id to append");
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

absl::Status RunnerExecutor::Check(std::span<const PlanItem> plan) {
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

absl::StatusOr<bool> RunnerExecutor::Poll(Ticket ticket, bool wait, StepResult* result) {
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

RunnerExecutor::Work RunnerExecutor::Begin(const PlanItem& item, ItemResult* result) {
  Work work = {.item = &item, .result = result, .ids = {}, .logits_from = 0};
  work.ids.reserve(item.ids.size() + 1);
  if (item.append_last_sampled) work.ids.push_back(At(item.slot).drawn);
  work.ids.insert(work.ids.end(), item.ids.begin(), item.ids.end());
  if (!work.ids.empty()) At(item.slot).drawn = -1;
  switch (item.want) {
    case Want::kNothing:
      work.logits_from = work.ids.size();
      break;
    case Want::kSample:
      work.logits_from = work.ids.empty() ? 0 : work.ids.size() - 1;
      break;
    case Want::kScore:
      work.logits_from = work.ids.size() - item.ids.size();
      break;
  }
  return work;
}

void RunnerExecutor::IngestPart(std::span<Work> work, StepTimings* timings) {
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

void RunnerExecutor::RunRounds(std::span<Work> work, StepTimings* timings) {
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

void RunnerExecutor::Evaluate(std::span<Work* const> batch, bool step, size_t round, StepTimings* timings) {
  Clock::time_point start = Clock::now();
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

void RunnerExecutor::Use(Work& work, std::span<const float> logits) {
  if (work.item->want == Want::kSample) {
    return Draw(work.item->slot, runner_->position(work.item->slot) + 1, logits, work.result);
  }
  TokenLogprobs scored;
  ComputeLogprobs(logits, work.item->targets[work.scored++], work.item->top_logprobs, &scored);
  work.result->scores.push_back(std::move(scored));
}

void RunnerExecutor::Draw(int32_t index, int64_t position, std::span<const float> logits, ItemResult* result) {
  Slot& slot = At(index);
  SampledToken token;
  result->status = sampler_.Sample(logits, *slot.params, slot.penalties, position, &token);
  if (!result->status.ok()) return;
  slot.penalties.Add(token.id);
  slot.drawn = token.id;
  result->id = token.id;
  result->logprobs = std::move(token.logprobs);
}

}  // namespace smt
