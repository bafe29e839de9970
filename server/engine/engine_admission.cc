// From the queue into a slot and out of it again: residency, restoring, eviction, copies of states.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/engine/engine_loop.h"

namespace smt {

void EngineLoop::Admit() {
  for (auto it = queue_.begin(); it != queue_.end() && slots_.free_count() + slots_.idle_count() > 0;) {
    Request* const request = it->second;
    if (!Place(request)) {
      ++it;  // its own slot still has work in flight; it gets it in an iteration
      continue;
    }
    it = queue_.erase(it);
    inbox_.LeftQueue();
    request->admitted = now_;
    request->expires = std::min(request->spec.deadline, now_ + request->spec.max_duration);
    WatchExpiry(*request);
    if (request->phase == Request::Phase::kWaiting) {
      std::vector<int32_t> before;
      before.swap(slots_.at(request->slot).unappended);
      Begin(request, std::move(before));
    }
    if (!fault_.ok()) return;
  }
}

// Gives the request a slot. It stays kWaiting where the slot's state is at its head already, and is kRestoring where
// that has to be fetched.
bool EngineLoop::Place(Request* request) {
  const EngineRequest& spec = request->spec;
  const int32_t own = spec.session_key.empty() ? -1 : slots_.Find(spec.session_key);
  if (own >= 0) {
    if (slots_.at(own).request != nullptr) return false;
    if (slots_.at(own).log_position() == spec.head) {
      slots_.TakeIdle(own, request);
      request->slot = own;
      request->resident = true;
      return true;
    }
    slots_.Free(own);  // the session went on or was rolled back elsewhere
  }
  const int32_t slot = TakeSlot(request);
  if (slot < 0) return false;
  slots_.SetKey(slot, spec.session_key);
  request->slot = slot;
  if (spec.head == 0) {
    executor_.Reset(slot);
    return true;
  }
  request->phase = Request::Phase::kRestoring;
  request->restore_job = std::make_shared<RestoreJob>();
  request->restore_job->handle = request->handle;
  request->restore_job->restore = std::move(request->spec.restore);
  restores_.Run(request->restore_job);
  return true;
}

int32_t EngineLoop::TakeSlot(Request* request) {
  if (slots_.free_count() == 0) {
    const int32_t victim = slots_.LeastRecentlyUsed();
    if (victim < 0) return -1;
    Evict(victim);
  }
  return slots_.TakeFree(request);
}

// The save is ordered before whatever the slot is used for next, so that need not wait for it.
void EngineLoop::Evict(int32_t slot) {
  const Slot& state = slots_.at(slot);
  if (state.position > 0) {
    Save(slot, {.kind = Transfer::Kind::kEviction, .key = state.key, .position = state.position});
  }
  slots_.Free(slot);
}

absl::Status EngineLoop::CheckRestored(const Request& request, const RestoredState& restored) const {
  const int64_t end = restored.position + static_cast<int64_t>(restored.tail.size());
  if (end != request.spec.head || (restored.state == nullptr && restored.position != 0)) {
    return absl::InternalError(absl::StrCat("the restored state is at position ", restored.position, " with ",
                                            restored.tail.size(), " ids after it, but the session's log ends at ",
                                            request.spec.head));
  }
  if (restored.state != nullptr && static_cast<int64_t>(restored.state->size()) != info_.state_bytes) {
    return absl::DataLossError(absl::StrCat("the restored state has ", restored.state->size(),
                                            " bytes; this model's states have ", info_.state_bytes));
  }
  return absl::OkStatus();
}

void EngineLoop::Restored(Request* request, absl::StatusOr<RestoredState> restored) {
  absl::Status status = restored.status();
  if (status.ok()) status = CheckRestored(*request, *restored);
  if (!status.ok()) return End(request, FinishReason::kError, status);
  Slot& slot = slots_.at(request->slot);
  if (restored->state != nullptr) {
    const Ticket ticket = executor_.Load(request->slot, restored->state->span());
    transfers_.push_back({.kind = Transfer::Kind::kLoad, .ticket = ticket, .buffer = restored->state, .begun = now_});
    if (executor_.position(request->slot) != restored->position) return EndMisloaded(request, restored->position);
  } else {
    executor_.Reset(request->slot);
  }
  slot.position = slot.snapshot_position = restored->position;
  request->recomputed_tokens = static_cast<int64_t>(restored->tail.size());
  request->restore_job = nullptr;
  Begin(request, std::move(restored->tail));
}

// The state loaded last is not what its owner takes it for, or the executor refused it, or has failed.
void EngineLoop::EndMisloaded(Request* request, int64_t expected_position) {
  const absl::Status loaded = Poll(transfers_.back().ticket, true, nullptr).status();
  if (!loaded.ok() && !absl::IsInvalidArgument(loaded)) return NoteFault(loaded);
  transfers_.pop_back();
  const std::string message =
      loaded.ok() ? absl::StrCat("the restored state is at position ", executor_.position(request->slot),
                                 " by its own account, at ", expected_position, " by its owner's")
                  : absl::StrCat("the restored state is none: ", std::string(loaded.message()));
  End(request, FinishReason::kError, absl::DataLossError(message));
}

void EngineLoop::Begin(Request* request, std::vector<int32_t> before) {
  EngineRequest& spec = request->spec;
  const bool draws = spec.max_tokens > 0;
  if (draws) {
    std::vector<int32_t> prior = std::move(spec.recent);
    prior.insert(prior.end(), spec.prompt.begin(), spec.prompt.end());
    const size_t skipped = prior.size() - std::min(prior.size(), static_cast<size_t>(info_.input_tokens));
    executor_.BindSampling(request->slot, spec.sampling, std::span(prior).subspan(skipped), spec.generated);
  }
  const int64_t position = slots_.at(request->slot).position;
  while (request->next_save().value_or(position + 1) <= position) ++request->saved;
  request->feed = PromptFeed(
      std::move(before), spec.prompt,
      {.draw = draws, .score = spec.prompt_logprobs >= 0, .score_first = spec.score_first && spec.head >= 1});
  spec.prompt = {};
  request->phase = Request::Phase::kIngesting;
  running_.push_back(request);
  delivery_.Add(Event::Kind::kStarted, spec.sink.get());
  if (request->feed.done()) Finish(request, FinishReason::kMaxTokens, absl::OkStatus());
}

void EngineLoop::Save(int32_t slot, Transfer transfer) {
  auto buffer = std::make_shared<StateBuffer>(static_cast<size_t>(info_.state_bytes));
  transfer.buffer = buffer;
  transfer.begun = now_;
  transfers_.push_back(std::move(transfer));
  transfers_.back().ticket = executor_.Save(slot, buffer->span());
}

void EngineLoop::PollTransfers(bool wait) {
  for (auto it = transfers_.begin(); it != transfers_.end();) {
    const absl::StatusOr<bool> done = Poll(it->ticket, wait, nullptr);
    if (!done.ok()) return NoteFault(done.status());
    if (!*done) return;  // in order, so the later ones are not done either
    wait = false;
    Complete(*it);
    it = transfers_.erase(it);
  }
}

// A finished request's snapshots come before its end.
void EngineLoop::AwaitSnapshots(const Request& request) {
  for (auto it = transfers_.begin(); it != transfers_.end() && fault_.ok();) {
    if (it->kind != Transfer::Kind::kSnapshot || it->handle != request.handle) {
      ++it;
      continue;
    }
    const absl::StatusOr<bool> done = Poll(it->ticket, true, nullptr);
    if (!done.ok()) return NoteFault(done.status());
    Complete(*it);
    it = transfers_.erase(it);
  }
}

void EngineLoop::Complete(Transfer& transfer) {
  if (transfer.dropped && transfer.kind == Transfer::Kind::kCopy) return AnswerWithoutState(std::move(transfer.done));
  if (transfer.kind == Transfer::Kind::kLoad || transfer.dropped) return;
  RareEvent* event = nullptr;
  if (transfer.kind == Transfer::Kind::kSnapshot) {
    Request& request = *requests_.at(transfer.handle);
    event = &delivery_.AddRare(Event::Kind::kSnapshot, request.spec.sink.get(), transfer.position);
  } else if (transfer.kind == Transfer::Kind::kCopy) {
    event = &delivery_.AddRare(Event::Kind::kSaved, nullptr, transfer.position);
    event->done = std::move(transfer.done);
  } else {
    event = &delivery_.AddRare(Event::Kind::kEvicted, nullptr, transfer.position);
    event->session_key = std::move(transfer.key);
  }
  event->state = std::move(transfer.buffer);
  event->duration = absl::Now() - transfer.begun;
}

// A request that has been announced finished may still have surplus work in its slot: that is over in an iteration.
void EngineLoop::SaveAsked() {
  for (size_t left = asked_.size(); left > 0; --left) {
    Command command = std::move(asked_.front());
    asked_.pop_front();
    const int32_t slot = draining_ || !fault_.ok() ? -1 : slots_.Find(command.key);
    const Request* const user = slot < 0 ? nullptr : slots_.at(slot).request;
    if (user != nullptr && user->phase == Request::Phase::kFinished && !slots_.at(slot).forget) {
      asked_.push_back(std::move(command));
    } else if (slot < 0 || user != nullptr || slots_.at(slot).position == 0) {
      AnswerWithoutState(std::move(command.done));
    } else {
      Save(slot, {.kind = Transfer::Kind::kCopy,
                  .key = std::move(command.key),
                  .done = std::move(command.done),
                  .position = slots_.at(slot).position});
    }
  }
}

void EngineLoop::AnswerWithoutState(Engine::StateDone done) {
  delivery_.AddRare(Event::Kind::kSaved, nullptr).done = std::move(done);
}

}  // namespace smt
