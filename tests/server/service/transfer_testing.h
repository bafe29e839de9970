// What the tests of sessions that leave as a file and of those that are verified have in common.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "server/session/session_record.h"
#include "tests/server/service/service_testing.h"

namespace smt {

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

}  // namespace smt
