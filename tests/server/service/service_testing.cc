#include "tests/server/service/service_testing.h"

#include <utility>

#include "model/base/strings.h"

namespace smt {
ByteCodec::ByteCodec() {
  for (int i = 0; i < 256; ++i) token_bytes_.emplace_back(1, static_cast<char>(i));
  token_bytes_.emplace_back("<eos>");
  token_bytes_.emplace_back("<bos>");
  token_bytes_.emplace_back(" world.");
  token_bytes_.resize(kFakeVocab);
}

std::vector<int32_t> ByteCodec::Encode(std::string_view bytes, bool parse_special) const {
  std::vector<int32_t> ids;
  while (!bytes.empty()) {
    if (parse_special && bytes.starts_with("<eos>")) {
      ids.push_back(kEos);
      bytes.remove_prefix(5);
    } else {
      ids.push_back(static_cast<uint8_t>(bytes[0]));
      bytes.remove_prefix(1);
    }
  }
  return ids;
}

ErrorDetails DetailsOf(const grpc::Status& status) {
  ErrorDetails details;
  google::rpc::Status packed;
  EXPECT_TRUE(packed.ParseFromString(status.error_details()));
  EXPECT_EQ(packed.code(), static_cast<int>(status.error_code()));
  EXPECT_LE(status.error_details().size(), 4096u);
  for (const auto& any : packed.details()) {
    any.UnpackTo(&details.info);
    any.UnpackTo(&details.bad_request);
    any.UnpackTo(&details.resource);
    any.UnpackTo(&details.precondition);
    details.has_retry |= any.UnpackTo(&details.retry);
  }
  for (const auto& violation : details.bad_request.field_violations()) details.fields.push_back(violation.field());
  EXPECT_EQ(details.info.domain(), "smt.serve");
  EXPECT_NE(details.info.reason(), "");
  return details;
}

ServiceTest::ServiceTest() {
  context_.limits.max_prompt_bytes = 1 << 16;
  context_.limits.max_prompt_tokens = 1 << 15;
  context_.limits.max_tokens = 100'000;
  context_.limits.vocab_size = kFakeVocab;
  context_.eos = kEos;
}

ServiceTest::~ServiceTest() { StopServer(); }

void ServiceTest::StopServer() {
  // Clients first: a test that fails midway may leave calls.
  generation_.reset();
  sessions_.reset();
  models_.reset();
  channel_.reset();
  if (engine_) engine_->Drain();
  server_.reset();
  if (pool_) pool_->Shutdown();
  if (waiters_) waiters_->Shutdown();
  session_manager_.reset();
  engine_.reset();
}

void ServiceTest::StartServer() {
  pool_ = std::make_unique<ThreadPool>("worker", 4, 1024);
  waiters_ = std::make_unique<ThreadPool>("waiter", 4, 1024);
  std::unique_ptr<SessionStore> store = std::move(other_store_);
  store_ = nullptr;
  if (store == nullptr) {
    auto memory = std::make_unique<MemoryStore>();
    store_ = memory.get();
    store = std::move(memory);
  }
  SessionManager::Options session_options;
  session_options.model_fingerprint = "model-1";
  session_options.numerics_id = "fake";
  session_options.state_bytes = static_cast<int64_t>(StateLayout(FakeConfig()).bytes());
  session_options.input_tokens = 8;
  session_options.sweep_interval = absl::InfiniteDuration();
  session_options.on_removed = [this](std::string_view key) {
    if (engine_) engine_->Discard(key);
  };
  session_manager_ = *SessionManager::Open(session_options, std::move(store));
  engine_options_.token_bytes = &codec_.token_bytes();
  engine_options_.on_evicted = [this](const std::string& key, int64_t position,
                                      std::shared_ptr<const StateBuffer> state) {
    session_manager_->SaveEvicted(key, position, std::move(state));
  };
  engine_options_.before_sinks = [this] { session_manager_->HoldAppends(); };
  engine_options_.after_sinks = [this] { session_manager_->ReleaseAppends(); };
  engine_metrics_ = NewEngineMetrics(&metrics_);
  engine_ =
      std::make_unique<Engine>(engine_options_, std::make_unique<FakeExecutor>(model_, slots_), engine_metrics_.get());
  context_.engine = engine_.get();
  context_.sessions = session_manager_.get();
  context_.codec = &codec_;
  context_.metrics = &metrics_;
  context_.pool = pool_.get();
  context_.waiters = waiters_.get();
  context_.max_queue = engine_options_.max_queue;
  context_.model.set_name("models/fake");
  context_.model.set_fingerprint("model-1");
  context_.config = FakeConfig();
  auto server = GrpcServer::Start({.address = "127.0.0.1:0"}, &context_);
  ASSERT_OK(server);
  server_ = *std::move(server);
  server_->SetReady(true);
  channel_ = grpc::CreateChannel(StrCat("127.0.0.1:", server_->port()), grpc::InsecureChannelCredentials());
  generation_ = v1::GenerationService::NewStub(channel_);
  sessions_ = v1::SessionService::NewStub(channel_);
  models_ = v1::ModelService::NewStub(channel_);
}

v1::GenerationService::Stub& ServiceTest::generation() {
  if (!server_) StartServer();
  return *generation_;
}
v1::SessionService::Stub& ServiceTest::sessions() {
  if (!server_) StartServer();
  return *sessions_;
}
v1::ModelService::Stub& ServiceTest::models() {
  if (!server_) StartServer();
  return *models_;
}
std::shared_ptr<grpc::Channel> ServiceTest::channel() {
  if (!server_) StartServer();
  return channel_;
}

v1::GenerationSpec ServiceTest::Spec(const std::string& text, int64_t max_tokens) {
  v1::GenerationSpec spec;
  spec.set_text(text);
  spec.mutable_stopping()->set_max_tokens(max_tokens);
  return spec;
}

namespace {

template <typename Response, typename Reader>
Streamed ReadAll(Reader& reader, grpc::ClientContext& context,
                 const std::function<bool(const v1::GenerationEvent&)>& on_event) {
  Streamed out;
  Response response;
  while (reader.Read(&response)) {
    const v1::GenerationEvent& event = response.event();
    out.events.push_back(event);
    if (event.has_started()) out.started = event.started();
    if (event.has_finished()) out.finished = event.finished();
    if (event.has_chunk()) {
      (event.chunk().echo() ? out.echo : out.text) += event.chunk().text();
      if (!event.chunk().echo()) {
        ++out.chunks;
        out.ids.insert(out.ids.end(), event.chunk().token_ids().begin(), event.chunk().token_ids().end());
      }
    }
    if (on_event && !on_event(event)) context.TryCancel();
  }
  out.status = reader.Finish();
  return out;
}

}  // namespace

Streamed ServiceTest::Stream(const v1::GenerationSpec& spec, std::function<bool(const v1::GenerationEvent&)> on_event) {
  v1::StreamGenerateRequest request;
  *request.mutable_spec() = spec;
  grpc::ClientContext context;
  return ReadAll<v1::StreamGenerateResponse>(*generation().StreamGenerate(&context, request), context, on_event);
}

Streamed ServiceTest::Resume(const std::string& request_id, int64_t after_position, const std::string& after_digest,
                             std::function<bool(const v1::GenerationEvent&)> on_event) {
  v1::ResumeGenerateRequest request;
  request.set_session("sessions/s");
  request.set_request_id(request_id);
  request.set_after_position(after_position);
  request.set_after_digest(after_digest);
  grpc::ClientContext context;
  return ReadAll<v1::ResumeGenerateResponse>(*generation().ResumeGenerate(&context, request), context, on_event);
}

v1::Session ServiceTest::CreateSession(const std::string& id) {
  v1::CreateSessionRequest request;
  request.set_session_id(id);
  grpc::ClientContext context;
  v1::CreateSessionResponse response;
  const grpc::Status status = sessions().CreateSession(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.session();
}

v1::Session ServiceTest::GetSession(const std::string& id) {
  v1::GetSessionRequest request;
  request.set_name("sessions/" + id);
  grpc::ClientContext context;
  v1::GetSessionResponse response;
  const grpc::Status status = sessions().GetSession(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.session();
}

bool ServiceTest::Eventually(const std::function<bool()>& condition) {
  for (const absl::Time deadline = absl::Now() + absl::Seconds(10); absl::Now() < deadline;
       absl::SleepFor(absl::Milliseconds(2))) {
    if (condition()) return true;
  }
  return false;
}

std::string ServiceTest::Expected(int64_t position, int64_t count) const {
  std::string out;
  for (int64_t i = 0; i < count; ++i) {
    out += codec_.token_bytes()[model_->script[(position + i) % model_->script.size()]];
  }
  return out;
}

}  // namespace smt
