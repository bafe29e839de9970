// Sessions that leave as a file and come back, and sessions that are verified.
#include <thread>

#include "absl/strings/escaping.h"
#include "model/base/strings.h"
#include "model/io/safetensors.h"
#include "server/service/resident_state.h"
#include "server/session/session_file.h"
#include "server/session/session_record.h"
#include "tests/server/service/service_testing.h"

namespace smt {
namespace {

using grpc::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class TransferTest : public ServiceTest {
 protected:
  TransferTest() {
    context_.limits.max_prompt_bytes = 1 << 20;
    context_.limits.max_prompt_tokens = 1 << 20;
  }

  // A turn on sessions/{id}, which is made if it is not there.
  void Say(const std::string& id, const std::string& text, int64_t max_tokens) {
    v1::GenerationSpec spec = Spec(text, max_tokens);
    spec.set_session("sessions/" + id);
    spec.set_create_session(true);
    const Streamed streamed = Stream(spec);
    ASSERT_TRUE(streamed.status.ok()) << streamed.status.error_message();
  }

  struct Exported {
    grpc::Status status;
    std::string file;
    std::vector<int64_t> total_bytes;  // of each message
    size_t largest_message = 0;
  };
  Exported Export(const std::string& name, const std::string& checkpoint = "") {
    v1::ExportSessionRequest request;
    request.set_name(name);
    request.set_checkpoint(checkpoint);
    grpc::ClientContext context;
    auto reader = sessions().ExportSession(&context, request);
    Exported out;
    v1::ExportSessionResponse message;
    while (reader->Read(&message)) {
      out.file += message.data();
      out.total_bytes.push_back(message.total_bytes());
      out.largest_message = std::max(out.largest_message, message.ByteSizeLong());
    }
    out.status = reader->Finish();
    return out;
  }

  struct Imported {
    grpc::Status status;
    v1::Session session;
  };
  // `first` begins the stream; the file follows in pieces.
  Imported Import(v1::ImportSessionRequest first, const std::string& file, size_t piece = size_t{1} << 20) {
    grpc::ClientContext context;
    v1::ImportSessionResponse response;
    auto writer = sessions().ImportSession(&context, &response);
    bool open = writer->Write(first);
    for (size_t at = 0; open && at < file.size(); at += piece) {
      v1::ImportSessionRequest message;
      message.set_data(file.substr(at, piece));
      open = writer->Write(message);
    }
    writer->WritesDone();
    Imported out;
    out.status = writer->Finish();
    out.session = response.session();
    return out;
  }
  Imported Import(const std::string& id, const std::string& file) {
    v1::ImportSessionRequest first;
    first.set_session_id(id);
    return Import(first, file);
  }

  struct Verified {
    grpc::Status status;
    std::vector<v1::VerifySessionResponse> messages;
    v1::VerifySessionResponse last() const { return messages.empty() ? v1::VerifySessionResponse() : messages.back(); }
  };
  Verified Verify(const std::string& id, std::function<void()> on_message = nullptr,
                  grpc::ClientContext* context = nullptr) {
    v1::VerifySessionRequest request;
    request.set_name("sessions/" + id);
    grpc::ClientContext own;
    auto reader = sessions().VerifySession(context != nullptr ? context : &own, request);
    Verified out;
    v1::VerifySessionResponse message;
    while (reader->Read(&message)) {
      out.messages.push_back(message);
      if (on_message) on_message();
    }
    out.status = reader->Finish();
    return out;
  }
  void ExpectResult(const Verified& verified, v1::VerifyResult result, int64_t total) {
    ASSERT_TRUE(verified.status.ok()) << verified.status.error_message();
    ASSERT_FALSE(verified.messages.empty());
    EXPECT_EQ(verified.last().result(), result);
    EXPECT_EQ(verified.last().verified_tokens(), total);
    EXPECT_EQ(verified.last().total_tokens(), total);
    EXPECT_EQ(verified.last().state_digest().size(), 32u);
    EXPECT_EQ(verified.last().first_difference() > 0, result == v1::VERIFY_RESULT_DIFFERENT);
    for (size_t i = 0; i + 1 < verified.messages.size(); ++i) {
      EXPECT_EQ(verified.messages[i].result(), v1::VERIFY_RESULT_UNSPECIFIED);
    }
  }

  // The fake model's state after these ids.
  std::shared_ptr<const StateBuffer> StateAfter(std::span<const int32_t> ids) {
    FakeExecutor alone(std::make_shared<FakeModel>(), 1);
    EXPECT_OK(alone.Submit(std::vector<PlanItem>{{.slot = 0, .ids = ids}}));
    auto state = std::make_shared<StateBuffer>(static_cast<size_t>(alone.info().state_bytes));
    alone.Save(0, state->span());
    return state;
  }
  SessionInfo Info(const std::string& id) { return *session_manager_->Get(id); }
  std::vector<int32_t> Ids(const std::string& id, int64_t count) { return *session_manager_->ReadLog(id, 1, count); }
  // As if the state at `position` had been kept.
  void Keep(const std::string& id, int64_t position) {
    session_manager_->SaveEvicted(Info(id).key, position, StateAfter(Ids(id, position)));
    EXPECT_OK(session_manager_->Flush());
  }
  // Puts bytes in the place of the state kept at `position`.
  void PutSnapshot(const std::string& id, int64_t position, const std::string& bytes) {
    const SessionInfo info = Info(id);
    const ParsedStateKey key = *ParseSessionStateKey(info.key);
    ASSERT_OK(store_->PutSnapshot(key.key, {key.branch, position}, bytes, {}));
  }
  std::string Metrics() { return metrics_.Text(); }
  std::vector<std::string> AllSessions() {
    std::vector<std::string> ids;
    const SessionManager::Page page = *session_manager_->List(0, "");
    for (const SessionInfo& info : page.sessions) ids.push_back(info.id);
    return ids;
  }
};

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
