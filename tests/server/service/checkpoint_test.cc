// Checkpoints as clients see them: those that are asked for and those that turns make.
#include "tests/server/service/branching_testing.h"

namespace smt {
namespace {

using grpc::StatusCode;

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

}  // namespace
}  // namespace smt
