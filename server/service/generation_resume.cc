#include "server/service/generation_resume.h"

#include <algorithm>
#include <utility>

#include "absl/synchronization/notification.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/service/generation_parts.h"
#include "server/service/generation_run.h"
#include "server/service/names.h"
#include "server/service/proto_time.h"
#include "server/service/validators.h"

namespace smt {
namespace {

// A running generation stops within a step; a server that takes longer is in trouble.
constexpr absl::Duration kTakeOver = absl::Seconds(10);

absl::Status TakeOver(ServiceContext* context, const GenerationRegistry::Key& key, absl::Time deadline) {
  const std::shared_ptr<GenerationRun> run = context->registry.Find(key);
  if (run == nullptr) return absl::OkStatus();
  const auto ended = std::make_shared<absl::Notification>();
  run->Park([ended] { ended->Notify(); });
  if (ended->WaitForNotificationWithDeadline(std::min(deadline, absl::Now() + kTakeOver))) return absl::OkStatus();
  return WithDetails(absl::AbortedError(StrCat("request '", key.second, "' on session '", key.first,
                                               "' is still running and does not stop")),
                     {.reason = "REQUEST_RUNNING", .retry_delay = absl::Seconds(1)});
}

absl::StatusOr<std::shared_ptr<GenerationEvents>> Resume(ServiceContext* context,
                                                         const v1::ResumeGenerateRequest& request, absl::Time arrival,
                                                         absl::Time deadline, const std::function<bool()>& abandoned) {
  RETURN_IF_ERROR(CheckServing(*context));
  Violations violations;
  ValidateResume(request, &violations);
  RETURN_IF_ERROR(violations.ToStatus());
  if (abandoned()) return absl::CancelledError("the client went away before its stream went on");
  const std::string id = *ParseSessionName(request.session());
  RETURN_IF_ERROR(TakeOver(context, {id, request.request_id()}, deadline));

  ASSIGN_OR_RETURN(ResumeTurnResult resumed, context->sessions->ResumeTurn(id, request.request_id(), deadline));
  const RequestRecord& record = resumed.record;
  GenerationRun::Start start{.spec = {}, .arrival = arrival};
  v1::GenerationSpec& spec = start.spec;
  if (!spec.ParseFromString(record.params)) {
    return absl::DataLossError(StrCat("the stored parameters of request '", record.request_id, "' cannot be read"));
  }
  StreamPoint after = {request.after_position(), request.after_digest()};
  if (resumed.turn == nullptr) {
    // A replay of the whole request says which branch it is of; what goes on with positions must not mix two.
    RETURN_IF_ERROR(CheckOnBranch(context, id, record));
    return ReplayGeneration(context, spec, id, record, std::move(after));
  }

  const int64_t first = record.start_position + record.prompt_tokens + 1, end = resumed.turn->session().position;
  const int64_t m = context->engine->info().input_tokens, oldest = std::max<int64_t>(1, first - m);
  EngineRequest engine;
  EarlierPart& earlier = start.resumed.emplace();
  if (oldest <= end) {
    ASSIGN_OR_RETURN(std::vector<int32_t> ids, context->sessions->ReadLog(id, oldest, end));
    engine.recent.assign(ids.begin(), ids.begin() + (first - oldest));
    earlier.ids.assign(ids.begin() + (first - oldest), ids.end());
  }
  earlier.start_position = record.start_position;
  earlier.prompt_tokens = record.prompt_tokens;
  earlier.after = std::move(after);
  start.stop_tokens = StopTokens(*context, spec);
  start.max_tokens = MaxTokens(*context, spec);
  start.seed = record.seed;
  const auto done = static_cast<int64_t>(earlier.ids.size());
  engine.session_key = resumed.turn->session().key;
  engine.head = end;
  engine.generated = earlier.ids;
  engine.sampling = MakeSampling(spec, start.stop_tokens, record.seed);
  engine.max_tokens = std::max<int64_t>(start.max_tokens - done, 0);
  engine.stop_tokens = start.stop_tokens;
  engine.stop_strings = {spec.stopping().stop_strings().begin(), spec.stopping().stop_strings().end()};
  if (spec.on_disconnect() != v1::DISCONNECT_POLICY_CONTINUE) engine.deadline = deadline;
  if (spec.has_max_duration()) {
    // What the client has is generated again all the same: it was within the time.
    const absl::Duration passed = std::max(absl::Now() - record.create_time, absl::ZeroDuration());
    engine.max_duration = std::max(*FromProto(spec.max_duration()) - passed, absl::ZeroDuration());
    engine.max_duration_from = request.after_position();
  }
  engine.priority = spec.priority();
  spec.mutable_output()->clear_echo();
  spec.mutable_output()->clear_prompt_logprobs();
  start.turn = std::move(resumed.turn);

  auto run = std::make_shared<GenerationRun>(context, std::move(start));
  if (absl::Status status = run->resume_status(); !status.ok()) {
    absl::Notification ended;  // the session is free again when the client hears of it
    run->Park([&ended] { ended.Notify(); });
    run->Abandon(status).IgnoreError();
    ended.WaitForNotification();
    return status;
  }
  context->metrics->Add(Metric::kStreamsResumedTotal, 1);
  context->metrics->Add(Metric::kTokensReplayedTotal,
                        static_cast<double>(std::max<int64_t>(end - std::max(request.after_position(), first - 1), 0)));
  if (const std::optional<FinishInfo> info = run->EndOfResumed()) {
    run->OnFinished(*info);
    return run;
  }
  return SubmitRun(context, std::move(run), std::move(engine));
}

}  // namespace

absl::StatusOr<std::shared_ptr<GenerationEvents>> ResumeGeneration(ServiceContext* context,
                                                                   const v1::ResumeGenerateRequest& request,
                                                                   absl::Time arrival, absl::Time deadline,
                                                                   const std::function<bool()>& abandoned) {
  absl::StatusOr<std::shared_ptr<GenerationEvents>> resumed = Resume(context, request, arrival, deadline, abandoned);
  if (!resumed.ok()) NoteRejection(context, resumed.status());
  return resumed;
}

}  // namespace smt
