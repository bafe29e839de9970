// What the tests of forks, checkpoints and rollback as clients see them have in common.
#pragma once

#include <string>
#include <vector>

#include "tests/server/service/service_testing.h"

namespace smt {

class BranchingTest : public ServiceTest {
 protected:
  void SetUp() override { CreateSession("s"); }

  // A turn on sessions/{session}.
  Streamed Say(const std::string& session, const std::string& text, int64_t max_tokens,
               const std::string& request_id = "") {
    v1::GenerationSpec spec = Spec(text, max_tokens);
    spec.set_session("sessions/" + session);
    spec.set_request_id(request_id);
    return Stream(spec);
  }

  template <typename Request, typename Response>
  using Method = grpc::Status (v1::SessionService::Stub::*)(grpc::ClientContext*, const Request&, Response*);
  template <typename Request, typename Response>
  grpc::Status Call(Method<Request, Response> method, const Request& request, Response* response) {
    grpc::ClientContext context;
    return (sessions().*method)(&context, request, response);
  }
  grpc::Status Fork(const v1::ForkSessionRequest& request, v1::Session* session = nullptr) {
    v1::ForkSessionResponse response;
    const grpc::Status status = Call(&v1::SessionService::Stub::ForkSession, request, &response);
    if (session != nullptr) *session = response.session();
    return status;
  }
  grpc::Status Checkpoint(const v1::CreateCheckpointRequest& request, v1::Checkpoint* checkpoint = nullptr) {
    v1::CreateCheckpointResponse response;
    const grpc::Status status = Call(&v1::SessionService::Stub::CreateCheckpoint, request, &response);
    if (checkpoint != nullptr) *checkpoint = response.checkpoint();
    return status;
  }
  grpc::Status Rollback(const v1::RollbackSessionRequest& request, v1::Session* session = nullptr) {
    v1::RollbackSessionResponse response;
    const grpc::Status status = Call(&v1::SessionService::Stub::RollbackSession, request, &response);
    if (session != nullptr) *session = response.session();
    return status;
  }
  grpc::Status Uncheckpoint(const std::string& name, const std::string& request_id = "") {
    v1::DeleteCheckpointRequest request;
    request.set_name(name);
    request.set_request_id(request_id);
    v1::DeleteCheckpointResponse response;
    return Call(&v1::SessionService::Stub::DeleteCheckpoint, request, &response);
  }
  std::vector<v1::Checkpoint> Checkpoints(const std::string& session, int32_t page_size = 0) {
    std::vector<v1::Checkpoint> checkpoints;
    v1::ListCheckpointsRequest request;
    request.set_parent("sessions/" + session);
    request.set_page_size(page_size);
    do {
      v1::ListCheckpointsResponse response;
      const grpc::Status status = Call(&v1::SessionService::Stub::ListCheckpoints, request, &response);
      EXPECT_TRUE(status.ok()) << status.error_message();
      EXPECT_LE(response.checkpoints_size(), page_size == 0 ? 50 : page_size);
      checkpoints.insert(checkpoints.end(), response.checkpoints().begin(), response.checkpoints().end());
      request.set_page_token(response.next_page_token());
    } while (!request.page_token().empty());
    return checkpoints;
  }

  static v1::ForkSessionRequest ForkOf(const std::string& parent, const std::string& id,
                                       const std::string& checkpoint = "") {
    v1::ForkSessionRequest request;
    request.set_name("sessions/" + parent);
    request.set_session_id(id);
    if (!checkpoint.empty()) request.set_checkpoint("sessions/" + parent + "/checkpoints/" + checkpoint);
    return request;
  }
  static v1::CreateCheckpointRequest CheckpointOf(const std::string& session, const std::string& id) {
    v1::CreateCheckpointRequest request;
    request.set_parent("sessions/" + session);
    request.set_checkpoint_id(id);
    return request;
  }
  static v1::RollbackSessionRequest RollbackOf(const std::string& session, int32_t turns) {
    v1::RollbackSessionRequest request;
    request.set_name("sessions/" + session);
    request.set_turns(turns);
    return request;
  }
  static v1::RollbackSessionRequest RollbackTo(const std::string& session, const std::string& checkpoint) {
    v1::RollbackSessionRequest request;
    request.set_name("sessions/" + session);
    request.set_checkpoint("sessions/" + session + "/checkpoints/" + checkpoint);
    return request;
  }
  std::vector<int32_t> Log(const std::string& session) {
    const auto log = session_manager_->ReadLog(session, 1, GetSession(session).position());
    EXPECT_OK(log);
    return log.ok() ? *log : std::vector<int32_t>();
  }
};

#define ASSERT_GRPC_OK(call)                              \
  do {                                                    \
    const grpc::Status status_ = (call);                  \
    ASSERT_TRUE(status_.ok()) << status_.error_message(); \
  } while (false)

}  // namespace smt
