#include "client/client.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"

namespace smt::client {

Client::Client(Options options) : options_(std::move(options)) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  // A dead peer is noticed although nothing is being sent.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  // A server that restarts is back within a second or two.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1'000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  channel_ = grpc::CreateCustomChannel(options_.address, grpc::InsecureChannelCredentials(), arguments);
  generation_ = v1::GenerationService::NewStub(channel_);
  sessions_ = v1::SessionService::NewStub(channel_);
  models_ = v1::ModelService::NewStub(channel_);
}

void Client::SetDeadline(grpc::ClientContext* context, absl::Duration timeout) const {
  if (timeout < absl::InfiniteDuration()) {
    context->set_deadline(std::chrono::system_clock::now() + absl::ToChronoMicroseconds(timeout));
  }
}

template <typename Stub, typename Request, typename Response>
Error Client::Call(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                   const Request& request, Response* response) const {
  grpc::ClientContext context;
  SetDeadline(&context, options_.timeout);
  return FromGrpc((stub.*method)(&context, request, response));
}

namespace {

template <typename Response, typename Reader>
Error ReadEvents(Reader& reader, grpc::ClientContext* call,
                 const std::function<bool(const v1::GenerationEvent&)>& on_event) {
  Response response;
  while (reader.Read(&response)) {
    if (!on_event(response.event())) {
      call->TryCancel();
      break;
    }
  }
  return FromGrpc(reader.Finish());
}

}  // namespace

Error Client::StreamGenerate(const v1::GenerationSpec& spec,
                             const std::function<bool(const v1::GenerationEvent&)>& on_event,
                             grpc::ClientContext* context) {
  grpc::ClientContext own;
  grpc::ClientContext* call = context != nullptr ? context : &own;
  SetDeadline(call, options_.stream_timeout);
  v1::StreamGenerateRequest request;
  *request.mutable_spec() = spec;
  return ReadEvents<v1::StreamGenerateResponse>(*generation_->StreamGenerate(call, request), call, on_event);
}

Error Client::ResumeGenerate(const v1::ResumeGenerateRequest& request,
                             const std::function<bool(const v1::GenerationEvent&)>& on_event,
                             grpc::ClientContext* context) {
  grpc::ClientContext own;
  grpc::ClientContext* call = context != nullptr ? context : &own;
  SetDeadline(call, options_.stream_timeout);
  return ReadEvents<v1::ResumeGenerateResponse>(*generation_->ResumeGenerate(call, request), call, on_event);
}

void StreamStop::Stop() {
  absl::MutexLock lock(&mu_);
  stopped_ = true;
  if (call_ != nullptr) call_->TryCancel();
}

bool StreamStop::stopped() const {
  absl::MutexLock lock(&mu_);
  return stopped_;
}

void StreamStop::Watch(grpc::ClientContext* call) {
  absl::MutexLock lock(&mu_);
  call_ = call;
  if (stopped_ && call_ != nullptr) call_->TryCancel();
}

bool StreamStop::WaitFor(absl::Duration duration) const {
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithTimeout(absl::Condition(&stopped_), duration);
}

