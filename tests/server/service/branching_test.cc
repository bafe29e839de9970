// Forks and rollback as clients see them.
#include "tests/server/service/branching_testing.h"

namespace smt {
namespace {

using grpc::StatusCode;
using testing::HasSubstr;
using testing::Pair;
using testing::UnorderedElementsAre;

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

}  // namespace
}  // namespace smt
