#include "server/service/generation_service.h"

#include <utility>

#include "model/base/strings.h"
#include "server/service/generation_resume.h"
#include "server/service/generation_run.h"
#include "server/service/generation_start.h"
#include "server/service/names.h"
#include "server/service/proto_time.h"
#include "server/service/score_run.h"
#include "server/service/utf8.h"
#include "server/service/validators.h"

namespace smt {
namespace {

constexpr char kService[] = "smt.v1.GenerationService";

// Gathers a generation's events into the one response of Generate.
class Gatherer : public std::enable_shared_from_this<Gatherer> {
 public:
  Gatherer(std::shared_ptr<UnaryCall> call, std::shared_ptr<GenerationEvents> source)
      : call_(std::move(call)), source_(std::move(source)) {}

  void Run() {
    call_->SetCancelHook([self = shared_from_this()] { self->Disconnect(); });
    source_->SetNotify([weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->Pump();
    });
  }

 private:
  void Disconnect() {
    source_->OnDisconnect();
    Answer(absl::CancelledError("the client went away"));
  }

  void Pump() {
    absl::Status status;
    {
      absl::MutexLock lock(&mu_);
      if (answered_) return;
      v1::GenerationEvent event;
      TakeResult taken;
      while ((taken = source_->Take(&event)) == TakeResult::kMessage) {
        Gather(std::move(event));
        source_->OnWritten();
        event.Clear();
      }
      if (taken == TakeResult::kNothing) return;
      status = source_->end_status();
    }
    Answer(status);
  }

  void Answer(const absl::Status& status) {
    {
      absl::MutexLock lock(&mu_);
      if (answered_) return;
      answered_ = true;
    }
    call_->Reply(status, status.ok() ? Encode(response_) : grpc::ByteBuffer());
  }

  void Gather(v1::GenerationEvent event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    switch (event.event_case()) {
      case v1::GenerationEvent::kStarted:
        *response_.mutable_started() = std::move(*event.mutable_started());
        break;
      case v1::GenerationEvent::kChunk:
        response_.mutable_token_ids()->MergeFrom(event.chunk().token_ids());
        response_.mutable_text()->append(event.chunk().text());
        response_.mutable_logprobs()->MergeFrom(event.chunk().logprobs());
        break;
      case v1::GenerationEvent::kPromptLogprobs:
        response_.mutable_prompt_logprobs()->MergeFrom(event.prompt_logprobs().logprobs());
        break;
      case v1::GenerationEvent::kFinished:
        *response_.mutable_finished() = std::move(*event.mutable_finished());
        break;
      default:
        break;
    }
  }