Error Client::StreamThroughRestarts(const v1::GenerationSpec& spec, absl::Duration patience,
                                    const std::function<bool(const v1::GenerationEvent&)>& on_event, StreamStop* stop) {
  StreamStop own_stop;
  if (stop == nullptr) stop = &own_stop;
  constexpr absl::Duration kFirstWait = absl::Milliseconds(100), kLongestWait = absl::Seconds(2);
  v1::ResumeGenerateRequest resume;
  resume.set_request_id(spec.request_id());
  bool known = false;                   // where to go on
  bool unsure = false;                  // whether an earlier attempt has begun it
  bool started = false, ended = false;  // as the caller knows it
  absl::Time give_up = absl::Now() + patience;
  absl::Duration wait = kFirstWait;
  const auto take = [&](const v1::GenerationEvent& event) {
    give_up = absl::Now() + patience;
    wait = kFirstWait;
    if (event.has_started()) {
      if (started) return true;  // the caller has seen it
      started = known = true;
      resume.set_session(event.started().session());
      resume.set_after_position(event.started().start_position() + event.started().prompt_tokens());
      resume.set_after_digest(event.started().digest());
    } else if (event.has_chunk() && !event.chunk().echo()) {
      resume.set_after_position(event.chunk().position());
      resume.set_after_digest(event.chunk().digest());
    }
    ended = !on_event(event);
    return !ended;
  };
  for (;;) {
    grpc::ClientContext call;
    stop->Watch(&call);
    const Error error = known ? ResumeGenerate(resume, take, &call) : StreamGenerate(spec, take, &call);
    stop->Watch(nullptr);
    const bool parked = error.reason == "REQUEST_PARKED", running = unsure && error.reason == "REQUEST_RUNNING";
    bool looked_up = true;
    if (!known && (parked || running)) {
      // It had begun, but the stream broke off before it could say so.
      v1::Generation begun;
      looked_up = GetGeneration(spec.session(), spec.request_id(), &begun).ok();
      if (looked_up) {
        known = true;
        resume.set_session(spec.session());
        resume.set_after_position(begun.start_position() + begun.prompt_tokens());
        continue;
      }
    }
    // CANCELLED: by a server that goes down. ABORTED: the server has not noticed yet that the stream broke off.
    // RESOURCE_EXHAUSTED of a stream that has begun: its store is full, and goes on when there is room.
    // INTERNAL without a reason, which our servers always give: what gRPC makes of a load balancer that breaks a stream
    // off (RST_STREAM) because its server did.
    const bool broke_off = error.code == grpc::StatusCode::UNAVAILABLE || error.code == grpc::StatusCode::CANCELLED ||
                           (error.code == grpc::StatusCode::INTERNAL && error.reason.empty()) || !looked_up;
    const bool again =
        broke_off ||
        (known && (error.code == grpc::StatusCode::ABORTED || error.code == grpc::StatusCode::RESOURCE_EXHAUSTED));
    unsure |= broke_off;
    if (error.reason == "TAKEN_OVER") return error;  // another client goes on with it
    if (!again || ended || spec.session().empty() || spec.request_id().empty()) return error;
    if (absl::Now() + wait > give_up || stop->WaitFor(wait)) return error;
    wait = std::min(2 * wait, kLongestWait);
    WaitForConnection(std::min(kLongestWait, give_up - absl::Now()));  // a call alone does not make gRPC connect again
  }
}

Error Client::Generate(const v1::GenerationSpec& spec, v1::GenerateResponse* response) {
  grpc::ClientContext context;
  SetDeadline(&context, options_.stream_timeout);
  v1::GenerateRequest request;
  *request.mutable_spec() = spec;
  return FromGrpc(generation_->Generate(&context, request, response));
}

Error Client::CancelGeneration(const std::string& session, const std::string& request_id, v1::Generation* generation) {
  v1::CancelGenerationRequest request;
  request.set_session(session);
  request.set_request_id(request_id);
  v1::CancelGenerationResponse response;
  const Error error = Call(*generation_, &v1::GenerationService::Stub::CancelGeneration, request, &response);
  if (error.ok() && generation != nullptr) *generation = std::move(*response.mutable_generation());
  return error;
}

Error Client::GetGeneration(const std::string& session, const std::string& request_id, v1::Generation* generation) {
  v1::GetGenerationRequest request;
  request.set_session(session);
  request.set_request_id(request_id);
  v1::GetGenerationResponse response;
  const Error error = Call(*generation_, &v1::GenerationService::Stub::GetGeneration, request, &response);
  if (error.ok()) *generation = std::move(*response.mutable_generation());
  return error;
}

Error Client::Score(const v1::ScoreRequest& request, std::vector<v1::TokenLogprob>* logprobs,
                    v1::ScoreSummary* summary) {
  grpc::ClientContext context;
  SetDeadline(&context, options_.stream_timeout);
  auto reader = generation_->Score(&context, request);
  v1::ScoreResponse response;
  while (reader->Read(&response)) {
    if (response.has_summary()) *summary = response.summary();
    for (auto& logprob : *response.mutable_scores()->mutable_logprobs()) logprobs->push_back(std::move(logprob));
  }
  return FromGrpc(reader->Finish());
}

Error Client::Tokenize(const v1::TokenizeRequest& request, std::vector<int32_t>* ids) {
  v1::TokenizeResponse response;
  const Error error = Call(*generation_, &v1::GenerationService::Stub::Tokenize, request, &response);
  ids->assign(response.token_ids().begin(), response.token_ids().end());
  return error;
}

Error Client::Detokenize(const std::vector<int32_t>& ids, v1::DetokenizeResponse* response) {
  v1::DetokenizeRequest request;
  request.mutable_token_ids()->Assign(ids.begin(), ids.end());
  return Call(*generation_, &v1::GenerationService::Stub::Detokenize, request, response);
}

Error Client::CreateSession(const v1::CreateSessionRequest& request, v1::Session* session) {
  v1::CreateSessionResponse response;
  const Error error = Call(*sessions_, &v1::SessionService::Stub::CreateSession, request, &response);
  if (error.ok()) *session = std::move(*response.mutable_session());
  return error;
}

