#include "server/engine/engine_loop.h"

#include <algorithm>
#include <exception>

#include "absl/strings/str_cat.h"
#include "server/base/status_details.h"

namespace smt {

EngineLoop::EngineLoop(const Engine::Options& options, Executor* executor, bool report_steps, Inbox* inbox,
                       Delivery* delivery, RestorePool* restores, SharedStats* stats)
    : options_(options),
      executor_(*executor),
      info_(executor->info()),
      report_steps_(report_steps),
      inbox_(*inbox),
      delivery_(*delivery),
      restores_(*restores),
      stats_(*stats),
      slots_(info_.slots) {
  PublishStats();
}

void EngineLoop::Run() {
  constexpr int32_t kSavesAtOnce = 8;  // bounds the host memory of a drain
  while (true) {
    if (next_command_ == commands_.size()) {
      inbox_.TakeAll(&commands_);
      next_command_ = 0;
    }
    now_ = absl::Now();
    while (next_command_ < commands_.size()) Handle(commands_[next_command_++]);
    Expire();
    bool worked = false;
    if (fault_.ok()) PollTransfers(false);
    SaveAsked();
    if (fault_.ok()) Admit();
    if (fault_.ok()) {
      worked = SubmitStep();
      const bool full = steps_.size() >= static_cast<size_t>(std::max(info_.max_in_flight, 1));
      if (fault_.ok() && !steps_.empty() && (full || !worked)) {
        FinishOldestStep();
        worked = true;
      }
    }
    if (!fault_.ok() && !faulted_) HandleFault();
    PublishStats();
    delivery_.Flush();
    if (worked) continue;
    if (!faulted_ && !transfers_.empty()) {
      PollTransfers(true);
      continue;
    }
    if (draining_ && (faulted_ || requests_.empty())) {
      if (faulted_ || slots_.idle_count() == 0) break;
      for (int32_t i = 0; i < kSavesAtOnce && slots_.idle_count() > 0; ++i) Evict(slots_.LeastRecentlyUsed());
      continue;
    }
    inbox_.Wait(next_expiry_);
  }
  delivery_.Flush();
}

// Every call of the executor is where this can happen, so what is on its way to a sink must be in a member by then.
void EngineLoop::TakeOver(const absl::Status& fault) {
  taken_over_ = true;
  NoteFault(fault);
  if (finishing_) {
    const Finishing end = *std::move(finishing_);
    Finish(end.request, end.reason, end.status, end.stop_token, end.stop_string);
  }
  Run();
}

void EngineLoop::Handle(Command& command) {
  const auto found = requests_.find(command.handle);
  Request* request = found == requests_.end() ? nullptr : found->second.get();
  switch (command.kind) {
    case Command::Kind::kSubmit: {
      request = command.request.get();
      requests_[request->handle] = std::move(command.request);
      queue_[{-int64_t{request->spec.priority}, request->handle}] = request;
      WatchExpiry(*request);
      if (faulted_) return End(request, FinishReason::kError, fault_);
      if (draining_) End(request, FinishReason::kDraining);
      return;
    }
    case Command::Kind::kCancel:
      if (request != nullptr) End(request, command.reason);
      return;
    case Command::Kind::kDiscard: {
      for (Transfer& transfer : transfers_) transfer.dropped |= transfer.key == command.key && !command.key.empty();
      if (const int32_t slot = slots_.Find(command.key); slot >= 0) Forget(slot);
      return;
    }
    case Command::Kind::kDiscardAll:
      for (Transfer& transfer : transfers_) transfer.dropped |= !transfer.key.empty();
      for (int32_t slot = 0; slot < info_.slots; ++slot) {
        if (!slots_.at(slot).key.empty()) Forget(slot);
      }
      return;
    case Command::Kind::kSaveState:
      asked_.push_back(std::move(command));
      return;
    case Command::Kind::kRestored:
      // After a fault it ends with the others.
      if (request != nullptr && request->phase == Request::Phase::kRestoring && fault_.ok()) {
        Restored(request, std::move(command.restored));
      }
      return;
    case Command::Kind::kDrain:
      draining_ = true;
      return EndAll(FinishReason::kDraining, absl::OkStatus());
    case Command::Kind::kWake:
      return;  // every iteration looks at what readers have consumed
  }
}

void EngineLoop::Forget(int32_t slot) {
  if (slots_.at(slot).request != nullptr) {
    slots_.at(slot).forget = true;
  } else {
    slots_.Free(slot);
  }
}

void EngineLoop::WatchExpiry(const Request& request) { next_expiry_ = std::min(next_expiry_, request.expires); }

void EngineLoop::Expire() {
  constexpr absl::Duration kLook = absl::Milliseconds(1);  // whether one is where it may end
  if (now_ < next_expiry_) return;
  next_expiry_ = absl::InfiniteFuture();
  std::vector<Request*> expired;
  for (const auto& [handle, request] : requests_) {
    if (request->phase == Request::Phase::kFinished || request->ending) continue;
    if (request->expires > now_) {
      WatchExpiry(*request);
    } else if (request->spec.deadline > now_ && request->log_position() < request->spec.max_duration_from) {
      next_expiry_ = std::min(next_expiry_, now_ + kLook);
    } else {
      expired.push_back(request.get());
    }
  }
  for (Request* request : expired) {
    End(request, request->spec.deadline <= now_ ? FinishReason::kDeadlineExceeded : FinishReason::kMaxDuration);
  }
}

void EngineLoop::End(Request* request, FinishReason reason, absl::Status status) {
  switch (request->phase) {
    case Request::Phase::kWaiting:
      queue_.erase({-int64_t{request->spec.priority}, request->handle});
      inbox_.LeftQueue();
      return Finish(request, reason, status);
    case Request::Phase::kRestoring:
      request->restore_job->abandoned.store(true, std::memory_order_relaxed);
      slots_.Free(request->slot);
      request->slot = -1;
      return Finish(request, reason, status);
    case Request::Phase::kIngesting:
    case Request::Phase::kGenerating:
      if (request->items_in_flight == 0 || !fault_.ok()) return Finish(request, reason, status);
      if (request->ending) return;
      request->ending = reason;
      request->failure = std::move(status);
      return;
    case Request::Phase::kFinished:
      return;
  }
}

void EngineLoop::EndAll(FinishReason reason, const absl::Status& status) {
  std::vector<Request*> all;
  for (const auto& [handle, request] : requests_) all.push_back(request.get());
  std::sort(all.begin(), all.end(), [](const Request* a, const Request* b) { return a->handle < b->handle; });
  for (Request* request : all) End(request, reason, status);
}

void EngineLoop::Finish(Request* request, FinishReason reason, const absl::Status& status, int32_t stop_token,
                        int32_t stop_string) {
  finishing_ = {request, reason, status, stop_token, stop_string};
  AwaitSnapshots(*request);
  finishing_.reset();
  if (request->slot >= 0 && request->phase == Request::Phase::kIngesting) {
    // The log has the whole prompt: the session's next turn goes on absorbing it.
    const std::span<const int32_t> rest = request->feed.rest();
    slots_.at(request->slot).unappended.assign(rest.begin(), rest.end());
  }
  const bool admitted = request->admitted != absl::Time();
  const bool prefilled = request->prefilled != absl::Time();
  RareEvent& event = delivery_.AddRare(Event::Kind::kFinished, request->spec.sink.get());
  FinishInfo& info = event.finish;
  info.reason = reason;
  info.status = status;
  info.position = request->log_position();
  info.generated = request->generated;
  info.stop_token = stop_token;
  info.stop_string = stop_string;
  info.queue_time = (admitted ? request->admitted : now_) - request->submitted;
  if (admitted) info.prefill_time = (prefilled ? request->prefilled : now_) - request->admitted;
  if (prefilled) info.decode_time = now_ - request->prefilled;
  info.resident = request->resident;
  info.recomputed_tokens = request->recomputed_tokens;
  event.sink = std::move(request->spec.sink);
  event.restore = std::move(request->spec.restore);
  if (!request->spec.session_key.empty()) inbox_.ReleaseKey(request->spec.session_key);
  running_.erase(std::remove(running_.begin(), running_.end(), request), running_.end());
  request->phase = Request::Phase::kFinished;
  // A call that hangs may still read the ids of any request.
  if (request->items_in_flight == 0 && !taken_over_) Release(request);
}

void EngineLoop::Release(Request* request) {
  if (request->slot >= 0) {
    const Slot& slot = slots_.at(request->slot);
    if (slot.key.empty() || slot.forget) {
      slots_.Free(request->slot);
    } else {
      slots_.MakeIdle(request->slot);
    }
  }
  requests_.erase(request->handle);
}

absl::StatusOr<Ticket> EngineLoop::Submit(std::span<const PlanItem> plan) {
  try {
    return executor_.Submit(plan);
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

absl::StatusOr<bool> EngineLoop::Poll(Ticket ticket, bool wait, StepResult* result) {
  try {
    return executor_.Poll(ticket, wait, result);
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

void EngineLoop::NoteFault(const absl::Status& status) {
  if (!fault_.ok()) return;
  fault_ = WithDetails(absl::UnavailableError(absl::StrCat("the device failed: ", status.ToString())),
                       {.reason = "DEVICE_FAULT", .retry_delay = absl::Seconds(1)});
}

// Nothing is asked of the executor any more. Requests with work in flight stay in memory, since it may still read
// their ids. The owner hears of it first, so that whoever is told can see that this server no longer serves.
void EngineLoop::HandleFault() {
  inbox_.Close(fault_);
  delivery_.AddRare(Event::Kind::kFault, nullptr).fault = fault_;
  EndAll(FinishReason::kError, fault_);
  for (Transfer& transfer : transfers_) {  // which stay: the executor may still write to their buffers
    if (transfer.kind == Transfer::Kind::kCopy) AnswerWithoutState(std::move(transfer.done));
  }
  faulted_ = true;
  SaveAsked();
}

void EngineLoop::PublishStats() {
  const size_t running = faulted_ ? 0 : requests_.size() - queue_.size();  // those being restored too
  stats_.running.store(static_cast<int64_t>(running), std::memory_order_relaxed);
  stats_.paused.store(paused_, std::memory_order_relaxed);
  stats_.slots_active.store(slots_.active_count(), std::memory_order_relaxed);
  stats_.slots_idle.store(slots_.idle_count(), std::memory_order_relaxed);
  stats_.slots_free.store(slots_.free_count(), std::memory_order_relaxed);
}

}  // namespace smt
