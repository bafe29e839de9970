// Forks, checkpoints and rollback as clients see them.
#include "tests/server/service/service_testing.h"

namespace smt {
namespace {

using grpc::StatusCode;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;
using testing::UnorderedElementsAre;

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

TEST_F(BranchingTest, AForkGoesOnAsItsParentWould) {
  Say("s", "hello", 10);
  v1::Session child;
  ASSERT_GRPC_OK(Fork(ForkOf("s", "child"), &child));
  EXPECT_EQ(child.name(), "sessions/child");
  EXPECT_EQ(child.position(), 15);
  EXPECT_EQ(child.branch(), 0);
  EXPECT_EQ(child.model_fingerprint(), "model-1");
  EXPECT_FALSE(child.active());
  const std::vector<int32_t> before = Log("s");
  EXPECT_EQ(Log("child"), before);
  const Streamed of_child = Say("child", " and", 20), of_parent = Say("s", " and", 20);
  ASSERT_TRUE(of_child.status.ok()) << of_child.status.error_message();
  EXPECT_EQ(of_child.started.start_position(), 15);
  EXPECT_EQ(of_child.text, of_parent.text);
  EXPECT_EQ(Log("child"), Log("s"));
  Say("child", " more", 5);
  EXPECT_EQ(GetSession("s").position(), 39) << "each goes its own way";
}

TEST_F(BranchingTest, AForkOfACheckpointGoesOnFromThere) {
  Say("s", "hello", 10);
  v1::Checkpoint checkpoint;
  ASSERT_GRPC_OK(Checkpoint(CheckpointOf("s", "here"), &checkpoint));
  EXPECT_EQ(checkpoint.name(), "sessions/s/checkpoints/here");
  EXPECT_EQ(checkpoint.position(), 15);
  EXPECT_EQ(checkpoint.branch(), 0);
  EXPECT_FALSE(checkpoint.automatic());
  EXPECT_GT(checkpoint.create_time().seconds(), 0);
  const std::string next = Say("s", " and", 20).text;
  v1::Session child;
  ASSERT_GRPC_OK(Fork(ForkOf("s", "child", "here"), &child));
  EXPECT_EQ(child.position(), 15);
  EXPECT_EQ(Say("child", " and", 20).text, next);
  EXPECT_EQ(Log("child"), Log("s"));
}

TEST_F(BranchingTest, AForkOfATurnsStartLeavesTheTurnOut) {
  Say("s", "hello", 10);
  Say("s", " and", 20);
  v1::Session child;
  ASSERT_GRPC_OK(Fork(ForkOf("s", "child", "turn-0-15"), &child));
  EXPECT_EQ(child.position(), 15);
  EXPECT_EQ(Say("child", "!", 4).text, Expected(16, 4));
}

TEST_F(BranchingTest, AForkOfAForkStandsOnItsOwn) {
  Say("s", "hello", 10);
  ASSERT_GRPC_OK(Fork(ForkOf("s", "child")));
  Say("child", " and", 20);
  ASSERT_GRPC_OK(Fork(ForkOf("child", "grandchild")));
  const std::vector<int32_t> log = Log("child");
  for (const char* gone : {"sessions/s", "sessions/child"}) {
    v1::DeleteSessionRequest request;
    request.set_name(gone);
    v1::DeleteSessionResponse response;
    ASSERT_GRPC_OK(Call(&v1::SessionService::Stub::DeleteSession, request, &response));
  }
  EXPECT_EQ(Log("grandchild"), log);
  const Streamed out = Say("grandchild", "!", 8);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.text, Expected(40, 8));
  CreateSession("s");
  EXPECT_EQ(GetSession("s").position(), 0);
  EXPECT_EQ(Log("grandchild").size(), 48u) << "whoever is called s now";
}

TEST_F(BranchingTest, ABusySessionIsForkedFromACheckpointOnly) {
  Say("s", "hello", 10);
  ASSERT_GRPC_OK(Checkpoint(CheckpointOf("s", "here")));
  model_->step_us = 500;
  v1::GenerationSpec spec = Spec(" and", 10'000);
  spec.set_session("sessions/s");
  bool asked = false;
  Stream(spec, [&](const v1::GenerationEvent& event) {
    if (!event.has_chunk() || asked) return true;
    asked = true;
    for (const grpc::Status& busy :
         {Fork(ForkOf("s", "child")), Checkpoint(CheckpointOf("s", "now")), Rollback(RollbackOf("s", 1))}) {
      EXPECT_EQ(busy.error_code(), StatusCode::ABORTED) << busy.error_message();
      EXPECT_EQ(DetailsOf(busy).info.reason(), "SESSION_BUSY");
      EXPECT_TRUE(DetailsOf(busy).has_retry);
    }
    for (const char* checkpoint : {"here", "turn-0-0", "turn-0-15"}) {
      const grpc::Status status = Fork(ForkOf("s", std::string("from-") + checkpoint, checkpoint));
      EXPECT_TRUE(status.ok()) << checkpoint << ": " << status.error_message();
    }
    return false;
  });
  model_->step_us = 0;
  EXPECT_TRUE(asked);
  EXPECT_EQ(GetSession("from-here").position(), 15);
  EXPECT_EQ(GetSession("from-turn-0-0").position(), 0);
  EXPECT_EQ(Say("from-turn-0-15", " and", 30).text, Expected(19, 30));
}

TEST_F(BranchingTest, AForkHasItsParentsTimeToLiveAndLabelsUnlessItIsGivenOthers) {
  v1::UpdateSessionRequest update;
  update.mutable_session()->set_name("sessions/s");
  update.mutable_session()->mutable_ttl()->set_seconds(3600);
  (*update.mutable_session()->mutable_labels())["team"] = "red";
  v1::UpdateSessionResponse updated;
  ASSERT_GRPC_OK(Call(&v1::SessionService::Stub::UpdateSession, update, &updated));
  v1::Session child;
  ASSERT_GRPC_OK(Fork(ForkOf("s", "same"), &child));
  EXPECT_EQ(child.ttl().seconds(), 3600);
  EXPECT_TRUE(child.has_expire_time());
  EXPECT_THAT(child.labels(), UnorderedElementsAre(Pair("team", "red")));
  v1::ForkSessionRequest request = ForkOf("s", "shorter");
  request.mutable_session()->mutable_ttl()->set_seconds(60);
  ASSERT_GRPC_OK(Fork(request, &child));
  EXPECT_EQ(child.ttl().seconds(), 60);
  EXPECT_THAT(child.labels(), UnorderedElementsAre(Pair("team", "red")));
  request = ForkOf("s", "blue");
  (*request.mutable_session()->mutable_labels())["team"] = "blue";
  ASSERT_GRPC_OK(Fork(request, &child));
  EXPECT_EQ(child.ttl().seconds(), 3600);
  EXPECT_THAT(child.labels(), UnorderedElementsAre(Pair("team", "blue")));
}

TEST_F(BranchingTest, WhatIsNotThereIsNamed) {
  Say("s", "hello", 3);
  for (const grpc::Status& status :
       {Fork(ForkOf("nobody", "child")), Checkpoint(CheckpointOf("nobody", "c")), Rollback(RollbackOf("nobody", 1)),
        Uncheckpoint("sessions/nobody/checkpoints/c")}) {
    EXPECT_EQ(status.error_code(), StatusCode::NOT_FOUND) << status.error_message();
    EXPECT_EQ(DetailsOf(status).resource.resource_type(), "session");
    EXPECT_EQ(DetailsOf(status).resource.resource_name(), "sessions/nobody");
  }
  for (const grpc::Status& status : {Fork(ForkOf("s", "child", "nope")), Rollback(RollbackTo("s", "nope")),
                                     Uncheckpoint("sessions/s/checkpoints/nope")}) {
    EXPECT_EQ(status.error_code(), StatusCode::NOT_FOUND) << status.error_message();
    EXPECT_EQ(DetailsOf(status).resource.resource_type(), "checkpoint");
    EXPECT_EQ(DetailsOf(status).resource.resource_name(), "sessions/s/checkpoints/nope");
  }
  EXPECT_EQ(Rollback(RollbackOf("s", 2)).error_code(), StatusCode::NOT_FOUND) << "it has one turn";
  EXPECT_EQ(GetSession("s").branch(), 0);
}

TEST_F(BranchingTest, TakenNamesAreRefused) {
  CreateSession("other");
  const grpc::Status session = Fork(ForkOf("s", "other"));
  EXPECT_EQ(session.error_code(), StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(DetailsOf(session).resource.resource_name(), "sessions/other");
  ASSERT_GRPC_OK(Checkpoint(CheckpointOf("s", "here")));
  const grpc::Status checkpoint = Checkpoint(CheckpointOf("s", "here"));
  EXPECT_EQ(checkpoint.error_code(), StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(DetailsOf(checkpoint).resource.resource_type(), "checkpoint");
  EXPECT_EQ(DetailsOf(checkpoint).resource.resource_name(), "sessions/s/checkpoints/here");
}

TEST_F(BranchingTest, AnotherPositionThanExpectedIsAConflict) {
  Say("s", "hello", 10);
  v1::ForkSessionRequest fork = ForkOf("s", "child");
  v1::CreateCheckpointRequest checkpoint = CheckpointOf("s", "here");
  fork.set_expected_position(14);
  checkpoint.set_expected_position(16);
  for (const grpc::Status& status : {Fork(fork), Checkpoint(checkpoint)}) {
    EXPECT_EQ(status.error_code(), StatusCode::ABORTED) << status.error_message();
    EXPECT_EQ(DetailsOf(status).info.reason(), "POSITION_MISMATCH");
  }
  fork.set_expected_position(15);
  checkpoint.set_expected_position(15);
  EXPECT_TRUE(Fork(fork).ok());
  EXPECT_TRUE(Checkpoint(checkpoint).ok());
}

TEST_F(BranchingTest, ATurnUndoneAndSaidAgainGivesTheSameText) {
  Say("s", "hello", 10);
  const Streamed first = Say("s", " and", 20);
  v1::Session session;
  ASSERT_GRPC_OK(Rollback(RollbackOf("s", 1), &session));
  EXPECT_EQ(session.position(), 15);
  EXPECT_EQ(session.branch(), 1);
  EXPECT_EQ(session.SerializeAsString(), GetSession("s").SerializeAsString());
  const Streamed again = Say("s", " and", 20);
  ASSERT_TRUE(again.status.ok()) << again.status.error_message();
  EXPECT_EQ(again.started.branch(), 1);
  EXPECT_EQ(again.started.start_position(), 15);
  EXPECT_EQ(again.text, first.text);
  EXPECT_NE(again.finished.digest(), first.finished.digest()) << "a digest belongs to a branch";
}

TEST_F(BranchingTest, ManyTurnsAreUndoneAtOnce) {
  for (const char* text : {"one", "two", "three", "four"}) Say("s", text, 5);
  const std::vector<int32_t> log = Log("s");
  v1::Session session;
  ASSERT_GRPC_OK(Rollback(RollbackOf("s", 3), &session));
  EXPECT_EQ(session.position(), 8);
  for (const char* text : {"two", "three", "four"}) Say("s", text, 5);
  EXPECT_EQ(Log("s"), log);
  ASSERT_GRPC_OK(Rollback(RollbackOf("s", 4), &session));
  EXPECT_EQ(session.position(), 0);
  EXPECT_EQ(session.branch(), 2);
  EXPECT_EQ(Say("s", "one", 5).text, Expected(3, 5));
}

TEST_F(BranchingTest, ACheckpointOfABranchLeftBehindCanBeReturnedTo) {
  Say("s", "hello", 10);
  Say("s", " and", 20);
  ASSERT_GRPC_OK(Checkpoint(CheckpointOf("s", "best")));
  const std::vector<int32_t> best = Log("s");
  ASSERT_GRPC_OK(Rollback(RollbackOf("s", 2)));
  Say("s", "something else", 30);
  v1::Session session;
  ASSERT_GRPC_OK(Rollback(RollbackTo("s", "best"), &session));
  EXPECT_EQ(session.position(), 39);
  EXPECT_EQ(session.branch(), 2);
  EXPECT_EQ(Log("s"), best);
  EXPECT_EQ(Say("s", "!", 6).text, Expected(40, 6));
}

TEST_F(BranchingTest, TheStateLeftBehindLeavesItsSlot) {
  Say("s", "hello", 10);
  Say("s", " and", 20);
  EXPECT_TRUE(Eventually([&] { return engine_->stats().slots_idle == 1; }));
  ASSERT_GRPC_OK(Rollback(RollbackOf("s", 1)));
  EXPECT_TRUE(Eventually([&] { return engine_->stats().slots_idle == 0; }));
  const Streamed out = Say("s", "!", 5);
  EXPECT_EQ(out.text, Expected(16, 5));
}

TEST_F(BranchingTest, AnotherEtagIsAConflict) {
  Say("s", "hello", 10);
  const std::string old = GetSession("s").etag();
  Say("s", " and", 20);
  v1::RollbackSessionRequest request = RollbackOf("s", 1);
  request.set_etag(old);
  const grpc::Status status = Rollback(request);
  EXPECT_EQ(status.error_code(), StatusCode::ABORTED);
  EXPECT_EQ(DetailsOf(status).info.reason(), "ETAG_MISMATCH");
  EXPECT_EQ(GetSession("s").position(), 39);
  request.set_etag(GetSession("s").etag());
  v1::Session session;
  ASSERT_GRPC_OK(Rollback(request, &session));
  EXPECT_NE(session.etag(), request.etag());
}

TEST_F(BranchingTest, ARequestOfBeforeARollbackIsReplayedButNotResumed) {
  Say("s", "hello", 10, "first");
  const Streamed second = Say("s", " and then", 20, "second");
  ASSERT_GRPC_OK(Rollback(RollbackOf("s", 1)));
  Say("s", " but", 40, "other");
  const int64_t steps = model_->steps;
  for (const char* request_id : {"first", "second"}) {
    const Streamed resumed = Resume(request_id, std::string(request_id) == "first" ? 10 : 30);
    EXPECT_EQ(resumed.status.error_code(), StatusCode::FAILED_PRECONDITION) << resumed.status.error_message();
    EXPECT_EQ(DetailsOf(resumed.status).info.reason(), "SUPERSEDED");
    const google::rpc::PreconditionFailure failure = DetailsOf(resumed.status).precondition;
    ASSERT_EQ(failure.violations_size(), 1);
    EXPECT_EQ(failure.violations(0).subject(), "sessions/s");
  }
  v1::GenerationSpec spec = Spec(" and then", 20);
  spec.set_session("sessions/s");
  spec.set_request_id("second");
  spec.mutable_output()->set_echo(true);
  const Streamed replayed = Stream(spec);
  ASSERT_TRUE(replayed.status.ok()) << replayed.status.error_message();
  EXPECT_TRUE(replayed.started.replayed());
  EXPECT_EQ(replayed.started.branch(), 0);
  EXPECT_EQ(replayed.echo, " and then") << "not what the new branch has there";
  EXPECT_EQ(replayed.text, second.text);
  EXPECT_EQ(replayed.finished.digest(), second.finished.digest());
  EXPECT_EQ(model_->steps, steps) << "nothing is computed";
  EXPECT_EQ(GetSession("s").position(), 15 + 4 + 40);
}

TEST_F(BranchingTest, AParkedRequestIsSupersededByARollback) {
  Say("s", "hello", 10);
  model_->step_us = 500;
  v1::GenerationSpec spec = Spec(" and", 10'000);
  spec.set_session("sessions/s");
  spec.set_request_id("parked");
  Stream(spec, [](const v1::GenerationEvent& event) { return !event.has_chunk(); });
  model_->step_us = 0;
  ASSERT_TRUE(Eventually([&] { return !GetSession("s").active(); }));
  ASSERT_GRPC_OK(Rollback(RollbackOf("s", 1)));
  for (const Streamed& out : {Resume("parked", 19), Stream(spec)}) {
    EXPECT_EQ(out.status.error_code(), StatusCode::FAILED_PRECONDITION) << out.status.error_message();
    EXPECT_EQ(DetailsOf(out.status).info.reason(), "SUPERSEDED");
  }
  EXPECT_EQ(GetSession("s").position(), 15);
}

TEST_F(BranchingTest, TurnsAreCheckpointsThatTheServerMakes) {
  Say("s", "hello", 10, "first");
  Say("s", " and", 20);
  ASSERT_GRPC_OK(Checkpoint(CheckpointOf("s", "here")));
  Say("s", "!", 5, "third");
  const std::vector<v1::Checkpoint> all = Checkpoints("s");
  ASSERT_EQ(all.size(), 4u);
  const auto check = [](const v1::Checkpoint& checkpoint, const char* id, int64_t position, bool automatic,
                        const char* request_id) {
    EXPECT_EQ(checkpoint.name(), std::string("sessions/s/checkpoints/") + id);
    EXPECT_EQ(checkpoint.position(), position) << id;
    EXPECT_EQ(checkpoint.branch(), 0);
    EXPECT_EQ(checkpoint.automatic(), automatic) << id;
    EXPECT_EQ(checkpoint.request_id(), request_id) << id;
    EXPECT_GT(checkpoint.create_time().seconds(), 0);
  };
  check(all[0], "turn-0-0", 0, true, "first");
  check(all[1], "turn-0-15", 15, true, "");
  check(all[2], "here", 39, false, "");
  check(all[3], "turn-0-39", 39, true, "third");
}

TEST_F(BranchingTest, TheLastTurnsAreRemembered) {
  for (int i = 0; i < kRememberedTurns + 4; ++i) Say("s", "x", 1);
  EXPECT_EQ(Checkpoints("s").size(), static_cast<size_t>(kRememberedTurns));
  EXPECT_EQ(Rollback(RollbackOf("s", kRememberedTurns + 1)).error_code(), StatusCode::NOT_FOUND);
  v1::Session session;
  ASSERT_GRPC_OK(Rollback(RollbackOf("s", kRememberedTurns), &session));
  EXPECT_EQ(session.position(), 8);
}

TEST_F(BranchingTest, CheckpointsAreListedInPagesByPosition) {
  for (const char* id : {"e", "d", "c", "b", "a"}) {
    Say("s", "x", 2);
    ASSERT_GRPC_OK(Checkpoint(CheckpointOf("s", id)));
  }
  for (const int32_t page_size : {1, 3, 100, 0}) {
    const std::vector<v1::Checkpoint> all = Checkpoints("s", page_size);
    ASSERT_EQ(all.size(), 10u) << page_size;
    std::string ids;
    for (size_t i = 0; i < all.size(); ++i) {
      EXPECT_LE(all[i == 0 ? 0 : i - 1].position(), all[i].position());
      if (!all[i].automatic()) ids += all[i].name().back();
    }
    EXPECT_EQ(ids, "edcba");
  }
  v1::ListCheckpointsRequest request;
  request.set_parent("sessions/s");
  request.set_page_token("garbage!");
  v1::ListCheckpointsResponse response;
  EXPECT_EQ(Call(&v1::SessionService::Stub::ListCheckpoints, request, &response).error_code(),
            StatusCode::INVALID_ARGUMENT);
}

TEST_F(BranchingTest, ADeletedCheckpointIsForgottenAndTheSessionIsNot) {
  Say("s", "hello", 10);
  ASSERT_GRPC_OK(Checkpoint(CheckpointOf("s", "here")));
  for (const char* name : {"sessions/s/checkpoints/here", "sessions/s/checkpoints/turn-0-0"}) {
    ASSERT_GRPC_OK(Uncheckpoint(name));
    EXPECT_EQ(Uncheckpoint(name).error_code(), StatusCode::NOT_FOUND);
  }
  EXPECT_TRUE(Checkpoints("s").empty());
  EXPECT_EQ(Say("s", "!", 5).text, Expected(16, 5));
}

TEST_F(BranchingTest, ARetriedForkIsAnsweredWithTheSameSession) {
  Say("s", "hello", 10);
  v1::ForkSessionRequest request = ForkOf("s", "");
  request.set_request_id("fork-1");
  v1::Session first, again;
  ASSERT_GRPC_OK(Fork(request, &first));
  EXPECT_THAT(first.name(), HasSubstr("sessions/"));
  Say("s", " and", 20);
  ASSERT_GRPC_OK(Fork(request, &again));
  EXPECT_EQ(again.name(), first.name());
  EXPECT_EQ(again.position(), 15);
  (*request.mutable_session()->mutable_labels())["other"] = "meaning";
  const grpc::Status reused = Fork(request);
  EXPECT_EQ(reused.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(reused).fields, ElementsAre("request_id"));
}

TEST_F(BranchingTest, ARetriedCheckpointIsAnsweredWithTheSameOne) {
  Say("s", "hello", 10);
  v1::CreateCheckpointRequest request = CheckpointOf("s", "");
  request.set_request_id("checkpoint-1");
  v1::Checkpoint first, again;
  ASSERT_GRPC_OK(Checkpoint(request, &first));
  EXPECT_THAT(first.name(), HasSubstr("sessions/s/checkpoints/"));
  Say("s", " and", 20);
  ASSERT_GRPC_OK(Checkpoint(request, &again));
  EXPECT_EQ(again.SerializeAsString(), first.SerializeAsString());
  request.set_checkpoint_id("other");
  const grpc::Status reused = Checkpoint(request);
  EXPECT_EQ(reused.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(reused).fields, ElementsAre("request_id"));
}

TEST_F(BranchingTest, ARetriedDeletionOfACheckpointIsNoError) {
  ASSERT_GRPC_OK(Checkpoint(CheckpointOf("s", "a")));
  ASSERT_GRPC_OK(Checkpoint(CheckpointOf("s", "b")));
  ASSERT_GRPC_OK(Uncheckpoint("sessions/s/checkpoints/a", "delete-1"));
  ASSERT_GRPC_OK(Checkpoint(CheckpointOf("s", "a")));
  ASSERT_GRPC_OK(Uncheckpoint("sessions/s/checkpoints/a", "delete-1"));
  EXPECT_EQ(Uncheckpoint("sessions/s/checkpoints/b", "delete-1").error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Checkpoints("s").size(), 2u) << "a retry deletes nothing that was made afterwards";
}

TEST_F(BranchingTest, ARetriedRollbackHappensOnce) {
  Say("s", "hello", 10);
  Say("s", " and", 20);
  v1::RollbackSessionRequest request = RollbackOf("s", 1);
  request.set_request_id("rollback-1");
  v1::Session first, again;
  ASSERT_GRPC_OK(Rollback(request, &first));
  ASSERT_GRPC_OK(Rollback(request, &again));
  EXPECT_EQ(again.SerializeAsString(), first.SerializeAsString());
  Say("s", "!", 5);
  ASSERT_GRPC_OK(Rollback(request, &again));
  EXPECT_EQ(again.position(), 15);
  EXPECT_EQ(again.branch(), 1);
  EXPECT_EQ(GetSession("s").position(), 21) << "the turn since is still there";
  request.set_turns(2);
  const grpc::Status reused = Rollback(request);
  EXPECT_EQ(reused.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(reused).fields, ElementsAre("request_id"));
}

TEST_F(BranchingTest, OperationsAreCounted) {
  Say("s", "hello", 10);
  Fork(ForkOf("s", "child")), Fork(ForkOf("nobody", "child"));
  Checkpoint(CheckpointOf("s", "here"));
  Checkpoints("s");
  Uncheckpoint("sessions/s/checkpoints/here");
  Rollback(RollbackOf("s", 1));
  const std::string text = metrics_.Text();
  for (const char* op : {"fork", "checkpoint_create", "checkpoint_list", "checkpoint_delete", "rollback"}) {
    EXPECT_THAT(text, HasSubstr(std::string("smt_session_operations_total{op=\"") + op + "\",result=\"ok\"} 1\n"));
  }
  EXPECT_THAT(text, HasSubstr("smt_session_operations_total{op=\"fork\",result=\"NOT_FOUND\"} 1\n"));
}

// Every bad field, by what the client is told: fields are looked at before the session is.

TEST_F(BranchingTest, ForkChecksItsFields) {
  v1::ForkSessionRequest request;
  request.set_name("s");
  request.set_session_id("Not Good");
  request.set_checkpoint("sessions/s/checkpoint/c");
  request.mutable_session()->mutable_ttl()->set_seconds(-1);
  (*request.mutable_session()->mutable_labels())["Bad Key"] = "v";
  request.set_expected_position(-1);
  request.set_request_id("a b");
  const grpc::Status status = Fork(request);
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(status).fields, ElementsAre("name", "session_id", "checkpoint", "session.ttl", "session.labels",
                                                    "expected_position", "request_id"));
  const google::rpc::BadRequest bad = DetailsOf(status).bad_request;
  const auto& violations = bad.field_violations();
  EXPECT_THAT(violations[0].description(), AllOf(HasSubstr("'s'"), HasSubstr("sessions/{id}")));
  EXPECT_THAT(violations[1].description(), AllOf(HasSubstr("'Not Good'"), HasSubstr("1 to 63")));
  EXPECT_THAT(violations[2].description(),
              AllOf(HasSubstr("'sessions/s/checkpoint/c'"), HasSubstr("sessions/{id}/checkpoints/{id}")));
  EXPECT_THAT(violations[5].description(), HasSubstr("is -1; allowed is 0 or more"));
  EXPECT_THAT(DetailsOf(Fork({})).fields, ElementsAre("name"));
}

TEST_F(BranchingTest, TheCheckpointMustBeOfTheSession) {
  v1::ForkSessionRequest fork = ForkOf("s", "child");
  v1::RollbackSessionRequest rollback = RollbackOf("s", 1);
  fork.set_checkpoint("sessions/other/checkpoints/c");
  rollback.set_checkpoint("sessions/other/checkpoints/c");
  for (const grpc::Status& status : {Fork(fork), Rollback(rollback)}) {
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(DetailsOf(status).fields, ElementsAre("checkpoint"));
    EXPECT_THAT(status.error_message(), AllOf(HasSubstr("'sessions/other/checkpoints/c', of another session"),
                                              HasSubstr("checkpoints of 'sessions/s'")));
  }
}

TEST_F(BranchingTest, CheckpointsCheckTheirFields) {
  v1::CreateCheckpointRequest create;
  create.set_parent("sessions/A");
  create.set_checkpoint_id("-c");
  create.set_expected_position(-5);
  create.set_request_id(std::string(65, 'r'));
  EXPECT_THAT(DetailsOf(Checkpoint(create)).fields,
              ElementsAre("parent", "checkpoint_id", "expected_position", "request_id"));
  for (const char* reserved : {"turn-0-0", "turn-12-345"}) {
    const grpc::Status status = Checkpoint(CheckpointOf("s", reserved));
    EXPECT_THAT(DetailsOf(status).fields, ElementsAre("checkpoint_id"));
    EXPECT_THAT(status.error_message(), AllOf(HasSubstr(reserved), HasSubstr("server")));
  }
  for (const char* free : {"turn", "turn-1", "turn-1-", "turn-1-x", "turn-1-2-3", "my-turn-0-0"}) {
    const grpc::Status status = Checkpoint(CheckpointOf("nobody", free));
    EXPECT_NE(status.error_code(), StatusCode::INVALID_ARGUMENT) << status.error_message();
  }

  v1::ListCheckpointsRequest list;
  list.set_page_size(-1);
  v1::ListCheckpointsResponse listed;
  EXPECT_THAT(DetailsOf(Call(&v1::SessionService::Stub::ListCheckpoints, list, &listed)).fields,
              ElementsAre("parent", "page_size"));

  for (const char* name :
       {"", "sessions/s", "sessions/s/checkpoints/", "sessions/s/checkpoints/a/b", "sessions//checkpoints/a",
        "sessions/s/checkpoints/-a", "sessions/S/checkpoints/a", "session/s/checkpoints/a", "s/checkpoints/a"}) {
    EXPECT_THAT(DetailsOf(Uncheckpoint(name, "a b")).fields, ElementsAre("name", "request_id")) << name;
  }
}

TEST_F(BranchingTest, RollbackChecksItsFields) {
  v1::RollbackSessionRequest request;
  request.set_name("sessions/-");
  request.set_request_id("é");
  const grpc::Status status = Rollback(request);
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(status).fields, ElementsAre("name", "target", "request_id"));
  EXPECT_THAT(status.error_message(), HasSubstr("2 more violations"));
  request = RollbackOf("s", 1);
  request.clear_target();
  EXPECT_THAT(Rollback(request).error_message(), HasSubstr("checkpoint or turns"));
  for (const int32_t turns : {0, -1}) {
    const grpc::Status refused = Rollback(RollbackOf("s", turns));
    EXPECT_THAT(DetailsOf(refused).fields, ElementsAre("turns"));
    EXPECT_THAT(refused.error_message(), HasSubstr("allowed is 1 or more"));
  }
  request.set_checkpoint("");
  EXPECT_THAT(DetailsOf(Rollback(request)).fields, ElementsAre("checkpoint"));
}

}  // namespace
}  // namespace smt
