// Sessions that leave as a file and come back.
#include "server/service/resident_state.h"
#include "server/session/session_file.h"
#include "tests/server/service/transfer_testing.h"

namespace smt {
namespace {

using grpc::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(TransferTest, ASessionComesBackFromItsFileAsItWas) {
  Say("a", "hello", 7);
  const Exported exported = Export("sessions/a");
  ASSERT_TRUE(exported.status.ok()) << exported.status.error_message();
  EXPECT_THAT(exported.total_bytes, ElementsAre(static_cast<int64_t>(exported.file.size())));

  v1::ImportSessionRequest first;
  first.set_session_id("b");
  first.mutable_session()->mutable_ttl()->set_seconds(60);
  (*first.mutable_session()->mutable_labels())["from"] = "a";
  const Imported imported = Import(first, exported.file, 100);
  ASSERT_TRUE(imported.status.ok()) << imported.status.error_message();
  EXPECT_EQ(imported.session.name(), "sessions/b");
  EXPECT_EQ(imported.session.position(), 12);
  EXPECT_EQ(imported.session.ttl().seconds(), 60);
  EXPECT_EQ(imported.session.labels().at("from"), "a");
  EXPECT_EQ(GetSession("b").SerializeAsString(), imported.session.SerializeAsString());
  EXPECT_EQ(Ids("b", 12), Ids("a", 12));

  const int64_t absorbed = model_->absorbed;
  v1::GenerationSpec spec = Spec("", 3);
  spec.set_session("sessions/b");
  EXPECT_EQ(Stream(spec).text, Expected(12, 3));
  EXPECT_LE(model_->absorbed - absorbed, 4) << "from the state, not from the log";
  ExpectResult(Verify("b"), v1::VERIFY_RESULT_IDENTICAL, 15);
  EXPECT_THAT(Metrics(), HasSubstr("smt_session_operations_total{op=\"export\",result=\"ok\"} 1"));
  EXPECT_THAT(Metrics(), HasSubstr("smt_session_operations_total{op=\"import\",result=\"ok\"} 1"));
  EXPECT_THAT(Metrics(), HasSubstr("smt_session_operations_total{op=\"verify\",result=\"ok\"} 1"));
  EXPECT_TRUE(Eventually([&] { return context_.transfers.held() == 0; }));
}

TEST_F(TransferTest, TheFileHoldsTheStateOfTheHeadThoughTheStoreHadNone) {
  Say("a", "hello, file", 0);
  const Exported exported = Export("sessions/a");
  ASSERT_TRUE(exported.status.ok()) << exported.status.error_message();
  const absl::StatusOr<SessionContent> content = DecodeSessionFile(FakeConfig(), "model-1", exported.file);
  ASSERT_OK(content);
  EXPECT_EQ(content->info.id, "a");
  EXPECT_EQ(content->state_position, 11);
  EXPECT_EQ(content->numerics_id, "fake");
  ASSERT_NE(content->state, nullptr);
  const auto expected = StateAfter(content->log);
  EXPECT_EQ(std::memcmp(content->state->span().data(), expected->span().data(), expected->size()), 0);
  // The session is still in its slot.
  v1::GenerationSpec spec = Spec("x", 1);
  spec.set_session("sessions/a");
  const int64_t absorbed = model_->absorbed;
  Stream(spec);
  EXPECT_EQ(model_->absorbed - absorbed, 1);
}

TEST_F(TransferTest, ALongLogComesInMessagesOfOneMebibyte) {
  Say("long", std::string(700'000, 'x'), 0);
  const Exported exported = Export("sessions/long");
  ASSERT_TRUE(exported.status.ok()) << exported.status.error_message();
  EXPECT_GT(exported.file.size(), 2'800'000u);
  EXPECT_THAT(exported.total_bytes, ElementsAre(static_cast<int64_t>(exported.file.size()), 0, 0));
  EXPECT_LE(exported.largest_message, size_t{1} << 20);
  EXPECT_TRUE(Import("copy", exported.file).status.ok());
  EXPECT_EQ(GetSession("copy").position(), 700'000);
}

TEST_F(TransferTest, AnEmptySessionIsAFileToo) {
  CreateSession("empty");
  const Exported exported = Export("sessions/empty");
  ASSERT_TRUE(exported.status.ok()) << exported.status.error_message();
  ASSERT_TRUE(Import("copy", exported.file).status.ok());
  EXPECT_EQ(GetSession("copy").position(), 0);
}

TEST_F(TransferTest, AnExportSaysWhatIsWrongWithItsRequest) {
  CreateSession("a");
  const Exported bad = Export("a", "c");
  EXPECT_EQ(bad.status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(bad.status).fields, ElementsAre("name", "checkpoint"));
  const Exported other = Export("sessions/a", "sessions/b/checkpoints/c");
  EXPECT_EQ(other.status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(other.status).fields, ElementsAre("checkpoint"));
  EXPECT_EQ(Export("sessions/none").status.error_code(), StatusCode::NOT_FOUND);
  EXPECT_EQ(Export("sessions/a", "sessions/a/checkpoints/none").status.error_code(), StatusCode::NOT_FOUND);
  EXPECT_THAT(Metrics(), HasSubstr("smt_session_operations_total{op=\"export\",result=\"NOT_FOUND\"} 2"));
}

TEST_F(TransferTest, AnExportOfTheHeadIsAbortedWhileARequestWritesIt) {
  model_->step_us = 1000;
  v1::GenerationSpec spec = Spec("x", 10'000);
  spec.set_session("sessions/a");
  spec.set_create_session(true);
  grpc::Status status;
  Stream(spec, [&](const v1::GenerationEvent& event) {
    if (!event.has_chunk()) return true;
    status = Export("sessions/a").status;
    return false;
  });
  EXPECT_EQ(status.error_code(), StatusCode::ABORTED);
}

TEST_F(TransferTest, OnlyTheFirstMessageOfAnImportSaysWhatToMake) {
  CreateSession("a");
  const std::string file = Export("sessions/a").file;
  v1::ImportSessionRequest bad;
  bad.set_session_id("No");
  bad.set_request_id("no no");
  bad.mutable_session()->mutable_ttl()->set_seconds(-1);
  const Imported first = Import(bad, file);
  EXPECT_EQ(first.status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(first.status).fields, ElementsAre("session_id", "session.ttl", "request_id"));

  grpc::ClientContext context;
  v1::ImportSessionResponse response;
  auto writer = sessions().ImportSession(&context, &response);
  v1::ImportSessionRequest message;
  message.set_session_id("b");
  message.mutable_session();
  message.set_request_id("r");
  writer->Write(message);
  writer->Write(message);
  writer->WritesDone();
  const grpc::Status later = writer->Finish();
  EXPECT_EQ(later.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(later).fields, ElementsAre("session_id", "session", "request_id"));

  const Imported wide = Import({}, std::string((1 << 20) + 1, 'x'), (1 << 20) + 1);
  EXPECT_EQ(wide.status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(wide.status).fields, ElementsAre("data"));
  EXPECT_THAT(AllSessions(), ElementsAre("a"));
}

TEST_F(TransferTest, WhatIsNoFileOfOursLeavesNothing) {
  Say("a", "hello", 3);
  const std::string file = Export("sessions/a").file;
  ASSERT_FALSE(file.empty());
  const auto expect = [&](const std::string& bytes, StatusCode code, const std::string& message) {
    const grpc::Status status = Import("b", bytes).status;
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(message));
  };
  expect("", StatusCode::DATA_LOSS, "the file has 0 bytes");
  expect("hello, I am no safetensors file", StatusCode::INVALID_ARGUMENT, "is this a safetensors file?");
  expect(file.substr(0, file.size() - 1), StatusCode::DATA_LOSS, "the session file");
  std::string damaged = file;
  damaged.back() ^= 1;
  expect(damaged, StatusCode::DATA_LOSS, "SHA-256");
  expect(file + "x", StatusCode::DATA_LOSS, "nothing may follow");
  context_.model.set_fingerprint("model-2");
  expect(file, StatusCode::FAILED_PRECONDITION, "this server's model has 'model-2'");
  context_.model.set_fingerprint("model-1");
  grpc::ClientContext context;
  v1::ImportSessionResponse response;
  auto writer = sessions().ImportSession(&context, &response);
  writer->WritesDone();
  const grpc::Status nothing = writer->Finish();
  EXPECT_EQ(nothing.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(nothing.error_message(), HasSubstr("the stream has no message"));
  EXPECT_THAT(AllSessions(), ElementsAre("a"));
  EXPECT_TRUE(Eventually([&] { return context_.transfers.held() == 0; }));
}

TEST_F(TransferTest, ATakenNameAlreadyExists) {
  Say("a", "hello", 3);
  EXPECT_EQ(Import("a", Export("sessions/a").file).status.error_code(), StatusCode::ALREADY_EXISTS);
}

TEST_F(TransferTest, ARetriedImportIsAnsweredWithTheSessionItMade) {
  Say("a", "hello", 3);
  const std::string file = Export("sessions/a").file;
  v1::ImportSessionRequest first;
  first.set_request_id("once");
  const Imported made = Import(first, file), again = Import(first, file);
  ASSERT_TRUE(made.status.ok() && again.status.ok()) << again.status.error_message();
  EXPECT_EQ(made.session.name(), again.session.name());
  EXPECT_EQ(AllSessions().size(), 2u);
}

TEST_F(TransferTest, FilesBeyondTheLimitAreResourceExhausted) {
  Say("a", std::string(50'000, 'x'), 0);
  const std::string file = Export("sessions/a").file;
  context_.limits.max_session_file_bytes = 100'000;
  const grpc::Status large = Import("b", file).status;
  EXPECT_EQ(large.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(large.error_message(), HasSubstr("more than 100000 bytes; that is the most (--max_session_file_bytes)"));
  EXPECT_EQ(DetailsOf(large).info.reason(), "FILE_TOO_LARGE");
  ASSERT_TRUE(Export("sessions/a").status.ok()) << "one that is alone may be larger";

  // Half of one import is there: together they would pass the limit.
  grpc::ClientContext context;
  v1::ImportSessionResponse response;
  auto half = sessions().ImportSession(&context, &response);
  v1::ImportSessionRequest message;
  message.set_data(file.substr(0, 60'000));
  half->Write(message);
  ASSERT_TRUE(Eventually([&] { return context_.transfers.held() == 60'000; }));
  const grpc::Status full = Export("sessions/a").status;
  EXPECT_EQ(full.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(full).info.reason(), "TRANSFERS_FULL");
  EXPECT_TRUE(DetailsOf(full).has_retry);
  EXPECT_EQ(DetailsOf(Import("b", file.substr(0, 50'000)).status).info.reason(), "TRANSFERS_FULL");
  context.TryCancel();
  half->Finish();
  EXPECT_TRUE(Eventually([&] { return context_.transfers.held() == 0; }));
}

TEST_F(TransferTest, AnImportingClientThatGoesAwayLeavesNothing) {
  Say("a", "hello", 3);
  const std::string file = Export("sessions/a").file;
  for (const size_t size : {size_t{1}, file.size() / 2, file.size()}) {
    grpc::ClientContext context;
    v1::ImportSessionResponse response;
    auto writer = sessions().ImportSession(&context, &response);
    v1::ImportSessionRequest message;
    message.set_session_id("gone");
    message.set_data(file.substr(0, size));
    ASSERT_TRUE(writer->Write(message));
    ASSERT_TRUE(Eventually([&] { return context_.transfers.held() == static_cast<int64_t>(size); }));
    context.TryCancel();
    EXPECT_EQ(writer->Finish().error_code(), StatusCode::CANCELLED);
  }
  EXPECT_TRUE(Eventually([&] {
    return Metrics().find("smt_session_operations_total{op=\"import\",result=\"CANCELLED\"} 3") != std::string::npos;
  })) << Metrics();
  EXPECT_THAT(AllSessions(), ElementsAre("a"));
  EXPECT_TRUE(Eventually([&] { return context_.transfers.held() == 0; }));
}

TEST_F(TransferTest, AForkIsGivenTheStateOfItsParentsSlot) {
  Say("parent", "hello", 4);
  Say("child", "hello", 4);  // the same log
  engine_->Discard(Info("child").key);
  SaveResident(&context_, Info("parent"), Info("child"));
  EXPECT_TRUE(Eventually([&] { return session_manager_->ReadState("child", nullptr)->position >= 8; }));
  const RestoredState restored = *session_manager_->ReadState("child", nullptr);
  const auto expected = StateAfter(Ids("child", restored.position));
  EXPECT_EQ(std::memcmp(restored.state->span().data(), expected->span().data(), expected->size()), 0);
}

}  // namespace
}  // namespace smt
