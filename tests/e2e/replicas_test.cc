// Several servers, one Redis: a session is anybody's to go on with, one server at a time.
#include <signal.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/e2e/replicas_testing.h"

namespace smt::testing {
namespace {

using ::testing::ElementsAreArray;

TEST_F(ReplicasTest, TurnsOfOneSessionAlternateBetweenServersAndGiveTheTextOfOne) {
  constexpr int kTurns = 9;
  const auto spec = [](int turn) {
    return Spec("story", absl::StrCat(turn == 0 ? kOpening : " Then,", " ", turn), 40, 100 + turn);
  };
  ServerProcess alone;
  ASSERT_TRUE(alone.Start().ok()) << alone.Stderr();
  for (int i = 0; i < 3; ++i) StartServer();
  for (int turn = 0; turn < kTurns; ++turn) {
    const Outcome want = Generate(*alone.NewClient(), spec(turn));
    const Outcome got = Generate(*servers_[turn % 3]->NewClient(), spec(turn));
    ASSERT_TRUE(got.error.ok()) << got.error.message;
    EXPECT_EQ(got.text, want.text) << "turn " << turn;
    EXPECT_THAT(got.ids, ElementsAreArray(want.ids));
    EXPECT_EQ(got.finished.position(), want.finished.position());
    EXPECT_EQ(got.finished.durable_position(), got.finished.position());
  }
}

class HandoverTest : public ReplicasTest, public ::testing::WithParamInterface<v1::Durability> {};

TEST_P(HandoverTest, AResumeOnAnotherServerEndsTheStreamAndGoesOnWithIt) {
  constexpr size_t kTokens = 4000;
  ServerProcess &a = StartServer(), &b = StartServer();
  const auto client_a = a.NewClient(), client_b = b.NewClient();
  const v1::GenerationSpec spec = Request("story", "r", kTokens, GetParam());
  const auto first = Stream::Begin(*client_a, spec);
  ASSERT_TRUE(first->WaitFor(100)) << first->WaitForEnd().message;
  const Read have = first->Have();
  const absl::Time asked = absl::Now();
  const auto second = Stream::Resume(*client_b, spec, have);
  const client::Error ended = first->WaitForEnd();
  const absl::Time parked = absl::Now();
  EXPECT_EQ(ended.code, grpc::StatusCode::ABORTED) << ended.message;
  EXPECT_EQ(ended.reason, "TAKEN_OVER");
  ASSERT_TRUE(second->WaitFor(first->Have().ids.size() + 1)) << second->WaitForEnd().message;
  const absl::Time on = second->Have().last;
  const client::Error error = second->WaitForEnd();
  EXPECT_TRUE(error.ok()) << error.message;
  ExpectUndisturbed(second->Have(), kTokens);
  ExpectUndisturbed(first->Have(), first->Have().ids.size());
  EXPECT_LT(first->Have().ids.size(), kTokens) << "it was not taken over in the middle";
  EXPECT_LT(on - asked, kLease) << "asked for, not waited out";
  RecordProperty("parked_ms", static_cast<int>((parked - asked) / absl::Milliseconds(1)));
  RecordProperty("handover_ms", static_cast<int>((on - asked) / absl::Milliseconds(1)));
  RecordProperty("ids_sent_meanwhile", static_cast<int>(first->Have().ids.size() - have.ids.size()));
}

TEST_P(HandoverTest, WhatAKilledServerStreamedGoesOnElsewhereWithinTheLease) {
  constexpr size_t kTokens = 3000;
  ServerProcess &a = StartServer(), &b = StartServer();
  const auto client_a = a.NewClient(), client_b = b.NewClient();
  const v1::GenerationSpec spec = Request("story", "r", kTokens, GetParam());
  const auto first = Stream::Begin(*client_a, spec);
  ASSERT_TRUE(first->WaitFor(100)) << first->WaitForEnd().message;
  a.Kill();
  const absl::Time killed = absl::Now();
  EXPECT_EQ(first->WaitForEnd().code, grpc::StatusCode::UNAVAILABLE);
  const Read have = first->Have();
  ASSERT_LT(have.ids.size(), kTokens) << "killed too late";
  const auto second = Stream::Resume(*client_b, spec, have);
  ASSERT_TRUE(second->WaitFor(have.ids.size() + 1)) << second->WaitForEnd().message;
  EXPECT_LT(second->Have().last - killed, kLease + absl::Seconds(1));
  RecordProperty("resumed_ms", static_cast<int>((second->Have().last - killed) / absl::Milliseconds(1)));
  const client::Error error = second->WaitForEnd();
  EXPECT_TRUE(error.ok()) << error.message;
  ExpectUndisturbed(second->Have(), kTokens);
}

TEST_P(HandoverTest, ARequestThatRunsElsewhereIsSeenAndCancelled) {
  ServerProcess &a = StartServer(), &b = StartServer();
  const auto client_a = a.NewClient(), client_b = b.NewClient();
  const v1::GenerationSpec spec = Request("story", "r", 100'000, GetParam());
  const auto stream = Stream::Begin(*client_a, spec);
  ASSERT_TRUE(stream->WaitFor(200)) << stream->WaitForEnd().message;
  v1::Generation seen;
  client::Error error = client_b->GetGeneration("sessions/story", "r", &seen);
  ASSERT_TRUE(error.ok()) << error.message;
  EXPECT_EQ(seen.state(), v1::GENERATION_STATE_RUNNING);
  EXPECT_GT(seen.position(), seen.start_position() + seen.prompt_tokens());
  const absl::Time asked = absl::Now();
  v1::Generation cancelled;
  error = client_b->CancelGeneration("sessions/story", "r", &cancelled);
  ASSERT_TRUE(error.ok()) << error.message;
  EXPECT_LT(absl::Now() - asked, kLease) << "asked for, not waited out";
  EXPECT_EQ(cancelled.state(), v1::GENERATION_STATE_CANCELLED);
  EXPECT_EQ(cancelled.finished().reason(), v1::FINISH_REASON_CANCELLED);
  const client::Error ended = stream->WaitForEnd();
  EXPECT_TRUE(ended.ok()) << ended.message;
  EXPECT_TRUE(stream->Have().finished);
  EXPECT_EQ(stream->Have().position, cancelled.position());
  ExpectUndisturbed(stream->Have(), stream->Have().ids.size());
  EXPECT_EQ(SessionAt(b, "story").position(), cancelled.position());
  EXPECT_FALSE(SessionAt(b, "story").active());
}

// Frozen for longer than its lease, it wakes up and believes for a moment that the session is its own.
TEST_P(HandoverTest, AServerThatWasFrozenBeyondItsLeaseWritesNothing) {
  constexpr size_t kTokens = 3000;
  ServerProcess &a = StartServer(), &b = StartServer();
  const auto client_a = a.NewClient(), client_b = b.NewClient();
  const v1::GenerationSpec spec = Request("story", "r", kTokens, GetParam());
  const auto first = Stream::Begin(*client_a, spec);
  ASSERT_TRUE(first->WaitFor(100)) << first->WaitForEnd().message;
  a.Signal(SIGSTOP);
  const absl::Time frozen = absl::Now();
  const Read have = first->Have();
  ASSERT_LT(have.ids.size(), kTokens) << "frozen too late";
  const auto second = Stream::Resume(*client_b, spec, have);
  ASSERT_TRUE(second->WaitFor(have.ids.size() + 200)) << second->WaitForEnd().message;
  EXPECT_LT(absl::Now() - frozen, kLease + absl::Seconds(3));
  a.Signal(SIGCONT);
  const client::Error told = first->WaitForEnd();
  EXPECT_TRUE((told.code == grpc::StatusCode::UNAVAILABLE && told.reason == "LEASE_LOST") ||
              (told.code == grpc::StatusCode::ABORTED && told.reason == "TAKEN_OVER"))
      << told.code << " " << told.reason << ": " << told.message;
  RecordProperty("told", told.reason);
  const client::Error error = second->WaitForEnd();
  EXPECT_TRUE(error.ok()) << error.message;
  ExpectUndisturbed(second->Have(), kTokens);
  ExpectUndisturbed(first->Have(), first->Have().ids.size());
  // The zombie has taken nothing along, and serves the session as B left it.
  const v1::Session at_a = SessionAt(a, "story"), at_b = SessionAt(b, "story");
  EXPECT_EQ(at_b.position(), second->Have().position);
  EXPECT_EQ(at_a.etag(), at_b.etag());
  const Outcome next = Generate(*client_a, Spec("story", " And so", 20));
  EXPECT_TRUE(next.error.ok()) << next.error.message;
  EXPECT_EQ(next.started.start_position(), at_b.position());
}
INSTANTIATE_TEST_SUITE_P(Replicas, HandoverTest, ::testing::Values(v1::DURABILITY_TURN, v1::DURABILITY_TOKEN),
                         [](const auto& info) { return v1::Durability_Name(info.param).substr(11); });

// Nobody asked the frozen server to let go: another request has the session once the lease has run out.
TEST_F(ReplicasTest, AFrozenServersClientIsToldThatTheLeaseIsLost) {
  ServerProcess &a = StartServer(), &b = StartServer();
  const auto client_a = a.NewClient(), client_b = b.NewClient();
  const auto first = Stream::Begin(*client_a, Request("story", "r", 100'000));
  ASSERT_TRUE(first->WaitFor(50)) << first->WaitForEnd().message;
  a.Signal(SIGSTOP);
  absl::SleepFor(absl::Milliseconds(200));
  v1::GenerationSpec next = Spec("story", " And so", 400);
  next.set_wait_for_session(true);
  const Outcome other = Generate(*client_b, next);
  ASSERT_TRUE(other.error.ok()) << other.error.message;
  const auto reader = a.NewClient();
  a.Signal(SIGCONT);
  // It says nothing of what it believes from before, not even in its first moments.
  std::vector<v1::Session> listed;
  std::string next_page;
  const client::Error list = reader->ListSessions(10, "", &listed, &next_page);
  ASSERT_TRUE(list.ok()) << list.message;
  ASSERT_EQ(listed.size(), 1U);
  EXPECT_EQ(listed[0].position(), other.finished.position());
  const client::Error told = first->WaitForEnd();
  EXPECT_EQ(told.code, grpc::StatusCode::UNAVAILABLE) << told.message;
  EXPECT_EQ(told.reason, "LEASE_LOST");
  EXPECT_EQ(SessionAt(a, "story").position(), other.finished.position());
  EXPECT_EQ(SessionAt(b, "story").position(), other.finished.position());
}

TEST_F(ReplicasTest, TokenDurabilityIsRefusedWhereRedisAcknowledgesBeforeItHasWritten) {
  const auto lax = RedisServer::Start({"--appendonly", "yes", "--appendfsync", "everysec"});
  ASSERT_NE(lax, nullptr);
  const auto client = StartServer(*lax).NewClient();
  const client::Error refused = Generate(*client, Request("story", "r", 5, v1::DURABILITY_TOKEN)).error;
  EXPECT_EQ(refused.code, grpc::StatusCode::FAILED_PRECONDITION) << refused.message;
  EXPECT_EQ(refused.reason, "STORE_NOT_DURABLE");
  const Outcome turn = Generate(*client, Request("story", "s", 5));
  EXPECT_TRUE(turn.error.ok()) << turn.error.message;
}

TEST_F(ReplicasTest, ForksRollbacksCheckpointsAndFilesPassFromServerToServer) {
  ServerProcess &a = StartServer(), &b = StartServer();
  const auto client_a = a.NewClient(), client_b = b.NewClient();
  const Outcome first = Generate(*client_a, Spec("story", kOpening, 60));
  ASSERT_TRUE(first.error.ok()) << first.error.message;
  const Outcome second = Generate(*client_b, Spec("story", " And so", 60));
  ASSERT_TRUE(second.error.ok()) << second.error.message;

  v1::ForkSessionRequest fork;
  fork.set_name("sessions/story");
  fork.set_session_id("fork");
  v1::Session session;
  client::Error error = client_a->ForkSession(fork, &session);
  ASSERT_TRUE(error.ok()) << error.message;
  EXPECT_EQ(session.position(), second.finished.position());

  v1::RollbackSessionRequest back;
  back.set_name("sessions/story");
  back.set_turns(1);
  error = client_b->RollbackSession(back, &session);
  ASSERT_TRUE(error.ok()) << error.message;
  EXPECT_EQ(session.position(), first.finished.position());
  const Outcome again = Generate(*client_a, Spec("story", " And so", 60));
  EXPECT_THAT(again.ids, ElementsAreArray(second.ids)) << "undo and the same again";

  v1::CreateCheckpointRequest mark;
  mark.set_parent("sessions/fork");
  mark.set_checkpoint_id("here");
  v1::Checkpoint checkpoint;
  error = client_a->CreateCheckpoint(mark, &checkpoint);
  ASSERT_TRUE(error.ok()) << error.message;
  const Outcome third = Generate(*client_a, Spec("fork", " Later", 60));
  ASSERT_TRUE(third.error.ok()) << third.error.message;

  v1::ExportSessionRequest from;
  from.set_name("sessions/fork");
  from.set_checkpoint(client::CheckpointName("fork", "here"));
  std::string file;
  error = client_b->ExportSession(from, [&](const std::string& data, int64_t) {
    file += data;
    return true;
  });
  ASSERT_TRUE(error.ok()) << error.message;
  v1::ImportSessionRequest to;
  to.set_session_id("copy");
  size_t sent = 0;
  error = client_a->ImportSession(
      to,
      [&] {
        const std::string piece = file.substr(sent, 64 << 10);
        sent += piece.size();
        return piece;
      },
      &session);
  ASSERT_TRUE(error.ok()) << error.message;
  EXPECT_EQ(session.position(), checkpoint.position());
  const Outcome copied = Generate(*client_b, Spec("copy", " Later", 60));
  EXPECT_THAT(copied.ids, ElementsAreArray(third.ids));
  for (const auto* client : {&client_a, &client_b}) {
    std::vector<v1::Session> all;
    std::string next;
    ASSERT_TRUE((*client)->ListSessions(10, "", &all, &next).ok());
    EXPECT_EQ(all.size(), 3U);
  }
}

}  // namespace
}  // namespace smt::testing
