// What is there after a server was killed.
#include <sys/wait.h>
#include <unistd.h>

#include "tests/server/session/session_testing.h"

namespace smt {
namespace {

class SessionKilledTest : public SessionTest {};

// A child writes turns and is killed in the middle of one; what it acknowledged is there.
TEST_F(SessionKilledTest, EveryAcknowledgedFinishSurvivesAKilledServer) {
  for (int round = 0; round < 3; ++round) {
    int fd[2];
    ASSERT_EQ(::pipe(fd), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      OpenRocks();
      for (const char* id : {"a", "b"}) {
        if (round == 0 && !manager_->Create(id, absl::InfiniteDuration(), {}).ok()) ::_exit(1);
      }
      for (int i = 0;; ++i) {
        const std::string id = i % 2 ? "a" : "b";
        auto turn = Begin(Spec(id, {i}, "r" + std::to_string(round) + "-" + std::to_string(i)));
        if (turn == nullptr) ::_exit(1);
        for (int n = 0; n < 100; ++n) turn->Append(std::vector<int32_t>{n});
        if (!FinishAndWait(*turn).status.ok()) ::_exit(1);
        const int64_t said[2] = {i % 2, turn->session().position + 101};
        if (::write(fd[1], said, sizeof(said)) != sizeof(said)) ::_exit(1);
      }
    }
    ::close(fd[1]);
    int64_t said[2], acknowledged[2] = {0, 0};
    for (int n = 0; n < 30 + round; ++n) {
      ASSERT_EQ(::read(fd[0], said, sizeof(said)), static_cast<ssize_t>(sizeof(said)));
      acknowledged[said[0]] = said[1];
    }
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status));
    while (::read(fd[0], said, sizeof(said)) == sizeof(said)) acknowledged[said[0]] = said[1];
    ::close(fd[0]);

    OpenRocks();
    for (const int which : {0, 1}) {
      const std::string id = which ? "a" : "b";
      const auto info = manager_->Get(id);
      ASSERT_OK(info);
      EXPECT_GE(info->position, acknowledged[which]);
      EXPECT_LE(info->position, acknowledged[which] + 101);
      EXPECT_EQ(manager_->ReadLog(id, 1, info->position)->size(), static_cast<size_t>(info->position));
      Say(id, {-1}, {-2});  // goes on
    }
    manager_.reset();
  }
}

TEST_F(SessionKilledTest, ATurnThatRanWhenTheServerDiedIsFoundInterrupted) {
  const pid_t child = ::fork();
  if (child == 0) {
    OpenRocks();
    if (!manager_->Create("a", absl::InfiniteDuration(), {}).ok()) ::_exit(1);
    auto turn = Begin(Spec("a", {1, 2}, "r"));
    turn->Append(Ids(64));
    const bool read = manager_->ReadLog("a", 3, 66).ok();
    turn->Append(Ids(3));  // in memory only
    ::_exit(read ? 42 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_EQ(WEXITSTATUS(status), 42);
  OpenRocks();
  EXPECT_EQ((*manager_->List(10, "")).sessions.at(0).position, 66);
  const auto record = manager_->GetRequest("a", "r");
  ASSERT_OK(record);
  EXPECT_EQ(record->state, RequestState::kInterrupted);
  EXPECT_EQ(record->end_position, 66);
  EXPECT_EQ(manager_->Get("a")->position, 66);
  const auto again = manager_->BeginTurn(Spec("a", {1, 2}, "r"));
  ASSERT_OK(again);
  EXPECT_EQ(again->replay.value().state, RequestState::kInterrupted);
  Say("a", {5}, {6});
  EXPECT_EQ(manager_->Get("a")->position, 68);
}

}  // namespace
}  // namespace smt
