// Sessions, models, health, reflection, what is not served yet, metrics.

#include <grpcpp/generic/generic_stub.h>

#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/server/service/service_testing.h"

namespace smt {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;
using testing::UnorderedElementsAre;

class SessionServiceTest : public ServiceTest {};

TEST_F(SessionServiceTest, ACreatedSessionIsReadBack) {
  v1::CreateSessionRequest request;
  request.set_session_id("a.b_c-1");
  request.mutable_session()->mutable_ttl()->set_seconds(3600);
  (*request.mutable_session()->mutable_labels())["team"] = "x";
  v1::CreateSessionResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(sessions().CreateSession(&context, request, &response).ok());
  const v1::Session session = GetSession("a.b_c-1");
  EXPECT_EQ(session.SerializeAsString(), response.session().SerializeAsString());
  EXPECT_EQ(session.name(), "sessions/a.b_c-1");
  EXPECT_EQ(session.position(), 0);
  EXPECT_EQ(session.ttl().seconds(), 3600);
  EXPECT_EQ(session.expire_time().seconds() - session.create_time().seconds(), 3600);
  EXPECT_THAT(session.labels(), UnorderedElementsAre(Pair("team", "x")));
  EXPECT_EQ(session.model_fingerprint(), "model-1");
  EXPECT_FALSE(session.active());
}

TEST_F(SessionServiceTest, ATakenNameAlreadyExistsUnlessItIsARetry) {
  v1::CreateSessionRequest request;
  request.set_session_id("a");
  request.set_request_id("r1");
  v1::CreateSessionResponse response;
  {
    grpc::ClientContext first;
    ASSERT_TRUE(sessions().CreateSession(&first, request, &response).ok());
  }
  request.set_request_id("r2");
  grpc::ClientContext context;
  const grpc::Status status = sessions().CreateSession(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(DetailsOf(status).resource.resource_name(), "sessions/a");
  request.set_request_id("r1");
  grpc::ClientContext again;
  EXPECT_TRUE(sessions().CreateSession(&again, request, &response).ok());
}

TEST_F(SessionServiceTest, SessionsAreListedInPagesByName) {
  for (const char* id : {"c", "a", "b"}) CreateSession(id);
  std::vector<std::string> names;
  v1::ListSessionsRequest request;
  request.set_page_size(2);
  v1::ListSessionsResponse response;
  do {
    grpc::ClientContext context;
    ASSERT_TRUE(sessions().ListSessions(&context, request, &response).ok());
    EXPECT_LE(response.sessions_size(), 2);
    for (const v1::Session& session : response.sessions()) names.push_back(session.name());
    request.set_page_token(response.next_page_token());
  } while (!response.next_page_token().empty());
  EXPECT_THAT(names, ElementsAre("sessions/a", "sessions/b", "sessions/c"));
  request.set_page_token("garbage!");
  grpc::ClientContext context;
  const grpc::Status refused = sessions().ListSessions(&context, request, &response);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.error_message(), HasSubstr("page_token: is \"garbage!\""));
}

TEST_F(SessionServiceTest, UpdateChangesWhatTheMaskNames) {
  CreateSession("a");
  v1::UpdateSessionRequest request;
  request.mutable_session()->set_name("sessions/a");
  request.mutable_session()->mutable_ttl()->set_seconds(60);
  (*request.mutable_session()->mutable_labels())["k"] = "v";
  request.mutable_update_mask()->add_paths("labels");
  v1::UpdateSessionResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(sessions().UpdateSession(&context, request, &response).ok());
  EXPECT_FALSE(response.session().has_ttl());
  EXPECT_THAT(response.session().labels(), UnorderedElementsAre(Pair("k", "v")));
  request.clear_update_mask();
  grpc::ClientContext unmasked;
  ASSERT_TRUE(sessions().UpdateSession(&unmasked, request, &response).ok());
  EXPECT_EQ(response.session().ttl().seconds(), 60);
  request.mutable_session()->set_etag("not the etag");
  grpc::ClientContext stale;
  EXPECT_EQ(sessions().UpdateSession(&stale, request, &response).error_code(), grpc::StatusCode::ABORTED);
}

TEST_F(SessionServiceTest, ADeletedSessionIsGoneAndItsNameStartsAnew) {
  CreateSession("a");
  v1::GenerationSpec spec = Spec("hello", 2);
  spec.set_session("sessions/a");
  Stream(spec);
  v1::DeleteSessionRequest request;
  request.set_name("sessions/a");
  v1::DeleteSessionResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(sessions().DeleteSession(&context, request, &response).ok());
  grpc::ClientContext again;
  EXPECT_EQ(sessions().DeleteSession(&again, request, &response).error_code(), grpc::StatusCode::NOT_FOUND);
  request.set_allow_missing(true);
  grpc::ClientContext lenient;
  EXPECT_TRUE(sessions().DeleteSession(&lenient, request, &response).ok());
  EXPECT_EQ(Stream(spec).status.error_code(), grpc::StatusCode::NOT_FOUND);
  CreateSession("a");
  EXPECT_EQ(Stream(spec).text, Expected(5, 2)) << "no state of the old one";
}

class ServerTest : public ServiceTest {};

TEST_F(ServerTest, ModelsAreDescribed) {
  v1::GetModelResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(models().GetModel(&context, {}, &response).ok());
  EXPECT_EQ(response.model().name(), "models/fake");
  v1::GetModelRequest other;
  other.set_name("models/gpt-7");
  grpc::ClientContext missing;
  const grpc::Status status = models().GetModel(&missing, other, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(DetailsOf(status).resource.resource_name(), "models/gpt-7");
  v1::ListModelsResponse list;
  grpc::ClientContext listing;
  ASSERT_TRUE(models().ListModels(&listing, {}, &list).ok());
  EXPECT_EQ(list.models_size(), 1);
}

TEST_F(ServerTest, HealthIsReadinessByServiceAndLiveness) {
  auto health = Health::NewStub(channel());
  const auto check = [&](const std::string& service) {
    HealthCheckRequest request;
    request.set_service(service);
    HealthCheckResponse response;
    grpc::ClientContext context;
    const grpc::Status status = health->Check(&context, request, &response);
    return status.ok() ? static_cast<int>(response.status()) : -static_cast<int>(status.error_code());
  };
  for (const bool ready : {true, false, true}) {
    server_->SetReady(ready);
    for (const char* service : {"", "smt.v1.GenerationService", "smt.v1.SessionService", "smt.v1.ModelService"}) {
      EXPECT_EQ(check(service), ready ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING) << service;
    }
    EXPECT_EQ(check("liveness"), HealthCheckResponse::SERVING);
  }
  EXPECT_EQ(check("nobody"), -static_cast<int>(grpc::StatusCode::NOT_FOUND));
}

TEST_F(ServerTest, WatchTellsEachChangeOfReadiness) {
  auto health = Health::NewStub(channel());
  grpc::ClientContext context;
  HealthCheckRequest request;
  auto watch = health->Watch(&context, request);
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  server_->SetReady(false);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  server_->SetReady(true);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  context.TryCancel();
}

// Reflection's own proto is not among Debian's headers: the request and its answer are spelled in bytes.
TEST_F(ServerTest, ReflectionListsTheServices) {
  grpc::GenericStub stub(channel());
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  auto call = stub.PrepareCall(&context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  void* tag;
  bool ok;
  call->StartCall(nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok) && ok);
  const std::string list_services = {0x3A, 0x01, '*'};  // field 7: list_services = "*"
  const grpc::Slice slice(list_services);
  call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok) && ok);
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok) && ok);
  grpc::Slice bytes;
  ASSERT_TRUE(answer.DumpToSingleSlice(&bytes).ok());
  const std::string text(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
  for (const char* service :
       {"smt.v1.GenerationService", "smt.v1.SessionService", "smt.v1.ModelService", "grpc.health.v1.Health"}) {
    EXPECT_THAT(text, HasSubstr(service));
  }
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok));
}

