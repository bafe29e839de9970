// Streams on sessions: who may write, what a request_id seen before gets, and beginnings that something interrupts.
#include <future>
#include <thread>

#include "tests/server/service/service_testing.h"

namespace smt {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class GenerationSessionTest : public ServiceTest {};

TEST_F(GenerationSessionTest, ASessionGoesOnWhereItStood) {
  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 7);
  spec.set_session("sessions/s");
  const Streamed first = Stream(spec);
  EXPECT_EQ(first.text, Expected(5, 7));
  EXPECT_EQ(first.finished.durable_position(), 12);
  v1::GenerationSpec second = spec;
  second.clear_input();
  const Streamed out = Stream(second);
  EXPECT_EQ(out.text, Expected(12, 7)) << "no prompt: it goes on from there";
  EXPECT_EQ(out.started.start_position(), 12);
  EXPECT_EQ(out.started.session(), "sessions/s");
  EXPECT_EQ(GetSession("s").position(), 19);
}

TEST_F(GenerationSessionTest, AnUnknownSessionIsNotFoundUnlessItMayBeCreated) {
  v1::GenerationSpec spec = Spec("hello", 1);
  spec.set_session("sessions/nobody");
  const Streamed missing = Stream(spec);
  EXPECT_EQ(missing.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(DetailsOf(missing.status).resource.resource_name(), "sessions/nobody");
  spec.set_create_session(true);
  EXPECT_TRUE(Stream(spec).status.ok());
  EXPECT_EQ(GetSession("nobody").position(), 6);

  v1::GenerationSpec drawn = Spec("hello", 1);
  drawn.set_create_session(true);
  const Streamed out = Stream(drawn);
  EXPECT_THAT(out.started.session(), HasSubstr("sessions/"));
  EXPECT_EQ(GetSession(out.started.session().substr(9)).position(), 6);
}

TEST_F(GenerationSessionTest, AnEmptySessionNeedsAPrompt) {
  CreateSession("s");
  v1::GenerationSpec spec = Spec("", 1);
  spec.clear_input();
  spec.set_session("sessions/s");
  const Streamed out = Stream(spec);
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(out.status).fields, ElementsAre("spec.input"));
}

TEST_F(GenerationSessionTest, TheSecondWriterOfASessionIsAbortedOrWaits) {
  model_->step_us = 2000;
  CreateSession("s");
  v1::GenerationSpec slow = Spec("hello", 100);
  slow.set_session("sessions/s");
  std::promise<void> started;
  std::thread first([&] {
    Stream(slow, [&, told = false](const v1::GenerationEvent& event) mutable {
      if (event.has_chunk() && !told) {
        told = true;
        started.set_value();
      }
      return true;
    });
  });
  started.get_future().wait();
  const Streamed busy = Stream(slow);
  EXPECT_EQ(busy.status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_TRUE(DetailsOf(busy.status).has_retry);
  v1::GenerationSpec patient = slow;
  patient.set_wait_for_session(true);
  patient.mutable_stopping()->set_max_tokens(1);
  const Streamed waited = Stream(patient);
  EXPECT_TRUE(waited.status.ok()) << waited.status.error_message();
  EXPECT_EQ(waited.started.start_position(), 105);
  first.join();
}

TEST_F(GenerationSessionTest, AWaiterThatVanishesNeverGetsItsTurn) {
  model_->step_us = 1000;
  CreateSession("s");
  v1::GenerationSpec slow = Spec("hello", 400);
  slow.set_session("sessions/s");
  std::promise<void> started;
  Streamed first;
  std::thread writer([&] {
    first = Stream(slow, [&, told = false](const v1::GenerationEvent& event) mutable {
      if (event.has_chunk() && !told) {
        told = true;
        started.set_value();
      }
      return true;
    });
  });
  started.get_future().wait();
  v1::StreamGenerateRequest request;
  *request.mutable_spec() = slow;
  request.mutable_spec()->set_wait_for_session(true);
  for (int i = 0; i < 3; ++i) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(20));
    const auto reader = generation().StreamGenerate(&context, request);
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    grpc::ClientContext cancelled;
    const auto other = generation().StreamGenerate(&cancelled, request);
    cancelled.TryCancel();
    EXPECT_EQ(other->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  writer.join();
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  request.mutable_spec()->mutable_stopping()->set_max_tokens(1);
  EXPECT_EQ(Stream(request.spec()).started.start_position(), first.finished.position());
}

TEST_F(GenerationSessionTest, ARefusedRequestLeavesNoSessionBehind) {
  v1::GenerationSpec spec = Spec("hello", 1);
  spec.set_create_session(true);
  spec.set_expected_position(5);
  for (const char* name : {"", "sessions/s"}) {
    spec.set_session(name);
    EXPECT_EQ(Stream(spec).status.error_code(), grpc::StatusCode::ABORTED);
  }
  grpc::ClientContext context;
  v1::ListSessionsResponse response;
  ASSERT_TRUE(sessions().ListSessions(&context, {}, &response).ok());
  EXPECT_EQ(response.sessions_size(), 0);
}

TEST_F(GenerationSessionTest, AnUnexpectedPositionIsAborted) {
  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 1);
  spec.set_session("sessions/s");
  spec.set_expected_position(3);
  EXPECT_EQ(Stream(spec).status.error_code(), grpc::StatusCode::ABORTED);
  spec.set_expected_position(0);
  EXPECT_TRUE(Stream(spec).status.ok());
  EXPECT_EQ(Stream(spec).status.error_code(), grpc::StatusCode::ABORTED) << "a late retry";
}

