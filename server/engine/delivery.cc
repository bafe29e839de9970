#include "server/engine/delivery.h"

#include <iterator>
#include <utility>

namespace smt {

Delivery::Delivery(const Engine::Options& options, EngineMetrics* metrics)
    : options_(options), metrics_(metrics), thread_([this] { Run(); }) {}

Delivery::~Delivery() { Stop(); }

void Delivery::Flush() {
  if (collected_.empty()) return;
  {
    PlainLock lock(mu_);
    if (queue_.empty()) {
      queue_.swap(collected_);
    } else {
      queue_.insert(queue_.end(), std::make_move_iterator(collected_.begin()),
                    std::make_move_iterator(collected_.end()));
    }
    if (sleeping_) arrived_.NotifyOne();
  }
  collected_.clear();
}

void Delivery::Stop() {
  {
    PlainLock lock(mu_);
    stopping_ = true;
    arrived_.NotifyOne();
  }
  if (thread_.joinable()) thread_.join();
}

void Delivery::Run() {
  std::vector<Event> batch;
  while (true) {
    {
      PlainLock lock(mu_);
      sleeping_ = true;
      while (queue_.empty() && !stopping_) arrived_.Wait(mu_);
      sleeping_ = false;
      if (queue_.empty()) return;
      batch.swap(queue_);
    }
    for (Event& event : batch) Deliver(event);
    batch.clear();
  }
}

void Delivery::Deliver(Event& event) {
  switch (event.kind) {
    case Event::Kind::kStarted:
      return event.sink->OnStarted();
    case Event::Kind::kIngested:
      return event.sink->OnIngested(event.position, event.total);
    case Event::Kind::kPromptLogprobs:
      return event.sink->OnPromptLogprobs(event.position, std::move(event.rare->logprobs));
    case Event::Kind::kToken:
      return event.sink->OnTokens({&event.token, 1});
    case Event::Kind::kSnapshot:
      if (metrics_ != nullptr) {
        metrics_->OnSave(SaveKind::kSnapshot, event.rare->duration, static_cast<int64_t>(event.rare->state->size()));
      }
      return event.sink->OnSnapshot(event.position, std::move(event.rare->state));
    case Event::Kind::kFinished:
      return event.sink->OnFinished(event.rare->finish);
    case Event::Kind::kEvicted:
      if (metrics_ != nullptr) {
        metrics_->OnSave(SaveKind::kEviction, event.rare->duration, static_cast<int64_t>(event.rare->state->size()));
      }
      if (options_.on_evicted) {
        options_.on_evicted(event.rare->session_key, event.position, std::move(event.rare->state));
      }
      return;
    case Event::Kind::kFault:
      if (options_.on_fault) options_.on_fault(event.rare->fault);
      return;
    case Event::Kind::kStep:
      if (metrics_ != nullptr) metrics_->OnStep(event.rare->step);
      return;
  }
}

}  // namespace smt
