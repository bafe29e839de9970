// Forks, checkpoints and rollbacks that are sent again, or wrong.
#include "tests/server/service/branching_testing.h"

namespace smt {
namespace {

using grpc::StatusCode;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

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
