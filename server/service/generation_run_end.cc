// How a generation ends: its outcome is recorded, then told.
#include <algorithm>
#include <string>
#include <utility>

#include "model/base/strings.h"
#include "server/base/log.h"
#include "server/base/status_details.h"
#include "server/service/generation_events.h"
#include "server/service/generation_parts.h"
#include "server/service/generation_run.h"
#include "server/service/proto_time.h"

namespace smt {
namespace {

absl::Status TakenOver() {
  return WithDetails(absl::AbortedError("the stream goes on elsewhere: ResumeGenerate has taken it over"),
                     {.reason = "TAKEN_OVER"});
}

}  // namespace

void GenerationRun::OnFinished(const FinishInfo& info) {
  RecordMetrics(info);
  const std::optional<v1::FinishReason> reason = ToProto(info.reason);
  bool parked = false, taken_over = false;
  absl::Status diverged;
  {
    absl::MutexLock lock(&mu_);
    diverged = skip_.Check(session_id_);
    taken_over = parked_;
    // A vanished reader's engine request ends as cancelled, but under PARK the generation has not ended.
    parked = info.reason == FinishReason::kCancelled && !cancelled_ &&
             (parked_ || !diverged.ok() || DisconnectPolicy() == v1::DISCONNECT_POLICY_PARK);
  }
  if (!reason || parked) {
    const absl::Status status = !parked          ? BrokenOffStatus(info)
                                : !diverged.ok() ? diverged
                                : taken_over     ? TakenOver()
                                                 : absl::CancelledError("the client went away");
    const bool failed = info.reason == FinishReason::kError && !absl::IsUnavailable(info.status);
    if (!turn_) return End(std::nullopt, status);
    turn_->Finish(failed ? RequestState::kFailed : RequestState::kInterrupted, "",
                  [self = shared_from_this(), status](const absl::Status& written, int64_t) {
                    // That the log could not be written is worse than that the client went away.
                    self->End(std::nullopt, written.ok() || !absl::IsCancelled(status) ? status : written);
                  });
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
  finished.mutable_usage()->set_prompt_tokens(prompt_tokens_);
  finished.mutable_usage()->set_generated_tokens(static_cast<int64_t>(resumed_ids_.size()) + info.generated);
  finished.mutable_usage()->set_recomputed_tokens(info.recomputed_tokens);
  v1::Timings* timings = finished.mutable_timings();
  *timings->mutable_queue_time() = smt::ToProto(info.queue_time);
  *timings->mutable_prefill_time() = smt::ToProto(info.prefill_time);
  *timings->mutable_decode_time() = smt::ToProto(info.decode_time);
  if (first_token_ != absl::InfiniteFuture())
    *timings->mutable_time_to_first_token() = smt::ToProto(first_token_ - arrival_);
  finished.set_position(info.position);
  {
    absl::MutexLock lock(&mu_);
    // An end that time has chosen holds once it is recorded. Should a crash undo it, what was held back is held back
    // again, and a reader who had it would stand where no piece ends.
    withheld_ = turn_ != nullptr && !rest.empty() &&
                (info.reason == FinishReason::kCancelled || info.reason == FinishReason::kMaxDuration);
    if (!rest.empty()) Release(std::move(rest));
    log_position_ = info.position;
    finished.set_text_position(released_position_);
    finished.set_digest(digest_.bytes());
    diverged = skip_.CheckEnd(session_id_);
  }
  Notify();  // the last chunk need not wait for the disk, as a rule
  if (!turn_) return End(std::move(finished), absl::OkStatus());
  const RequestState state =
      info.reason == FinishReason::kCancelled ? RequestState::kCancelled : RequestState::kFinished;
  const std::string outcome = finished.SerializeAsString();
  turn_->Finish(state, outcome,
                [self = shared_from_this(), diverged, finished = std::move(finished)](absl::Status status,
                                                                                      int64_t durable) mutable {
                  finished.set_durable_position(durable);
                  if (status.ok()) self->SendWithheld(durable);
                  status.Update(diverged);
                  if (status.ok()) {
                    self->End(std::move(finished), status);
                  } else {
                    self->End(std::nullopt, status);
                  }
                });
}

void GenerationRun::SendWithheld(int64_t durable) {
  absl::MutexLock lock(&mu_);
  withheld_ = false;
  durable_position_ = std::max(durable_position_, durable);
  Promote();
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
  if (first_token_ != absl::InfiniteFuture())
    metrics.Observe(Metric::kTimeToFirstTokenSeconds, first_token_ - arrival_, {where});
  metrics.Observe(Metric::kE2eRequestLatencySeconds, absl::Now() - arrival_);
  metrics.Observe(Metric::kRequestQueueTimeSeconds, info.queue_time);
  metrics.Observe(Metric::kRequestPrefillTimeSeconds, info.prefill_time);
  metrics.Observe(Metric::kRequestDecodeTimeSeconds, info.decode_time);
  metrics.Observe(Metric::kRequestPromptTokens, static_cast<double>(prompt_tokens_));
  metrics.Observe(Metric::kRequestGenerationTokens, static_cast<double>(info.generated));
  if (turn_) {
    metrics.Observe(Metric::kSessionDurabilityLagTokens,
                    static_cast<double>(std::max<int64_t>(0, info.position - turn_->durable_position())));
  }
  LogInfo("generation ended", {{"session", session_id_},
                               {"request_id", spec_.request_id()},
                               {"reason", ReasonLabel(info.reason)},
                               {"prompt_tokens", prompt_tokens_},
                               {"generated_tokens", info.generated},
                               {"position", info.position},
                               {"seconds", absl::Now() - arrival_}});
}

void GenerationRun::End(std::optional<v1::GenerationFinished> finished, absl::Status status) {
  if (turn_ && !turn_->begun()) {
    // The client hears why the request could not be recorded, and nothing else, as if it had been refused.
    finished.reset();
    status = turn_->status();
    absl::MutexLock lock(&mu_);
    if (handle_) NoteRejection(context_, status);
  }
  if (!spec_.request_id().empty()) context_->registry.Remove({session_id_, spec_.request_id()}, this);
  std::vector<std::function<void()>> on_end;
  {
    absl::MutexLock lock(&mu_);
    begun_ = turn_ == nullptr || turn_->begun();
    ended_ = true;
    finished_ = std::move(finished);
    end_status_ = std::move(status);
    on_end.swap(on_end_);
  }
  for (const auto& done : on_end) done();
  Notify();
}

}  // namespace smt
