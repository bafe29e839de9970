// The life of a generation and the engine's side of it; the reader's is in generation_run_reader.cc.
#include "server/service/generation_run.h"

#include <algorithm>
#include <utility>

#include "model/base/strings.h"
#include "server/base/log.h"
#include "server/base/status_details.h"
#include "server/service/generation_events.h"
#include "server/service/names.h"
#include "server/service/proto_time.h"

namespace smt {
namespace {

constexpr absl::Duration kProgressInterval = absl::Seconds(1);

std::vector<std::string> StopStrings(const v1::GenerationSpec& spec) {
  return {spec.stopping().stop_strings().begin(), spec.stopping().stop_strings().end()};
}

}  // namespace

GenerationRun::GenerationRun(ServiceContext* context, Start start)
    : context_(context),
      spec_(std::move(start.spec)),
      prompt_(std::move(start.prompt)),
      stop_tokens_(std::move(start.stop_tokens)),
      arrival_(start.arrival),
      turn_(std::move(start.turn)),
      session_id_(turn_ ? turn_->session().id : ""),
      head_(turn_ ? turn_->session().position : 0),
      assembler_(&context->codec->token_bytes(), StopStrings(spec_), spec_.stopping().min_tokens()),
      last_progress_(absl::Now()),
      digest_(turn_ ? turn_->session().branch : 0, spec_.request_id()) {
  const auto prompt_tokens = static_cast<int64_t>(prompt_.size());
  absl::MutexLock lock(&mu_);
  released_position_ = log_position_ = head_ + prompt_tokens;
  durable_position_ = turn_ ? turn_->durable_position() : 0;
  if (turn_) started_.set_session(SessionName(session_id_));
  started_.set_request_id(spec_.request_id());
  started_.set_branch(turn_ ? turn_->session().branch : 0);
  started_.set_start_position(head_);
  started_.set_prompt_tokens(prompt_tokens);
  started_.set_seed(static_cast<int64_t>(start.seed));
  started_.set_max_tokens(start.max_tokens);
  started_.set_durable_position(durable_position_);
  started_.set_digest(digest_.bytes());
  *events_.emplace_back().mutable_started() = started_;
  if (spec_.output().has_prompt_logprobs() && head_ == 0 && !prompt_.empty()) {
    // Nothing precedes a session's first id, so the engine says nothing of it; the list has one entry for each id.
    v1::PromptLogprobs* first = events_.emplace_back().mutable_prompt_logprobs();
    first->set_first_position(1);
    *first->add_logprobs() = ToProto(*context_->codec, prompt_[0], nullptr);
  }
  if (spec_.output().echo()) AppendEcho(*context_->codec, prompt_, head_, &events_);
  context_->metrics->Add(Metric::kPromptTokensTotal, static_cast<double>(prompt_tokens));
}

GenerationRun::~GenerationRun() = default;

void GenerationRun::SetHandle(RequestHandle handle) {
  bool cancel;
  {
    absl::MutexLock lock(&mu_);
    handle_ = handle;
    cancel = cancelled_ || (disconnected_ && DisconnectPolicy() != v1::DISCONNECT_POLICY_CONTINUE);
  }
  if (cancel) context_->engine->Cancel(handle);
}

absl::Status GenerationRun::Abandon(const absl::Status& refusal) {
  const absl::Status status =
      BrokenOffStatus({.reason = FinishReason::kError, .status = refusal, .position = log_position()});
  if (turn_) {
    turn_->Finish(RequestState::kInterrupted, "",
                  [self = shared_from_this(), status](absl::Status, int64_t) { self->End(std::nullopt, status); });
  } else {
    End(std::nullopt, status);
  }
  return status;
}

v1::GenerationStarted GenerationRun::started() const { return started_; }

int64_t GenerationRun::log_position() const {
  absl::MutexLock lock(&mu_);
  return log_position_;
}

void GenerationRun::Cancel(std::function<void()> done) {
  std::optional<RequestHandle> handle;
  {
    absl::MutexLock lock(&mu_);
    if (!ended_) {
      cancelled_ = true;
      handle = handle_;
      on_end_.push_back(std::move(done));
      done = nullptr;
    }
  }
  if (handle) context_->engine->Cancel(*handle);
  if (done) done();
}

void GenerationRun::OnIngested(int64_t done, int64_t total) {
  const absl::Time now = absl::Now();
  if (now - last_progress_ < kProgressInterval || done >= total) return;
  last_progress_ = now;
  {
    absl::MutexLock lock(&mu_);
    progress_.emplace();
    progress_->set_ingested_tokens(done);
    progress_->set_total_tokens(total);
  }
  Notify();
}

void GenerationRun::OnPromptLogprobs(int64_t first_position, std::vector<TokenLogprobs> logprobs) {
  std::deque<v1::GenerationEvent> events;
  AppendPromptLogprobs(*context_->codec, prompt_, head_, first_position, logprobs, &events);
  {
    absl::MutexLock lock(&mu_);
    if (!disconnected_) std::move(events.begin(), events.end(), std::back_inserter(events_));
  }
  Notify();
}

bool GenerationRun::IsStopToken(int32_t id) const {
  return std::find(stop_tokens_.begin(), stop_tokens_.end(), id) != stop_tokens_.end();
}

void GenerationRun::OnTokens(std::span<const TokenOutput> tokens) {
  if (tokens.empty()) return;
  const absl::Time now = absl::Now();
  // Tokens that come together share the time since the ones before; the first of all has none before it.
  const bool first = generated_ == 0;
  if (first) first_token_ = last_tokens_ = now;
  const absl::Duration each = (now - last_tokens_) / static_cast<int64_t>(tokens.size());
  for (size_t i = first ? 1 : 0; i < tokens.size(); ++i) {
    context_->metrics->Observe(Metric::kInterTokenLatencySeconds, each);
  }
  last_tokens_ = now;
  generated_ += static_cast<int64_t>(tokens.size());
  if (turn_) {
    std::vector<int32_t> ids;
    ids.reserve(tokens.size());
    for (const TokenOutput& token : tokens) ids.push_back(token.id);
    turn_->Append(ids);
  }
  TextAssembler::Released released;
  for (const TokenOutput& token : tokens) {
    if (!IsStopToken(token.id)) assembler_.Append(token, &released);
  }
  const int64_t durable = turn_ ? turn_->durable_position() : 0;
  bool notify = false;
  std::optional<RequestHandle> wake;
  {
    absl::MutexLock lock(&mu_);
    log_position_ = tokens.back().position;
    durable_position_ = durable;
    if (disconnected_) {
      // Nobody reads (CONTINUE): the log keeps the tokens, and nothing may hold the engine back.
      consumed.fetch_add(static_cast<int64_t>(tokens.size()), std::memory_order_relaxed);
      unwoken_tokens_ += static_cast<int64_t>(tokens.size());
      if (unwoken_tokens_ >= kWakeInterval) {
        unwoken_tokens_ = 0;
        wake = handle_;
      }
    }
    if (!released.empty()) {
      Release(std::move(released));
      notify = true;
    }
  }
  if (wake) context_->engine->Wake(*wake);
  if (notify) Notify();
}

void GenerationRun::Release(TextAssembler::Released released) {
  for (const TokenOutput& token : released.tokens) digest_.Add(token.id);
  if (!released.tokens.empty()) released_position_ = released.tokens.back().position;
  if (disconnected_) return;
  if (!chunk_) chunk_.emplace();
  for (const TokenOutput& token : released.tokens) {
    chunk_->add_token_ids(token.id);
    if (token.has_logprobs) *chunk_->add_logprobs() = ToProto(*context_->codec, token.id, &token.logprobs);
  }
  chunk_->mutable_text()->append(released.text);
  chunk_->set_position(released_position_);
  chunk_->set_digest(digest_.bytes());
}

void GenerationRun::OnSnapshot(int64_t position, std::shared_ptr<const StateBuffer> state) {
  if (turn_) turn_->Snapshot(position, std::move(state));
}

void GenerationRun::OnFinished(const FinishInfo& info) {
  RecordMetrics(info);
  const std::optional<v1::FinishReason> reason = ToProto(info.reason);
  bool parked = false;
  {
    absl::MutexLock lock(&mu_);
    // A vanished reader's engine request ends as cancelled, but under PARK the generation has not ended.
    parked = info.reason == FinishReason::kCancelled && !cancelled_ && DisconnectPolicy() == v1::DISCONNECT_POLICY_PARK;
  }
  if (!reason || parked) {
    const absl::Status status = parked ? absl::CancelledError("the client went away") : BrokenOffStatus(info);
    const bool failed = info.reason == FinishReason::kError && !absl::IsUnavailable(info.status);
    if (!turn_) return End(std::nullopt, status);
    turn_->Finish(failed ? RequestState::kFailed : RequestState::kInterrupted, "",
                  [self = shared_from_this(), status](absl::Status, int64_t) { self->End(std::nullopt, status); });
    return;
  }

  TextAssembler::Released rest;
  assembler_.Finish(&rest);
  v1::GenerationFinished finished;
  finished.set_reason(*reason);
  if (info.reason == FinishReason::kStopToken) finished.set_stop_token_id(info.stop_token);
  if (info.reason == FinishReason::kStopString && info.stop_string >= 0 &&
      info.stop_string < spec_.stopping().stop_strings_size()) {
    finished.set_stop_string(spec_.stopping().stop_strings(info.stop_string));
  }
  finished.mutable_usage()->set_prompt_tokens(static_cast<int64_t>(prompt_.size()));
  finished.mutable_usage()->set_generated_tokens(info.generated);
  finished.mutable_usage()->set_recomputed_tokens(info.recomputed_tokens);
  v1::Timings* timings = finished.mutable_timings();
  *timings->mutable_queue_time() = smt::ToProto(info.queue_time);
  *timings->mutable_prefill_time() = smt::ToProto(info.prefill_time);
  *timings->mutable_decode_time() = smt::ToProto(info.decode_time);
  if (generated_ > 0) *timings->mutable_time_to_first_token() = smt::ToProto(first_token_ - arrival_);
  finished.set_position(info.position);
  {
    absl::MutexLock lock(&mu_);
    if (!rest.empty()) Release(std::move(rest));
    log_position_ = info.position;
    finished.set_text_position(released_position_);
    finished.set_digest(digest_.bytes());
  }
  Notify();  // the last chunk need not wait for the disk
  if (!turn_) return End(std::move(finished), absl::OkStatus());
  const RequestState state =
      info.reason == FinishReason::kCancelled ? RequestState::kCancelled : RequestState::kFinished;
  const std::string outcome = finished.SerializeAsString();
  turn_->Finish(
      state, outcome,
      [self = shared_from_this(), finished = std::move(finished)](absl::Status status, int64_t durable) mutable {
        finished.set_durable_position(durable);
        if (status.ok()) {
          self->End(std::move(finished), status);
        } else {
          self->End(std::nullopt, status);
        }
      });
}

// Why a stream breaks off without `finished`, and where the session stands.
absl::Status GenerationRun::BrokenOffStatus(const FinishInfo& info) const {
  StatusDetails details = GetDetails(info.status);
  {
    absl::MutexLock lock(&mu_);
    details.metadata["position"] = StrCat(info.position);
    details.metadata["text_position"] = StrCat(released_position_);
  }
  const std::string where = turn_ ? StrCat("; session '", session_id_, "' stands at position ", info.position) : "";
  switch (info.reason) {
    case FinishReason::kDraining:
      details.reason = "DRAINING";
      details.retry_delay = absl::Seconds(1);
      return WithDetails(absl::UnavailableError(StrCat("the server is going down", where)), details);
    case FinishReason::kDeadlineExceeded:
      details.reason = "DEADLINE_EXCEEDED";
      return WithDetails(absl::DeadlineExceededError(StrCat("the call's deadline passed", where)), details);
    default: {
      std::string advice;
      if (details.reason == "DEVICE_FAULT") {
        advice = turn_ ? "; go on from there once the server has restarted"
                       : "; send the request again once the server has restarted";
      }
      const absl::Status status = info.status.ok() ? absl::InternalError("the engine gave no reason") : info.status;
      return WithDetails(absl::Status(status.code(), StrCat(std::string(status.message()), where, advice)), details);
    }
  }
}

void GenerationRun::RecordMetrics(const FinishInfo& info) {
  ServerMetrics& metrics = *context_->metrics;
  const std::string where = head_ == 0 ? "new" : info.resident ? "warm" : "restored";
  metrics.Add(Metric::kGenerationsFinishedTotal, 1, {ReasonLabel(info.reason)});
  metrics.Add(Metric::kGenerationTokensTotal, static_cast<double>(info.generated));
  metrics.Add(Metric::kSessionRecomputedTokensTotal, static_cast<double>(info.recomputed_tokens));
  if (generated_ > 0) metrics.Observe(Metric::kTimeToFirstTokenSeconds, first_token_ - arrival_, {where});
  metrics.Observe(Metric::kE2eRequestLatencySeconds, absl::Now() - arrival_);
  metrics.Observe(Metric::kRequestQueueTimeSeconds, info.queue_time);
  metrics.Observe(Metric::kRequestPrefillTimeSeconds, info.prefill_time);
  metrics.Observe(Metric::kRequestDecodeTimeSeconds, info.decode_time);
  metrics.Observe(Metric::kRequestPromptTokens, static_cast<double>(prompt_.size()));
  metrics.Observe(Metric::kRequestGenerationTokens, static_cast<double>(info.generated));
  if (turn_) {
    metrics.Observe(Metric::kSessionDurabilityLagTokens,
                    static_cast<double>(std::max<int64_t>(0, info.position - turn_->durable_position())));
  }
  LogInfo("generation ended", {{"session", session_id_},
                               {"request_id", spec_.request_id()},
                               {"reason", ReasonLabel(info.reason)},
                               {"prompt_tokens", static_cast<int64_t>(prompt_.size())},
                               {"generated_tokens", info.generated},
                               {"position", info.position},
                               {"seconds", absl::Now() - arrival_}});
}

void GenerationRun::End(std::optional<v1::GenerationFinished> finished, absl::Status status) {
  if (!spec_.request_id().empty()) context_->registry.Remove({session_id_, spec_.request_id()}, this);
  std::vector<std::function<void()>> on_end;
  {
    absl::MutexLock lock(&mu_);
    ended_ = true;
    finished_ = std::move(finished);
    end_status_ = std::move(status);
    on_end.swap(on_end_);
  }
  for (const auto& done : on_end) done();
  Notify();
}

}  // namespace smt