TEST_F(GenerationSessionTest, TheSameRequestIdReplaysTheOutcomeWithoutComputing) {
  CreateSession("s");
  v1::GenerationSpec spec = Spec("0123456789", 100);
  spec.set_session("sessions/s");
  spec.set_request_id("r1");
  spec.mutable_stopping()->add_stop_strings("hi");
  spec.mutable_output()->set_echo(true);
  const Streamed first = Stream(spec);
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  const int64_t steps = model_->steps;
  const Streamed again = Stream(spec);
  ASSERT_TRUE(again.status.ok()) << again.status.error_message();
  EXPECT_EQ(model_->steps, steps);
  EXPECT_TRUE(again.started.replayed());
  EXPECT_EQ(again.text, first.text);
  EXPECT_EQ(again.echo, first.echo);
  EXPECT_EQ(again.ids, first.ids);
  EXPECT_EQ(again.started.seed(), first.started.seed());
  EXPECT_EQ(again.finished.digest(), first.finished.digest());
  EXPECT_EQ(again.finished.SerializeAsString(), first.finished.SerializeAsString());
  EXPECT_EQ(GetSession("s").position(), first.finished.position());

  spec.mutable_sampling()->set_temperature(0.5f);
  EXPECT_EQ(Stream(spec).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << "another meaning";
}

TEST_F(GenerationSessionTest, GetGenerationTellsHowARequestEnded) {
  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 3);
  spec.set_session("sessions/s");
  spec.set_request_id("r1");
  Stream(spec);
  v1::GetGenerationRequest request;
  request.set_session("sessions/s");
  request.set_request_id("r1");
  v1::GetGenerationResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(generation().GetGeneration(&context, request, &response).ok());
  EXPECT_EQ(response.generation().state(), v1::GENERATION_STATE_FINISHED);
  EXPECT_EQ(response.generation().position(), 8);
  EXPECT_EQ(response.generation().prompt_tokens(), 5);
  EXPECT_EQ(response.generation().finished().usage().generated_tokens(), 3);
  request.set_request_id("r2");
  grpc::ClientContext other;
  EXPECT_EQ(generation().GetGeneration(&other, request, &response).error_code(), grpc::StatusCode::NOT_FOUND);
}

// Between the look at the session and the turn.
class InterruptedCodec final : public TextCodec {
 public:
  InterruptedCodec(const TextCodec& codec, std::function<void()> interrupt)
      : codec_(codec), interrupt_(std::move(interrupt)) {}
  std::vector<int32_t> Encode(std::string_view bytes, bool parse_special) const override {
    if (interrupt_) std::exchange(interrupt_, nullptr)();
    return codec_.Encode(bytes, parse_special);
  }
  const std::vector<std::string>& token_bytes() const override { return codec_.token_bytes(); }
  bool IsSpecial(int32_t id) const override { return codec_.IsSpecial(id); }

 private:
  const TextCodec& codec_;
  mutable std::function<void()> interrupt_;
};

class InterruptedStartTest : public GenerationSessionTest {
 protected:
  // Something happens to the session between its being looked at and the beginning of the turn.
  Streamed StreamInterrupted(const v1::GenerationSpec& spec, std::function<void()> interrupt) {
    const InterruptedCodec codec(codec_, std::move(interrupt));
    context_.codec = &codec;
    Streamed out = Stream(spec);
    context_.codec = &codec_;
    return out;
  }
  void TakeBackATurn(const std::string& id) {
    RollbackSpec back;
    back.session_id = id;
    back.turns = 1;
    EXPECT_OK(session_manager_->Rollback(back));
  }
};

TEST_F(InterruptedStartTest, ARollbackToTheStartMeanwhileDoesNotTakeTheBosTokenAway) {
  context_.bos = kBos;
  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 2);
  spec.set_session("sessions/s");
  ASSERT_TRUE(Stream(spec).status.ok());
  const Streamed out = StreamInterrupted(spec, [&] { TakeBackATurn("s"); });
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.started.start_position(), 0);
  EXPECT_EQ(session_manager_->ReadLog("s", 1, 6).value(), (std::vector<int32_t>{kBos, 'h', 'e', 'l', 'l', 'o'}));
}

TEST_F(InterruptedStartTest, ATurnOfAnotherMeanwhileKeepsTheBosTokenOutOfTheMiddle) {
  context_.bos = kBos;
  CreateSession("s");
  v1::GenerationSpec spec = Spec("ab", 1);
  spec.set_session("sessions/s");
  spec.set_request_id("r1");  // a session that is seen empty was asked to stay so only without one
  const Streamed out = StreamInterrupted(spec, [&] {
    TurnSpec turn;
    turn.session_id = "s";
    turn.prompt = {'x', 'y'};
    EXPECT_OK(session_manager_->BeginTurn(std::move(turn)));
    EXPECT_TRUE(Eventually([&] { return !session_manager_->Get("s")->active; }));
  });
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(session_manager_->ReadLog("s", 1, 4).value(), (std::vector<int32_t>{'x', 'y', 'a', 'b'}));
}

// Without a prompt there must be something to go on from.
TEST_F(InterruptedStartTest, ARollbackToTheStartMeanwhileLeavesNothingToGoOnFrom) {
  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 2);
  spec.set_session("sessions/s");
  ASSERT_TRUE(Stream(spec).status.ok());
  spec.set_text("");
  const Streamed out = StreamInterrupted(spec, [&] { TakeBackATurn("s"); });
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << out.status.error_message();
}

}  // namespace
}  // namespace smt
