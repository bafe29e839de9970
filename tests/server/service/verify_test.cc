// Sessions that are verified.
#include <thread>

#include "absl/strings/escaping.h"
#include "model/io/safetensors.h"
#include "server/service/resident_state.h"
#include "tests/server/service/transfer_testing.h"

namespace smt {
namespace {

using grpc::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

using VerifyTest = TransferTest;

TEST_F(VerifyTest, ASessionWhoseStatesAreWhatItsLogMakesIsIdentical) {
  Say("a", "hello", 0);
  Keep("a", 2);
  Keep("a", 4);
  const Verified verified = Verify("a");
  ExpectResult(verified, v1::VERIFY_RESULT_IDENTICAL, 5);
  // The same digest as the file's, when that has the state of the head.
  const Exported exported = Export("sessions/a");
  ASSERT_TRUE(exported.status.ok()) << exported.status.error_message();
  EXPECT_EQ(absl::BytesToHexString(verified.last().state_digest()),
            SafetensorsReader::FromBytes(exported.file)->metadata().at("state_digest"));
}

TEST_F(VerifyTest, AnEmptySessionIsIdentical) {
  CreateSession("a");
  ExpectResult(Verify("a"), v1::VERIFY_RESULT_IDENTICAL, 0);
}

TEST_F(VerifyTest, TheFirstStateThatDiffersIsNamed) {
  Say("a", "hello world", 0);
  Keep("a", 3);
  const std::vector<int32_t> other = {1, 2, 3, 4, 5, 6, 7};
  session_manager_->SaveEvicted(Info("a").key, 7, StateAfter(other));
  const Verified verified = Verify("a");
  ExpectResult(verified, v1::VERIFY_RESULT_DIFFERENT, 11);
  EXPECT_EQ(verified.last().first_difference(), 7);
}

TEST_F(VerifyTest, ADamagedStateDiffers) {
  Say("a", "hello world", 0);
  Keep("a", 5);
  PutSnapshot("a", 5, "no snapshot");
  const Verified verified = Verify("a");
  ExpectResult(verified, v1::VERIFY_RESULT_DIFFERENT, 11);
  EXPECT_EQ(verified.last().first_difference(), 5);
}

TEST_F(VerifyTest, TheStateInTheSlotIsComparedToo) {
  Say("a", "hello", 0);
  // A wrong state is kept, the next turn begins from it, and then it is gone: only the slot has what was made of it.
  const std::vector<int32_t> other = {1, 2, 3, 4, 5};
  const SessionInfo info = Info("a");
  session_manager_->SaveEvicted(info.key, 5, StateAfter(other));
  ASSERT_OK(session_manager_->Flush());
  engine_->Discard(info.key);
  Say("a", "!", 0);
  EXPECT_EQ(ReadResident(context_, info.key, absl::Seconds(10)).position, 6);
  const ParsedStateKey key = *ParseSessionStateKey(info.key);
  const std::vector<SnapshotName> drop = {{key.branch, 5}};
  const std::string good = EncodeSnapshot({key.branch, 1, "model-1", "fake", 0, StateAfter(Ids("a", 1))});
  ASSERT_OK(store_->PutSnapshot(key.key, {key.branch, 1}, good, drop));
  const Verified verified = Verify("a");
  ExpectResult(verified, v1::VERIFY_RESULT_DIFFERENT, 6);
  EXPECT_EQ(verified.last().first_difference(), 6);
}

TEST_F(VerifyTest, StatesOfOtherNumericsLeaveOnlyTheLog) {
  Say("a", "hello world", 0);
  engine_->Discard(Info("a").key);
  const std::vector<int32_t> other = {9, 9, 9, 9};
  PutSnapshot("a", 4, EncodeSnapshot({0, 4, "model-1", "elsewhere", 0, StateAfter(other)}));
  ExpectResult(Verify("a"), v1::VERIFY_RESULT_LOG_ONLY, 11);
  // What came after it here may have been made from it.
  PutSnapshot("a", 6, EncodeSnapshot({0, 6, "model-1", "fake", 0, StateAfter(std::vector<int32_t>(6, 9))}));
  ExpectResult(Verify("a"), v1::VERIFY_RESULT_LOG_ONLY, 11);
}

TEST_F(VerifyTest, ALongLogIsVerifiedPieceByPieceWithProgress) {
  Say("a", std::string(200'000, 'x'), 0);
  for (const int64_t position : {1, 65'536, 65'537, 131'072, 199'999, 200'000}) Keep("a", position);
  model_->ingest_us = 12;  // 2.4 s
  const Verified verified = Verify("a");
  ExpectResult(verified, v1::VERIFY_RESULT_IDENTICAL, 200'000);
  EXPECT_GE(verified.messages.size(), 3u);
  EXPECT_LE(verified.messages.size(), 6u);
  for (size_t i = 1; i < verified.messages.size(); ++i) {
    EXPECT_LT(verified.messages[i - 1].verified_tokens(), verified.messages[i].verified_tokens());
  }
}

TEST_F(VerifyTest, ADamagedLogIsDataLossAndNamesThePosition) {
  Say("a", std::string(100'000, 'x'), 0);
  store_->DamageLog(70'000);
  const Verified verified = Verify("a");
  EXPECT_EQ(verified.status.error_code(), StatusCode::DATA_LOSS);
  EXPECT_THAT(verified.status.error_message(), HasSubstr("position 70000"));
  EXPECT_THAT(Metrics(), HasSubstr("smt_session_operations_total{op=\"verify\",result=\"DATA_LOSS\"} 1"));
}

TEST_F(VerifyTest, AClientThatGoesAwayEndsItsVerification) {
  Say("a", std::string(100'000, 'x'), 0);
  model_->ingest_us = 10;
  grpc::ClientContext context;
  const Verified verified = Verify(
      "a", [&] { context.TryCancel(); }, &context);
  EXPECT_EQ(verified.status.error_code(), StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return context_.verifications == 0 && engine_->stats().running == 0; }));
  EXPECT_LT(model_->absorbed, 190'000);
}

TEST_F(VerifyTest, TheCallsDeadlineIsRespected) {
  Say("a", std::string(100'000, 'x'), 0);
  model_->ingest_us = 20;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  EXPECT_EQ(Verify("a", nullptr, &context).status.error_code(), StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] { return context_.verifications == 0 && engine_->stats().running == 0; }));
}

TEST_F(VerifyTest, ASessionThatBecomesAnotherOneMeanwhileAbortsIt) {
  Say("a", std::string(150'000, 'x'), 0);
  model_->ingest_us = 3;
  const Verified verified = Verify("a", [&] {
    const auto removed = session_manager_->Delete("a", std::nullopt);
    if (removed.ok()) CreateSession("a");
  });
  EXPECT_EQ(verified.status.error_code(), StatusCode::ABORTED);
  EXPECT_EQ(DetailsOf(verified.status).info.reason(), "SESSION_CHANGED");
}

TEST_F(VerifyTest, RequestsGoBeforeTheNextPiece) {
  slots_ = 1;
  Say("a", std::string(400'000, 'x'), 0);
  model_->ingest_us = 2;
  sessions();  // the server is up before there are two threads
  std::atomic<bool> verified{false};
  std::thread verifying([&] {
    ExpectResult(Verify("a"), v1::VERIFY_RESULT_IDENTICAL, 400'000);
    verified = true;
  });
  EXPECT_TRUE(Eventually([&] { return engine_->stats().running == 1 || verified; }));
  EXPECT_EQ(Stream(Spec("x", 3)).text, Expected(1, 3));
  const bool first = !verified;
  verifying.join();
  EXPECT_TRUE(first);
}

TEST_F(VerifyTest, OnlySoManyRunAtATime) {
  Say("a", std::string(100'000, 'x'), 0);
  model_->ingest_us = 10;
  int refused = 0;
  Verify("a", [&] {
    if (refused > 0) return;
    Verify("a", [&] {
      if (refused > 0) return;
      const grpc::Status status = Verify("a").status;
      EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
      EXPECT_EQ(DetailsOf(status).info.reason(), "VERIFICATIONS_FULL");
      ++refused;
      model_->ingest_us = 0;
    });
  });
  EXPECT_EQ(refused, 1);
}

TEST_F(VerifyTest, WhatCannotBeVerifiedIsSaid) {
  sessions();
  EXPECT_EQ(Verify("none").status.error_code(), StatusCode::NOT_FOUND);
  const grpc::Status bad = Verify("No").status;
  EXPECT_EQ(bad.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(bad).fields, ElementsAre("name"));
}

}  // namespace
}  // namespace smt
