#include "server/service/score_run.h"

#include <cmath>
#include <utility>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/service/generation_events.h"
#include "server/service/generation_start.h"
#include "server/service/names.h"
#include "server/service/validators.h"

namespace smt {
namespace {

constexpr size_t kMessageBytes = size_t{1} << 19;  // half of the promised limit: entries are added whole

class ScoreRun final : public GenerationSink, public ScoreEvents {
 public:
  ScoreRun(ServiceContext* context, std::vector<int32_t> ids, int64_t head)
      : context_(context), ids_(std::move(ids)), head_(head) {}

  void SetHandle(RequestHandle handle) {
    bool cancel;
    {
      absl::MutexLock lock(&mu_);
      handle_ = handle;
      cancel = disconnected_;
    }
    if (cancel) context_->engine->Cancel(handle);
  }

  void OnPromptLogprobs(int64_t first_position, std::vector<TokenLogprobs> logprobs) override {
    {
      absl::MutexLock lock(&mu_);
      // From empty the first id has nothing before it: it is listed without a log-probability.
      if (!listed_any_ && first_position > head_ + 1) {
        for (int64_t p = head_ + 1; p < first_position; ++p) AppendEntry(p, nullptr);
      }
      listed_any_ = true;
      for (size_t i = 0; i < logprobs.size(); ++i) {
        AppendEntry(first_position + static_cast<int64_t>(i), &logprobs[i]);
        total_ += logprobs[i].logprob;
        ++scored_;
      }
    }
    Notify();
  }
  void OnTokens(std::span<const TokenOutput>) override {}
  void OnFinished(const FinishInfo& info) override {
    const bool complete = info.reason == FinishReason::kMaxTokens;
    {
      absl::MutexLock lock(&mu_);
      ended_ = true;
      if (complete) {
        if (!listed_any_) {
          for (size_t i = 0; i < ids_.size(); ++i) AppendEntry(head_ + 1 + static_cast<int64_t>(i), nullptr);
        }
        v1::ScoreSummary* summary = messages_.emplace_back().mutable_summary();
        summary->set_scored_tokens(scored_);
        summary->set_total_logprob(total_);
        summary->set_perplexity(scored_ == 0 ? 1.0 : std::exp(-total_ / static_cast<double>(scored_)));
        summary->set_position(head_);
      } else if (info.reason == FinishReason::kDraining) {
        end_status_ = WithDetails(absl::UnavailableError("the server is going down"),
                                  {.reason = "DRAINING", .retry_delay = absl::Seconds(1)});
      } else if (info.reason == FinishReason::kDeadlineExceeded) {
        end_status_ = absl::DeadlineExceededError("the call's deadline passed before the text was scored");
      } else if (info.reason == FinishReason::kCancelled) {
        end_status_ = absl::CancelledError("the client went away");
      } else {
        end_status_ = info.status.ok() ? absl::InternalError("the engine gave no reason") : info.status;
      }
    }
    Notify();
  }

  void SetNotify(std::function<void()> notify) override {
    {
      absl::MutexLock lock(&mu_);
      notify_ = notify;
    }
    notify();
  }
  TakeResult Take(v1::ScoreResponse* message) override {
    absl::MutexLock lock(&mu_);
    if (messages_.empty()) return ended_ ? TakeResult::kEnd : TakeResult::kNothing;
    *message = std::move(messages_.front());
    messages_.pop_front();
    return TakeResult::kMessage;
  }
  absl::Status end_status() const override {
    absl::MutexLock lock(&mu_);
    return end_status_;
  }
  void OnDisconnect() override {
    std::optional<RequestHandle> handle;
    {
      absl::MutexLock lock(&mu_);
      disconnected_ = true;
      notify_ = nullptr;
      handle = handle_;
    }
    if (handle) context_->engine->Cancel(*handle);
  }

 private:
  void AppendEntry(int64_t position, const TokenLogprobs* logprobs) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (disconnected_) return;
    if (messages_.empty() || message_bytes_ >= kMessageBytes) {
      messages_.emplace_back().mutable_scores()->set_first_position(position);
      message_bytes_ = 0;
    }
    v1::TokenLogprob entry = ToProto(*context_->codec, ids_[position - head_ - 1], logprobs);
    message_bytes_ += entry.ByteSizeLong() + 8;
    messages_.back().mutable_scores()->mutable_logprobs()->Add(std::move(entry));
  }
  void Notify() {
    std::function<void()> notify;
    {
      absl::MutexLock lock(&mu_);
      notify = notify_;
    }
    if (notify) notify();
  }

  ServiceContext* const context_;
  const std::vector<int32_t> ids_;
  const int64_t head_;
  mutable absl::Mutex mu_;
  std::function<void()> notify_ ABSL_GUARDED_BY(mu_);
  std::optional<RequestHandle> handle_ ABSL_GUARDED_BY(mu_);
  std::deque<v1::ScoreResponse> messages_ ABSL_GUARDED_BY(mu_);
  size_t message_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // of the last message
  bool listed_any_ ABSL_GUARDED_BY(mu_) = false;
  bool disconnected_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(mu_);
  int64_t scored_ ABSL_GUARDED_BY(mu_) = 0;
  double total_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace

absl::StatusOr<std::shared_ptr<ScoreEvents>> StartScore(ServiceContext* context, const v1::ScoreRequest& request,
                                                        absl::Time deadline) {
  RETURN_IF_ERROR(CheckServing(*context));
  Violations violations;
  ValidateScore(request, context->limits, &violations);
  RETURN_IF_ERROR(violations.ToStatus());

  SessionInfo session;
  EngineRequest engine_request;
  if (!request.session().empty()) {
    ASSIGN_OR_RETURN(RestoredState state, context->sessions->ReadState(*ParseSessionName(request.session()), &session));
    if (request.has_expected_position() && request.expected_position() != session.position) {
      return WithDetails(absl::AbortedError(StrCat("session '", session.id, "' stands at position ", session.position,
                                                   ", not at expected_position ", request.expected_position())),
                         {.reason = "POSITION_MISMATCH", .metadata = {{"position", StrCat(session.position)}}});
    }
    if (session.position > 0) {
      engine_request.restore = [state = std::move(state)]() -> absl::StatusOr<RestoredState> { return state; };
    }
  }
  engine_request.head = session.position;
  ASSIGN_OR_RETURN(engine_request.prompt, EncodeInput(*context, request, session.position == 0));
  const auto count = static_cast<int64_t>(engine_request.prompt.size());
  if (count == 0) violations.Add("input", "has no tokens; at least one is needed");
  if (count * (1 + request.top_logprobs()) > context->limits.max_score_entries) {
    violations.Add("input",
                   StrCat("is ", count, " tokens long; with top_logprobs ", request.top_logprobs(),
                          " allowed are at most ", context->limits.max_score_entries / (1 + request.top_logprobs())));
  }
  RETURN_IF_ERROR(violations.ToStatus());
  engine_request.sampling = std::make_shared<SamplingParams>();
  engine_request.max_tokens = 0;
  engine_request.prompt_logprobs = request.top_logprobs();
  engine_request.score_first = session.position > 0;
  engine_request.deadline = deadline;
  engine_request.priority = request.priority();
  auto run = std::make_shared<ScoreRun>(context, engine_request.prompt, session.position);
  engine_request.sink = run;
  ASSIGN_OR_RETURN(const RequestHandle handle, context->engine->Submit(std::move(engine_request)));
  run->SetHandle(handle);
  return run;
}

}  // namespace smt