Error Client::GetSession(const std::string& name, v1::Session* session) {
  v1::GetSessionRequest request;
  request.set_name(name);
  v1::GetSessionResponse response;
  const Error error = Call(*sessions_, &v1::SessionService::Stub::GetSession, request, &response);
  if (error.ok()) *session = std::move(*response.mutable_session());
  return error;
}

Error Client::ListSessions(int page_size, const std::string& page_token, std::vector<v1::Session>* sessions,
                           std::string* next_page_token) {
  v1::ListSessionsRequest request;
  request.set_page_size(page_size);
  request.set_page_token(page_token);
  v1::ListSessionsResponse response;
  const Error error = Call(*sessions_, &v1::SessionService::Stub::ListSessions, request, &response);
  for (auto& session : *response.mutable_sessions()) sessions->push_back(std::move(session));
  *next_page_token = response.next_page_token();
  return error;
}

Error Client::UpdateSession(const v1::UpdateSessionRequest& request, v1::Session* session) {
  v1::UpdateSessionResponse response;
  const Error error = Call(*sessions_, &v1::SessionService::Stub::UpdateSession, request, &response);
  if (error.ok()) *session = std::move(*response.mutable_session());
  return error;
}

Error Client::DeleteSession(const v1::DeleteSessionRequest& request) {
  v1::DeleteSessionResponse response;
  return Call(*sessions_, &v1::SessionService::Stub::DeleteSession, request, &response);
}

Error Client::ForkSession(const v1::ForkSessionRequest& request, v1::Session* session) {
  v1::ForkSessionResponse response;
  const Error error = Call(*sessions_, &v1::SessionService::Stub::ForkSession, request, &response);
  if (error.ok()) *session = std::move(*response.mutable_session());
  return error;
}

Error Client::RollbackSession(const v1::RollbackSessionRequest& request, v1::Session* session) {
  v1::RollbackSessionResponse response;
  const Error error = Call(*sessions_, &v1::SessionService::Stub::RollbackSession, request, &response);
  if (error.ok()) *session = std::move(*response.mutable_session());
  return error;
}

Error Client::CreateCheckpoint(const v1::CreateCheckpointRequest& request, v1::Checkpoint* checkpoint) {
  v1::CreateCheckpointResponse response;
  const Error error = Call(*sessions_, &v1::SessionService::Stub::CreateCheckpoint, request, &response);
  if (error.ok()) *checkpoint = std::move(*response.mutable_checkpoint());
  return error;
}

Error Client::ListCheckpoints(const std::string& session, int page_size, const std::string& page_token,
                              std::vector<v1::Checkpoint>* checkpoints, std::string* next_page_token) {
  v1::ListCheckpointsRequest request;
  request.set_parent(session);
  request.set_page_size(page_size);
  request.set_page_token(page_token);
  v1::ListCheckpointsResponse response;
  const Error error = Call(*sessions_, &v1::SessionService::Stub::ListCheckpoints, request, &response);
  for (auto& checkpoint : *response.mutable_checkpoints()) checkpoints->push_back(std::move(checkpoint));
  *next_page_token = response.next_page_token();
  return error;
}

Error Client::DeleteCheckpoint(const v1::DeleteCheckpointRequest& request) {
  v1::DeleteCheckpointResponse response;
  return Call(*sessions_, &v1::SessionService::Stub::DeleteCheckpoint, request, &response);
}

Error Client::GetModel(v1::Model* model) {
  v1::GetModelResponse response;
  const Error error = Call(*models_, &v1::ModelService::Stub::GetModel, v1::GetModelRequest(), &response);
  if (error.ok()) *model = std::move(*response.mutable_model());
  return error;
}

Error Client::Health(const std::string& service, bool* serving) {
  grpc::ClientContext context;
  SetDeadline(&context, options_.timeout);
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  grpc::health::v1::HealthCheckResponse response;
  const Error error = FromGrpc(grpc::health::v1::Health::NewStub(channel_)->Check(&context, request, &response));
  *serving = error.ok() && response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
  return error;
}

bool Client::WaitForConnection(absl::Duration timeout) {
  return channel_->WaitForConnected(std::chrono::system_clock::now() + absl::ToChronoMicroseconds(timeout));
}

std::string SessionName(const std::string& id_or_name) {
  return id_or_name.empty() || absl::StartsWith(id_or_name, "sessions/") ? id_or_name
                                                                         : absl::StrCat("sessions/", id_or_name);
}

std::string CheckpointName(const std::string& session, const std::string& id_or_name) {
  return id_or_name.empty() || absl::StartsWith(id_or_name, "sessions/")
             ? id_or_name
             : absl::StrCat(SessionName(session), "/checkpoints/", id_or_name);
}

}  // namespace smt::client
