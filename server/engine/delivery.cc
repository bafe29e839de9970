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
    if (options_.before_sinks) options_.before_sinks();
    for (Event& event : batch) {
      if (event.kind == Event::Kind::kToken) {
        Gather(event);
        continue;
      }
      if (event.kind == Event::Kind::kFault) {
        HandOverAll();
      } else if (event.sink != nullptr) {
        HandOver(event.sink);
      }
      Deliver(event);
    }
    HandOverAll();
    if (options_.after_sinks) options_.after_sinks();
    batch.clear();
  }
}

void Delivery::Gather(Event& event) {
  const auto [found, added] = gathered_at_.try_emplace(event.sink, gathered_.size());
  if (added) {
    if (spare_.empty()) spare_.emplace_back();
    gathered_.push_back({event.sink, std::move(spare_.back())});
    spare_.pop_back();
  }
  gathered_[found->second].tokens.push_back(std::move(event.token));
}

void Delivery::HandOver(GenerationSink* sink) {
  const auto found = gathered_at_.find(sink);
  if (found == gathered_at_.end()) return;
  std::vector<TokenOutput>& tokens = gathered_[found->second].tokens;
  if (!tokens.empty()) sink->OnTokens(tokens);
  tokens.clear();
}

void Delivery::HandOverAll() {
  for (Gathered& each : gathered_) {
    if (!each.tokens.empty()) each.sink->OnTokens(each.tokens);
    each.tokens.clear();
    spare_.push_back(std::move(each.tokens));
  }
  gathered_.clear();
  gathered_at_.clear();
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
      return;  // Gather
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
    case Event::Kind::kSaved:
      return event.rare->done(event.position, std::move(event.rare->state));
    case Event::Kind::kFault:
      if (options_.on_fault) options_.on_fault(event.rare->fault);
      return;
    case Event::Kind::kStep:
      if (metrics_ != nullptr) metrics_->OnStep(event.rare->step);
      return;
  }
}

}  // namespace smt