  const std::shared_ptr<UnaryCall> call_;
  const std::shared_ptr<GenerationEvents> source_;
  absl::Mutex mu_;
  bool answered_ ABSL_GUARDED_BY(mu_) = false;
  v1::GenerateResponse response_;  // guarded by mu_ until answered
};

v1::GenerationState ToProto(RequestState state) {
  switch (state) {
    case RequestState::kOperation:  // no generation: not found under its id
      break;
    case RequestState::kRunning:
      return v1::GENERATION_STATE_RUNNING;
    case RequestState::kFinished:
      return v1::GENERATION_STATE_FINISHED;
    case RequestState::kCancelled:
      return v1::GENERATION_STATE_CANCELLED;
    case RequestState::kInterrupted:
      return v1::GENERATION_STATE_PARKED;
    case RequestState::kFailed:
      return v1::GENERATION_STATE_FAILED;
  }
  return v1::GENERATION_STATE_UNSPECIFIED;
}

absl::Status DescribeGeneration(ServiceContext* context, const std::string& session, const std::string& request_id,
                                v1::Generation* out) {
  const std::string id = *ParseSessionName(session);
  const absl::StatusOr<RequestRecord> record = context->sessions->GetRequest(id, request_id);
  if (!record.ok()) return record.status();
  out->set_session(session);
  out->set_request_id(request_id);
  out->set_state(ToProto(record->state));
  out->set_branch(record->branch);
  out->set_start_position(record->start_position);
  out->set_prompt_tokens(record->prompt_tokens);
  out->set_position(record->end_position);
  out->set_seed(static_cast<int64_t>(record->seed));
  *out->mutable_create_time() = smt::ToProto(record->create_time);
  if (record->state == RequestState::kRunning) {
    if (const auto run = context->registry.Find({id, request_id})) out->set_position(run->log_position());
  } else {
    *out->mutable_end_time() = smt::ToProto(record->end_time);
    v1::GenerationFinished finished;
    if (!record->outcome.empty() && finished.ParseFromString(record->outcome)) {
      finished.set_durable_position(record->end_position);
      *out->mutable_finished() = std::move(finished);
    }
  }
  return absl::OkStatus();
}

// A stream of the events that `start` opens, off gRPC's threads. `schedule` gives false when no thread is free.
template <typename Request, typename Response, typename Schedule, typename Start>
GenerationServiceImpl::Stream* StreamEvents(ServiceContext* context, const grpc::CallbackServerContext& call,
                                            const grpc::ByteBuffer& bytes, const char* method, Schedule schedule,
                                            Start start) {
  auto stream = StreamCall<v1::GenerationEvent>::Make(RpcRecord(context->metrics, kService, method),
                                                      [](v1::GenerationEvent event) {
                                                        Response response;
                                                        *response.mutable_event() = std::move(event);
                                                        return Encode(response);
                                                      });
  auto request = std::make_shared<Request>();
  if (absl::Status status = Decode(bytes, request.get()); !status.ok()) {
    stream->Fail(status);
    return stream.get();
  }
  const bool scheduled = schedule(*request, [context, stream, request, start, deadline = DeadlineOf(call)] {
    auto source =
        start(context, *request, stream->record().arrival(), deadline, [&stream] { return stream->cancelled(); });
    if (source.ok()) {
      stream->Attach(*std::move(source));
    } else {
      stream->Fail(source.status());
    }
  });
  if (!scheduled) stream->Fail(PoolFull());
  return stream.get();
}

}  // namespace

bool GenerationServiceImpl::ScheduleStart(const v1::GenerationSpec& spec, std::function<void()> start) {
  return (spec.wait_for_session() ? context_->waiters : context_->pool)->TrySchedule(std::move(start));
}

GenerationServiceImpl::Stream* GenerationServiceImpl::StreamGenerate(Call* call, const Bytes* bytes) {
  using Request = v1::StreamGenerateRequest;
  return StreamEvents<Request, v1::StreamGenerateResponse>(
      context_, *call, *bytes, "StreamGenerate",
      [this](const Request& request, std::function<void()> start) {
        return ScheduleStart(request.spec(), std::move(start));
      },
      [](ServiceContext* context, const Request& request, absl::Time arrival, absl::Time deadline,
         const std::function<bool()>& abandoned) {
        return StartGeneration(context, request.spec(), arrival, deadline, abandoned);
      });
}

GenerationServiceImpl::Unary* GenerationServiceImpl::Generate(Call* call, const Bytes* bytes, Bytes* response) {
  auto unary = UnaryCall::Make(RpcRecord(context_->metrics, kService, "Generate"), response);
  auto request = std::make_shared<v1::GenerateRequest>();
  if (absl::Status status = Decode(*bytes, request.get()); !status.ok()) {
    unary->Reply(status);
    return unary.get();
  }
  const bool scheduled =
      ScheduleStart(request->spec(), [context = context_, unary, request, deadline = DeadlineOf(*call)] {
        auto source = StartGeneration(context, request->spec(), unary->record().arrival(), deadline,
                                      [&unary] { return unary->cancelled(); });
        if (source.ok()) {
          std::make_shared<Gatherer>(unary, *std::move(source))->Run();
        } else {
          unary->Reply(source.status());
        }
      });
  if (!scheduled) unary->Reply(PoolFull());
  return unary.get();
}

GenerationServiceImpl::Stream* GenerationServiceImpl::ResumeGenerate(Call* call, const Bytes* bytes) {
  using Request = v1::ResumeGenerateRequest;
  return StreamEvents<Request, v1::ResumeGenerateResponse>(
      context_, *call, *bytes, "ResumeGenerate",
      // It may wait for a running generation to stop.
      [this](const Request&, std::function<void()> start) { return context_->waiters->TrySchedule(std::move(start)); },
      ResumeGeneration);
}

GenerationServiceImpl::Unary* GenerationServiceImpl::GetGeneration(Call*, const Bytes* request, Bytes* response) {
  return RunUnary<v1::GetGenerationRequest, v1::GetGenerationResponse>(
      context_, request, response, kService, "GetGeneration",
      [context = context_](const auto& get, v1::GetGenerationResponse* out) -> absl::Status {
        Violations violations;
        ValidateRequestKey(get.session(), get.request_id(), &violations);
        if (!violations.empty()) return violations.ToStatus();
        return DescribeGeneration(context, get.session(), get.request_id(), out->mutable_generation());
      });
}

GenerationServiceImpl::Unary* GenerationServiceImpl::CancelGeneration(Call* call, const Bytes* bytes, Bytes* response) {
  auto unary = UnaryCall::Make(RpcRecord(context_->metrics, kService, "CancelGeneration"), response);
  const auto start = [context = context_, unary, bytes = *bytes, deadline = DeadlineOf(*call)] {
    auto request = std::make_shared<v1::CancelGenerationRequest>();
    if (absl::Status status = Decode(bytes, request.get()); !status.ok()) return unary->Reply(status);
    Violations violations;
    ValidateRequestKey(request->session(), request->request_id(), &violations);
    if (!violations.empty()) return unary->Reply(violations.ToStatus());
    const auto answer = [context, unary, request] {
      v1::CancelGenerationResponse out;
      const absl::Status status =
          DescribeGeneration(context, request->session(), request->request_id(), out.mutable_generation());
      unary->Reply(status, status.ok() ? Encode(out) : grpc::ByteBuffer());
    };
    const std::string session = *ParseSessionName(request->session());
    const auto run = context->registry.Find({session, request->request_id()});
    if (run == nullptr) {  // it has ended, or another server runs it
      const auto ask = [context, unary, request, session, answer, deadline] {
        const absl::Status asked = context->sessions->CancelElsewhere(session, request->request_id(), deadline);
        asked.ok() ? answer() : unary->Reply(asked);
      };
      if (!context->waiters->TrySchedule(ask)) unary->Reply(PoolFull());
      return;
    }
    // The end comes on the session manager's telling thread, where nothing may wait for the manager.
    run->Cancel([context, unary, answer] {
      if (!context->pool->TrySchedule(answer)) unary->Reply(PoolFull());
    });
  };
  if (!context_->pool->TrySchedule(start)) unary->Reply(PoolFull());
  return unary.get();
}

GenerationServiceImpl::Stream* GenerationServiceImpl::Score(Call* call, const Bytes* bytes) {
  auto stream = StreamCall<v1::ScoreResponse>::Make(RpcRecord(context_->metrics, kService, "Score"),
                                                    [](const v1::ScoreResponse& message) { return Encode(message); });
  const bool scheduled =
      context_->pool->TrySchedule([context = context_, stream, bytes = *bytes, deadline = DeadlineOf(*call)] {
        v1::ScoreRequest request;
        if (absl::Status status = Decode(bytes, &request); !status.ok()) return stream->Fail(status);
        auto source = StartScore(context, request, deadline);
        if (!source.ok()) return stream->Fail(source.status());
        stream->Attach(*std::move(source));
      });
  if (!scheduled) stream->Fail(PoolFull());
  return stream.get();
}

GenerationServiceImpl::Unary* GenerationServiceImpl::Tokenize(Call*, const Bytes* request, Bytes* response) {
  return RunUnary<v1::TokenizeRequest, v1::TokenizeResponse>(
      context_, request, response, kService, "Tokenize",
      [context = context_](const v1::TokenizeRequest& in, v1::TokenizeResponse* out) -> absl::Status {
        Violations violations;
        ValidateTokenize(in, context->limits, &violations);
        if (!violations.empty()) return violations.ToStatus();
        if (in.add_bos() && context->bos) out->add_token_ids(*context->bos);
        const std::string& bytes = in.input_case() == v1::TokenizeRequest::kText ? in.text() : in.text_bytes();
        const std::vector<int32_t> ids = context->codec->Encode(bytes, in.parse_special_tokens());
        out->mutable_token_ids()->Add(ids.begin(), ids.end());
        return absl::OkStatus();
      });
}

GenerationServiceImpl::Unary* GenerationServiceImpl::Detokenize(Call*, const Bytes* request, Bytes* response) {
  return RunUnary<v1::DetokenizeRequest, v1::DetokenizeResponse>(
      context_, request, response, kService, "Detokenize",
      [context = context_](const v1::DetokenizeRequest& in, v1::DetokenizeResponse* out) -> absl::Status {
        Violations violations;
        ValidateDetokenize(in, context->limits, &violations);
        if (!violations.empty()) return violations.ToStatus();
        const std::vector<std::string>& token_bytes = context->codec->token_bytes();
        for (const int32_t id : in.token_ids()) {
          if (in.skip_special_tokens() && context->codec->IsSpecial(id)) continue;
          if (static_cast<size_t>(id) < token_bytes.size()) out->mutable_text_bytes()->append(token_bytes[id]);
        }
        AppendSanitizedUtf8(out->text_bytes(), out->mutable_text());
        return absl::OkStatus();
      });
}

}  // namespace smt
