// The reader's side of a generation: events are taken one by one, and what was read lets the engine go on.
#include <utility>

#include "server/service/generation_run.h"

namespace smt {

void GenerationRun::SetNotify(std::function<void()> notify) {
  {
    absl::MutexLock lock(&mu_);
    notify_ = notify;
  }
  notify();
}

void GenerationRun::Notify() {
  std::function<void()> notify;
  {
    absl::MutexLock lock(&mu_);
    notify = notify_;
  }
  if (notify) notify();
}

TakeResult GenerationRun::Take(v1::GenerationEvent* event) {
  absl::MutexLock lock(&mu_);
  if (!begun_) return ended_ ? TakeResult::kEnd : TakeResult::kNothing;
  if (!events_.empty()) {
    *event = std::move(events_.front());
    events_.pop_front();
    if (event->has_chunk() && !event->chunk().echo()) {
      taken_tokens_ = event->chunk().token_ids_size();
      event->mutable_chunk()->set_durable_position(durable_position_);
    }
    return TakeResult::kMessage;
  }
  if (chunk_) {
    progress_.reset();
    taken_tokens_ = chunk_->token_ids_size();
    chunk_->set_durable_position(durable_position_);
    *event->mutable_chunk() = *std::move(chunk_);
    chunk_.reset();
    return TakeResult::kMessage;
  }
  if (progress_) {
    *event->mutable_progress() = *std::move(progress_);
    progress_.reset();
    return TakeResult::kMessage;
  }
  if (finished_) {
    *event->mutable_finished() = *std::move(finished_);
    finished_.reset();
    return TakeResult::kMessage;
  }
  return ended_ ? TakeResult::kEnd : TakeResult::kNothing;
}

absl::Status GenerationRun::end_status() const {
  absl::MutexLock lock(&mu_);
  return end_status_;
}

void GenerationRun::OnWritten() {
  std::optional<RequestHandle> wake;
  {
    absl::MutexLock lock(&mu_);
    Consume(std::exchange(taken_tokens_, 0));
    if (unwoken_tokens_ >= kWakeInterval && !ended_) {
      unwoken_tokens_ = 0;
      wake = handle_;
    }
  }
  if (wake) context_->engine->Wake(*wake);
}

v1::DisconnectPolicy GenerationRun::DisconnectPolicy() const {
  return spec_.on_disconnect() == v1::DISCONNECT_POLICY_UNSPECIFIED ? v1::DISCONNECT_POLICY_PARK
                                                                    : spec_.on_disconnect();
}

void GenerationRun::OnDisconnect() {
  const bool keep_going = DisconnectPolicy() == v1::DISCONNECT_POLICY_CONTINUE;
  std::optional<RequestHandle> handle;
  {
    absl::MutexLock lock(&mu_);
    if (disconnected_ || ended_) return;
    disconnected_ = true;
    handle = handle_;
    notify_ = nullptr;
    // What was not read any more counts as consumed, so that a paused generation goes on.
    if (chunk_) consumed.fetch_add(chunk_->token_ids_size(), std::memory_order_relaxed);
    for (const auto& piece : pieces_) consumed.fetch_add(piece.token_ids_size(), std::memory_order_relaxed);
    pieces_.clear();
    consumed.fetch_add(taken_tokens_, std::memory_order_relaxed);
    taken_tokens_ = 0;
    chunk_.reset();
    for (const auto& event : events_) consumed.fetch_add(event.chunk().token_ids_size(), std::memory_order_relaxed);
    events_.clear();
  }
  if (!handle) return;  // SetHandle looks again
  if (keep_going) {
    context_->engine->Wake(*handle);
  } else {
    context_->engine->Cancel(*handle);
  }
}

}  // namespace smt