TEST_F(ServerTest, APortInUseIsRefused) {
  StartServer();
  ServiceContext other;
  const auto second = GrpcServer::Start({.address = "127.0.0.1:" + std::to_string(server_->port())}, &other);
  EXPECT_THAT(second, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("in use")));
}

TEST_F(ServerTest, RpcsAndGenerationsAreCounted) {
  Stream(Spec("hello", 7));
  Stream(Spec("hello", -1));
  const auto counted = [&] {
    return metrics_.Text().find(
               "grpc_server_handled_total{grpc_code=\"InvalidArgument\",grpc_method=\"StreamGenerate\","
               "grpc_service=\"smt.v1.GenerationService\"} 1\n") != std::string::npos;
  };
  EXPECT_TRUE(Eventually(counted));
  const std::string text = metrics_.Text();
  for (const char* line : {"smt_generation_tokens_total 7\n", "smt_prompt_tokens_total 5\n",
                           "smt_generations_finished_total{reason=\"max_tokens\"} 1\n",
                           "smt_requests_rejected_total{reason=\"INVALID_REQUEST\"} 1\n",
                           "smt_time_to_first_token_seconds_count{session=\"new\"} 1\n",
                           "smt_inter_token_latency_seconds_count 6\n", "smt_batch_size_count"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

}  // namespace
}  // namespace smt
