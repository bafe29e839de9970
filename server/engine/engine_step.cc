// One step: who takes part with what, and what becomes of the results.
#include <algorithm>
#include <utility>

#include "server/engine/engine_loop.h"

namespace smt {
namespace {

// Of one slot. With a third one, a stop at the first would leave the second's draw, which is in no log, in the state.
constexpr int32_t kMaxDrawsInFlight = 2;

}  // namespace

bool EngineLoop::SubmitStep() {
  std::unique_ptr<Step> step;
  if (spare_steps_.empty()) {
    step = std::make_unique<Step>();
  } else {
    step = std::move(spare_steps_.back());
    spare_steps_.pop_back();
  }
  step->plan.clear();
  step->feed_items.clear();
  step->requests.clear();
  step->metrics = {};

  bool streaming = false;  // someone would notice a long step
  ingesting_.clear();
  paused_ = 0;
  for (Request* request : running_) {
    if (request->ending || TakeSnapshot(request)) continue;
    if (request->phase == Request::Phase::kIngesting) {
      if (request->items_in_flight == 0) ingesting_.push_back(request);
      continue;
    }
    const int64_t drawn = request->generated + request->draws_in_flight;
    if (drawn - request->spec.sink->consumed.load(std::memory_order_acquire) >= options_.max_buffered_tokens) {
      ++paused_;
      continue;
    }
    streaming = true;
    if (drawn < request->spec.max_tokens &&
        request->draws_in_flight < std::min(info_.max_in_flight, kMaxDrawsInFlight)) {
      PlanDraw(request, step.get());
    }
  }
  if (!ingesting_.empty()) {
    PlanIngestion(streaming ? options_.ingest_tokens_per_step : options_.ingest_tokens_per_step_idle, step.get());
  }
  if (step->plan.empty()) {
    spare_steps_.push_back(std::move(step));
    return false;
  }
  step->submitted = absl::Now();
  const absl::StatusOr<Ticket> ticket = Submit(step->plan);
  if (!ticket.ok()) {
    NoteFault(ticket.status());
    return true;
  }
  step->ticket = *ticket;
  step->metrics.batch_size = static_cast<int32_t>(step->plan.size());
  for (size_t i = 0; i < step->plan.size(); ++i) {
    ++step->requests[i]->items_in_flight;
    if (step->plan[i].want == Want::kSample) ++step->requests[i]->draws_in_flight;
  }
  steps_.push_back(std::move(step));
  return true;
}

bool EngineLoop::TakeSnapshot(Request* request) {
  Slot& slot = slots_.at(request->slot);
  if (slot.key.empty() || slot.position - slot.snapshot_position < options_.snapshot_interval) return false;
  // Only with nothing in flight is it certain which position the state is at.
  if (request->items_in_flight > 0) return true;
  Save(request->slot, {.kind = Transfer::Kind::kSnapshot, .handle = request->handle, .position = slot.position});
  slot.snapshot_position = slot.position;
  return false;
}

// Of a request that absorbs: such items are not overlapped, so the slot stands where its last one ended.
void EngineLoop::SaveWhereAsked(Request* request) {
  Slot& slot = slots_.at(request->slot);
  if (request->next_save() != slot.position) return;
  ++request->saved;
  Save(request->slot, {.kind = Transfer::Kind::kSnapshot, .handle = request->handle, .position = slot.position});
  slot.snapshot_position = slot.position;
}

// Should the executor defer this, a later step's item, being the same, takes its place.
void EngineLoop::PlanDraw(Request* request, Step* step) {
  PlanItem& item = step->plan.emplace_back();
  item.slot = request->slot;
  item.append_last_sampled = true;
  item.want = Want::kSample;
  step->feed_items.emplace_back();
  step->requests.push_back(request);
}

// Shares the budget among all that ingest, in whole strides; where it does not reach, they take turns.
void EngineLoop::PlanIngestion(int64_t budget, Step* step) {
  constexpr int64_t kScoreCost = 16;  // a scored id costs about a column of the transformer, an absorbed one does not
  const size_t count = ingesting_.size();
  const int64_t stride = std::max(info_.stride, 1);
  const int64_t share = std::max(budget / static_cast<int64_t>(count) / stride * stride, stride);
  std::sort(ingesting_.begin(), ingesting_.end(), [](const Request* a, const Request* b) {
    return std::pair(a->ingest_turn, a->handle) < std::pair(b->ingest_turn, b->handle);
  });
  for (Request* request : ingesting_) {
    if (budget <= 0) break;
    request->ingest_turn = ++ingest_turns_;
    const Slot& slot = slots_.at(request->slot);
    int64_t ids = std::min(share, budget);
    if (!slot.key.empty()) {
      ids = std::clamp<int64_t>(slot.snapshot_position + options_.snapshot_interval - slot.position, 1, ids);
    }
    if (const auto save = request->next_save()) ids = std::min(ids, *save - slot.position);
    const PromptFeed::Item item = request->feed.Next(ids, std::max<int64_t>(ids / kScoreCost, 1));
    const auto absorbed = static_cast<int64_t>(item.ids.size());
    budget -= item.want == Want::kScore ? std::max<int64_t>(absorbed, 1) * kScoreCost : std::max<int64_t>(absorbed, 1);
    step->metrics.prompt_tokens += absorbed;
    step->plan.push_back({.slot = request->slot,
                          .append_last_sampled = false,
                          .ids = item.ids,
                          .want = item.want,
                          .targets = item.targets,
                          .top_logprobs = item.want == Want::kScore ? request->spec.prompt_logprobs : -1});
    step->feed_items.push_back(item);
    step->requests.push_back(request);
  }
}

void EngineLoop::FinishOldestStep() {
  std::unique_ptr<Step> step = std::move(steps_.front());
  absl::StatusOr<bool> done = false;
  while (done.ok() && !*done) done = Poll(step->ticket, true, &result_);
  now_ = absl::Now();
  if (done.ok() && result_.items.size() != step->plan.size()) {
    done = absl::InternalError("the executor gave a different number of results than items");
  }
  if (!done.ok()) {
    steps_.front() = std::move(step);  // its spans may still be read
    return NoteFault(done.status());
  }
  steps_.pop_front();
  for (size_t i = 0; i < step->plan.size(); ++i) TakeResult(*step, i, result_.items[i]);
  if (report_steps_) {
    step->metrics.timings = result_.timings;
    step->metrics.duration = now_ - step->submitted;
    delivery_.AddRare(Event::Kind::kStep, nullptr).step = step->metrics;
  }
  spare_steps_.push_back(std::move(step));
}

void EngineLoop::TakeResult(Step& step, size_t index, ItemResult& result) {
  const PlanItem& item = step.plan[index];
  Request* const request = step.requests[index];
  const bool finished = request->phase == Request::Phase::kFinished;
  --request->items_in_flight;
  if (item.want == Want::kSample) --request->draws_in_flight;
  if (result.deferred) ++step.metrics.deferred;
  if (result.deferred && result.absorbed) {
    // Only the draw is still to come, by an item that is the same.
    Slot& slot = slots_.at(request->slot);
    slot.position += item.append_last_sampled ? 1 : 0;
    slot.unappended.clear();
  } else if (!result.deferred) {
    Slot& slot = slots_.at(request->slot);
    if (item.append_last_sampled && result.absorbed) {
      slot.position += 1;
      slot.unappended.clear();
    }
    slot.position += static_cast<int64_t>(item.ids.size());
    if (!finished && request->phase == Request::Phase::kIngesting) {
      TakeFeedResult(request, step.feed_items[index], result);
    }
    if (!result.status.ok()) {
      // A later step in flight has appended something that is in no log.
      if (request->items_in_flight > 0) slot.forget = true;
      if (!finished) End(request, FinishReason::kError, result.status);
      return;
    }
    // After a cancellation an id still counts if a later step in flight appends it, or else the log would fall behind
    // the state; the last one drawn does not.
    const bool surplus = finished || (request->ending && request->items_in_flight == 0);
    if (item.want == Want::kSample && !surplus) {
      ++step.metrics.generated_tokens;
      return TakeDraw(request, result);
    }
    if (!finished && !request->ending && request->feed.done() && request->spec.max_tokens == 0) {
      return Finish(request, FinishReason::kMaxTokens, absl::OkStatus());
    }
  }
  if (request->items_in_flight > 0) return;
  if (finished) {
    Release(request);
  } else if (request->ending) {
    Finish(request, *request->ending, request->failure);
  }
}

void EngineLoop::TakeFeedResult(Request* request, const PromptFeed::Item& item, ItemResult& result) {
  const int64_t first_target = request->feed.FirstTarget(item);
  const int64_t before = request->feed.prompt_done();
  request->feed.Advance(item);
  SaveWhereAsked(request);
  GenerationSink* const sink = request->spec.sink.get();
  if (item.want == Want::kScore) {
    delivery_.AddRare(Event::Kind::kPromptLogprobs, sink, request->spec.head + first_target + 1).logprobs =
        std::move(result.scores);
  }
  if (request->feed.prompt_done() > before) {
    Event& event = delivery_.Add(Event::Kind::kIngested, sink);
    event.position = request->feed.prompt_done();
    event.total = request->prompt_size;
  }
  if (request->feed.done()) request->prefilled = now_;
}

void EngineLoop::TakeDraw(Request* request, ItemResult& result) {
  const EngineRequest& spec = request->spec;
  request->phase = Request::Phase::kGenerating;
  ++request->generated;
  slots_.at(request->slot).unappended.assign(1, result.id);
  Event& event = delivery_.Add(Event::Kind::kToken, spec.sink.get());
  event.token.id = result.id;
  event.token.position = request->log_position();
  if (spec.sampling->top_logprobs >= 0) {
    event.token.has_logprobs = true;
    event.token.logprobs = std::move(result.logprobs);
  }
  if (std::binary_search(spec.stop_tokens.begin(), spec.stop_tokens.end(), result.id)) {
    return Finish(request, FinishReason::kStopToken, absl::OkStatus(), result.id);
  }
  if (request->stop_matcher != nullptr) {
    const int32_t match = request->stop_matcher->Append((*options_.token_bytes)[result.id]).index;
    const int64_t generated = static_cast<int64_t>(spec.generated.size()) + request->generated;
    if (match >= 0 && generated >= spec.sampling->min_tokens) {
      return Finish(request, FinishReason::kStopString, absl::OkStatus(), -1, match);
    }
  }
  if (request->generated >= spec.max_tokens) Finish(request, FinishReason::kMaxTokens, absl::OkStatus());
}

}  // namespace smt
