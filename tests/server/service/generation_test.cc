// Streams, from the request to the last event.
#include <future>
#include <thread>

#include "model/base/strings.h"
#include "server/service/digest.h"
#include "server/service/utf8.h"
#include "tests/server/service/service_testing.h"

namespace smt {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

class GenerationTest : public ServiceTest {};

TEST_F(GenerationTest, AStreamStartsGivesItsTextAndFinishes) {
  const Streamed out = Stream(Spec("hello", 20));
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.text, Expected(5, 20));
  EXPECT_THAT(out.ids, SizeIs(20));
  ASSERT_TRUE(out.events.front().has_started());
  EXPECT_EQ(out.started.session(), "");
  EXPECT_EQ(out.started.start_position(), 0);
  EXPECT_EQ(out.started.prompt_tokens(), 5);
  EXPECT_EQ(out.started.max_tokens(), 20);
  ASSERT_TRUE(out.events.back().has_finished());
  EXPECT_EQ(out.finished.reason(), v1::FINISH_REASON_MAX_TOKENS);
  EXPECT_EQ(out.finished.position(), 25);
  EXPECT_EQ(out.finished.text_position(), 25);
  EXPECT_EQ(out.finished.usage().prompt_tokens(), 5);
  EXPECT_EQ(out.finished.usage().generated_tokens(), 20);
}

TEST_F(GenerationTest, PositionsAndDigestsOfChunksFollowTheIds) {
  model_->step_us = 200;
  const Streamed out = Stream(Spec("abc", 50));
  RunningDigest digest(0, "");
  int64_t position = 3;
  for (const v1::GenerationEvent& event : out.events) {
    if (!event.has_chunk()) continue;
    for (const int32_t id : event.chunk().token_ids()) digest.Add(id);
    position += event.chunk().token_ids_size();
    EXPECT_EQ(event.chunk().position(), position);
    EXPECT_EQ(event.chunk().digest(), digest.bytes());
  }
  EXPECT_EQ(position, 53);
  EXPECT_EQ(out.finished.digest(), digest.bytes());
  EXPECT_EQ(out.started.digest(), RunningDigest(0, "").bytes());
}

TEST_F(GenerationTest, GenerateGivesWhatTheStreamGave) {
  v1::GenerationSpec spec = Spec("hello", 30);
  spec.mutable_output()->set_top_logprobs(2);
  spec.mutable_output()->set_prompt_logprobs(0);
  spec.mutable_output()->set_echo(true);
  const Streamed streamed = Stream(spec);
  v1::GenerateRequest request;
  *request.mutable_spec() = spec;
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const grpc::Status status = generation().Generate(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.text(), streamed.echo + streamed.text);
  EXPECT_EQ(response.token_ids_size(), 35);
  EXPECT_EQ(response.logprobs_size(), 30);
  EXPECT_EQ(response.prompt_logprobs_size(), 5);
  EXPECT_EQ(response.finished().digest(), streamed.finished.digest());
  EXPECT_EQ(response.started().prompt_tokens(), 5);
}

TEST_F(GenerationTest, MaxTokensZeroOnlyIngests) {
  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 0);
  spec.set_session("sessions/s");
  const Streamed out = Stream(spec);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.text, "");
  EXPECT_EQ(out.finished.reason(), v1::FINISH_REASON_MAX_TOKENS);
  EXPECT_EQ(out.finished.position(), 5);
  EXPECT_EQ(GetSession("s").position(), 5);
}

TEST_F(GenerationTest, TheSeedIsReportedAsGivenOrDrawn) {
  v1::GenerationSpec spec = Spec("x", 1);
  spec.mutable_sampling()->set_seed(-5);
  EXPECT_EQ(Stream(spec).started.seed(), -5);
  spec.mutable_sampling()->clear_seed();
  EXPECT_NE(Stream(spec).started.seed(), Stream(spec).started.seed());
}

TEST_F(GenerationTest, ANewSessionGivenTextStartsWithBosButExplicitIdsAreTakenAsGiven) {
  context_.bos = kBos;
  EXPECT_EQ(Stream(Spec("ab", 1)).started.prompt_tokens(), 3);
  EXPECT_EQ(Stream(Spec("", 1)).started.prompt_tokens(), 1);
  v1::GenerationSpec ids = Spec("", 1);
  ids.mutable_token_ids()->add_ids('a');
  EXPECT_EQ(Stream(ids).started.prompt_tokens(), 1);

  CreateSession("s");
  v1::GenerationSpec spec = Spec("ab", 0);
  spec.set_session("sessions/s");
  EXPECT_EQ(Stream(spec).started.prompt_tokens(), 3);
  EXPECT_EQ(Stream(spec).started.prompt_tokens(), 2) << "the session is no longer new";
  EXPECT_THAT(*session_manager_->ReadLog("s", 1, 5), ElementsAre(kBos, 'a', 'b', 'a', 'b'));
}

TEST_F(GenerationTest, SpecialTokensInTextAreTextUnlessAskedFor) {
  EXPECT_EQ(Stream(Spec("<eos>", 1)).started.prompt_tokens(), 5);
  v1::GenerationSpec spec = Spec("<eos>", 1);
  spec.set_parse_special_tokens(true);
  EXPECT_EQ(Stream(spec).started.prompt_tokens(), 1);
}

TEST_F(GenerationTest, EchoComesFirstAndIsMarked) {
  v1::GenerationSpec spec = Spec("h\xC3\xA9llo", 3);
  spec.mutable_output()->set_echo(true);
  const Streamed out = Stream(spec);
  EXPECT_EQ(out.echo, "h\xC3\xA9llo");
  EXPECT_EQ(out.text, Expected(6, 3));
  ASSERT_GE(out.events.size(), 3u);
  EXPECT_TRUE(out.events[1].chunk().echo());
  EXPECT_EQ(out.events[1].chunk().position(), 6);
}

TEST_F(GenerationTest, EveryChunkIsValidUtf8) {
  model_->script = {0xF0, 0x9F, 0x98, 0x80, 'a', 0xFF, 0xC3, 0xA9, 0xE2, 0x82};
  model_->step_us = 100;
  const Streamed out = Stream(Spec("0123456789", 60));
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  std::string expected;
  AppendSanitizedUtf8(Expected(10, 60), &expected);
  EXPECT_EQ(out.text, expected);
  for (const auto& event : out.events) EXPECT_TRUE(IsValidUtf8(event.chunk().text()));
}

TEST_F(GenerationTest, AStopStringEndsTheTextAndNeverLeaks) {
  model_->step_us = 100;
  v1::GenerationSpec spec = Spec("0123456789", 100);
  spec.mutable_stopping()->add_stop_strings("never");
  spec.mutable_stopping()->add_stop_strings("efg");
  const Streamed out = Stream(spec);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.text, "abcd");
  EXPECT_EQ(out.finished.reason(), v1::FINISH_REASON_STOP_STRING);
  EXPECT_EQ(out.finished.stop_string(), "efg");
  EXPECT_EQ(out.finished.position(), 17) << "the log has the stop string's ids";
  EXPECT_EQ(out.finished.text_position(), 14);
}

TEST_F(GenerationTest, TextBeforeAStopStringInsideAnIdIsSent) {
  model_->script = {'x', kWorld, 'y'};
  v1::GenerationSpec spec = Spec("abc", 10);
  spec.mutable_stopping()->add_stop_strings("ld.");
  const Streamed out = Stream(spec);
  EXPECT_EQ(out.text, "x wor");
  EXPECT_THAT(out.ids, ElementsAre('x'));
  EXPECT_EQ(out.finished.position(), 5);
  EXPECT_EQ(out.finished.text_position(), 4);
}

TEST_F(GenerationTest, AStopTokenIsInTheLogButItsTextIsNotSent) {
  model_->script = {'a', 'b', kEos, 'c'};
  CreateSession("s");
  v1::GenerationSpec spec = Spec("0123", 100);
  spec.set_session("sessions/s");
  const Streamed out = Stream(spec);
  EXPECT_EQ(out.text, "ab");
  EXPECT_EQ(out.finished.reason(), v1::FINISH_REASON_STOP_TOKEN);
  EXPECT_EQ(out.finished.stop_token_id(), kEos);
  EXPECT_EQ(out.finished.position(), 7);
  EXPECT_EQ(out.finished.text_position(), 6);
  EXPECT_EQ(GetSession("s").position(), 7);
  spec.set_text("x");
  spec.mutable_stopping()->set_ignore_eos(true);
  spec.mutable_stopping()->set_max_tokens(4);
  EXPECT_EQ(Stream(spec).text, "ab<eos>c");
}

TEST_F(GenerationTest, LogprobsComeWithTheirIds) {
  v1::GenerationSpec spec = Spec("ab", 3);
  spec.mutable_output()->set_top_logprobs(2);
  spec.mutable_output()->set_prompt_logprobs(1);
  const Streamed out = Stream(spec);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  std::vector<int32_t> ids, prompt_ids;
  for (const auto& event : out.events) {
    for (const auto& logprob : event.chunk().logprobs()) {
      ids.push_back(logprob.token_id());
      EXPECT_FLOAT_EQ(logprob.logprob(), -0.5f - static_cast<float>(logprob.token_id()));
      EXPECT_THAT(logprob.alternatives(), SizeIs(2));
      EXPECT_EQ(logprob.token_bytes(), codec_.token_bytes()[logprob.token_id()]);
    }
    for (const auto& logprob : event.prompt_logprobs().logprobs()) {
      prompt_ids.push_back(logprob.token_id());
      EXPECT_EQ(event.prompt_logprobs().first_position(), static_cast<int64_t>(prompt_ids.size()));
      EXPECT_EQ(logprob.has_logprob(), prompt_ids.size() > 1) << "nothing precedes the first id of a session";
    }
  }
  EXPECT_THAT(ids, ElementsAreArray(out.ids));
  EXPECT_THAT(prompt_ids, ElementsAre('a', 'b'));
}

TEST_F(GenerationTest, ASessionGoesOnWhereItStood) {
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

TEST_F(GenerationTest, AnUnknownSessionIsNotFoundUnlessItMayBeCreated) {
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

TEST_F(GenerationTest, AnEmptySessionNeedsAPrompt) {
  CreateSession("s");
  v1::GenerationSpec spec = Spec("", 1);
  spec.clear_input();
  spec.set_session("sessions/s");
  const Streamed out = Stream(spec);
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(out.status).fields, ElementsAre("spec.input"));
}

TEST_F(GenerationTest, TheSecondWriterOfASessionIsAbortedOrWaits) {
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

TEST_F(GenerationTest, AWaiterThatVanishesNeverGetsItsTurn) {
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

TEST_F(GenerationTest, ARefusedRequestLeavesNoSessionBehind) {
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

TEST_F(GenerationTest, AnUnexpectedPositionIsAborted) {
  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 1);
  spec.set_session("sessions/s");
  spec.set_expected_position(3);
  EXPECT_EQ(Stream(spec).status.error_code(), grpc::StatusCode::ABORTED);
  spec.set_expected_position(0);
  EXPECT_TRUE(Stream(spec).status.ok());
  EXPECT_EQ(Stream(spec).status.error_code(), grpc::StatusCode::ABORTED) << "a late retry";
}

TEST_F(GenerationTest, TheSameRequestIdReplaysTheOutcomeWithoutComputing) {
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

TEST_F(GenerationTest, GetGenerationTellsHowARequestEnded) {
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

class InterruptedStartTest : public GenerationTest {
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

TEST_F(GenerationTest, CancelGenerationEndsTheStreamWithItsTokens) {
  model_->step_us = 2000;
  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 100'000);
  spec.set_session("sessions/s");
  spec.set_request_id("r1");
  v1::CancelGenerationResponse response;
  const Streamed out = Stream(spec, [&, asked = false](const v1::GenerationEvent& event) mutable {
    if (event.has_chunk() && !asked) {
      asked = true;
      v1::CancelGenerationRequest request;
      request.set_session("sessions/s");
      request.set_request_id("r1");
      grpc::ClientContext context;
      EXPECT_TRUE(generation().CancelGeneration(&context, request, &response).ok());
    }
    return true;
  });
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.finished.reason(), v1::FINISH_REASON_CANCELLED);
  EXPECT_EQ(out.text, Expected(5, out.finished.usage().generated_tokens()));
  EXPECT_EQ(response.generation().state(), v1::GENERATION_STATE_CANCELLED);
  EXPECT_EQ(response.generation().position(), out.finished.position());
  EXPECT_EQ(GetSession("s").position(), out.finished.position());
}

class DisconnectTest : public ServiceTest, public testing::WithParamInterface<v1::DisconnectPolicy> {};

TEST_P(DisconnectTest, AVanishedClientLeavesTheSessionAtATokenBoundary) {
  const v1::DisconnectPolicy policy = GetParam();
  model_->step_us = 1000;
  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 300);
  spec.set_session("sessions/s");
  spec.set_request_id("r1");
  spec.set_on_disconnect(policy);
  const Streamed out = Stream(spec, [](const v1::GenerationEvent& event) { return !event.has_chunk(); });
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::CANCELLED);
  ASSERT_TRUE(Eventually([&] { return !GetSession("s").active(); }));
  const absl::StatusOr<RequestRecord> record = session_manager_->GetRequest("s", "r1");
  ASSERT_OK(record);
  const int64_t position = GetSession("s").position();
  EXPECT_EQ(record->end_position, position);
  if (policy == v1::DISCONNECT_POLICY_CONTINUE) {
    EXPECT_EQ(record->state, RequestState::kFinished);
    EXPECT_EQ(position, 305);
    const Streamed replay = Stream(spec);
    EXPECT_EQ(replay.text, Expected(5, 300)) << "the outcome was kept";
  } else {
    EXPECT_LT(position, 305);
    EXPECT_EQ(record->state,
              policy == v1::DISCONNECT_POLICY_CANCEL ? RequestState::kCancelled : RequestState::kInterrupted);
  }
  v1::GenerationSpec next = Spec("x", 4);
  next.set_session("sessions/s");
  const int64_t now = GetSession("s").position();
  EXPECT_EQ(Stream(next).text, Expected(now + 1, 4)) << "log and state agree";
}
INSTANTIATE_TEST_SUITE_P(Policies, DisconnectTest,
                         testing::Values(v1::DISCONNECT_POLICY_UNSPECIFIED, v1::DISCONNECT_POLICY_CANCEL,
                                         v1::DISCONNECT_POLICY_CONTINUE));

TEST_F(GenerationTest, AClientThatVanishesAtAnyMomentHarmsNobody) {
  model_->step_us = 300;
  CreateSession("s");
  int64_t position = 0;
  for (int delay_us = 0; delay_us < 6000; delay_us += 200) {
    v1::StreamGenerateRequest request;
    *request.mutable_spec() = Spec("ab", 10);
    request.mutable_spec()->set_session("sessions/s");
    request.mutable_spec()->set_wait_for_session(true);
    grpc::ClientContext context;
    auto reader = generation().StreamGenerate(&context, request);
    absl::SleepFor(absl::Microseconds(delay_us));
    context.TryCancel();
    v1::StreamGenerateResponse response;
    while (reader->Read(&response)) {
    }
    reader->Finish();
  }
  ASSERT_TRUE(Eventually([&] { return engine_->stats().running == 0 && !GetSession("s").active(); }));
  position = GetSession("s").position();
  v1::GenerationSpec spec = Spec("x", 5);
  spec.set_session("sessions/s");
  spec.set_wait_for_session(true);
  const Streamed out = Stream(spec);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_GE(out.started.start_position(), position);
  EXPECT_EQ(out.text, Expected(out.started.start_position() + 1, 5));
}

TEST_F(GenerationTest, TheDeadlineOfTheCallEndsTheGeneration) {
  model_->step_us = 1000;
  CreateSession("s");
  v1::StreamGenerateRequest request;
  *request.mutable_spec() = Spec("hello", 100'000);
  request.mutable_spec()->set_session("sessions/s");
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Milliseconds(100)));
  auto reader = generation().StreamGenerate(&context, request);
  v1::StreamGenerateResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] { return engine_->stats().running == 0 && !GetSession("s").active(); }));
}

TEST_F(GenerationTest, MaxDurationEndsTheGeneration) {
  model_->step_us = 1000;
  v1::GenerationSpec spec = Spec("hello", 100'000);
  spec.mutable_max_duration()->set_nanos(50'000'000);
  const Streamed out = Stream(spec);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.finished.reason(), v1::FINISH_REASON_MAX_DURATION);
  EXPECT_EQ(out.text, Expected(5, out.finished.usage().generated_tokens()));
}

TEST_F(GenerationTest, ASlowReaderIsPausedAndHoldsUpNobodyElse) {
  // In this process a write is done when its reader took it, so nothing hides in a socket's buffers.
  StartServer();
  auto stub = v1::GenerationService::NewStub(server_->InProcessChannel());
  v1::StreamGenerateRequest request;
  *request.mutable_spec() = Spec("hello", 20'000);
  grpc::ClientContext context;
  auto reader = stub->StreamGenerate(&context, request);
  ASSERT_TRUE(Eventually([&] { return engine_->stats().paused == 1; }));
  EXPECT_EQ(Stream(Spec("other", 2000)).text, Expected(5, 2000)) << "others go on";
  EXPECT_EQ(engine_->stats().paused, 1);
  std::string text;
  int64_t chunks = 0;
  v1::StreamGenerateResponse response;
  while (reader->Read(&response)) {
    text += response.event().chunk().text();
    ++chunks;
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, Expected(5, 20'000));
  EXPECT_LT(chunks, 15'000) << "what piles up goes out together";
}

TEST_F(GenerationTest, ALongPromptReportsItsProgress) {
  engine_options_.ingest_tokens_per_step = 64;
  engine_options_.ingest_tokens_per_step_idle = 64;
  model_->ingest_us = 200;
  const Streamed out = Stream(Spec(std::string(12'000, 'x'), 2));
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  int64_t last = 0;
  int progress = 0;
  for (const auto& event : out.events) {
    if (!event.has_progress()) continue;
    ++progress;
    EXPECT_GT(event.progress().ingested_tokens(), last);
    EXPECT_EQ(event.progress().total_tokens(), 12'000);
    last = event.progress().ingested_tokens();
  }
  EXPECT_GE(progress, 1);
  EXPECT_LE(progress, 4) << "once a second";
}

TEST_F(GenerationTest, ADrainingServerRefusesAndEndsRunningStreamsWithTheirPosition) {
  model_->step_us = 1000;
  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 100'000);
  spec.set_session("sessions/s");
  std::thread drain;
  const Streamed out = Stream(spec, [&](const v1::GenerationEvent& event) {
    if (event.has_chunk() && !drain.joinable()) {
      context_.draining = true;
      drain = std::thread([&] { engine_->Drain(); });
    }
    return true;
  });
  drain.join();
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  const ErrorDetails details = DetailsOf(out.status);
  EXPECT_EQ(details.info.reason(), "DRAINING");
  EXPECT_TRUE(details.has_retry);
  const int64_t position = GetSession("s").position();
  EXPECT_EQ(details.info.metadata().at("position"), std::to_string(position));
  EXPECT_EQ(out.text, Expected(5, static_cast<int64_t>(out.ids.size())));
  const Streamed refused = Stream(Spec("x", 1));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(refused.status).info.reason(), "DRAINING");
}

TEST_F(GenerationTest, ADeviceFaultIsUnavailable) {
  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 100'000);
  spec.set_session("sessions/s");
  model_->step_us = 1000;
  const Streamed out = Stream(spec, [&](const v1::GenerationEvent& event) {
    if (event.has_chunk()) model_->broken = true;
    return true;
  });
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::UNAVAILABLE) << out.status.error_message();
  const ErrorDetails details = DetailsOf(out.status);
  EXPECT_EQ(details.info.reason(), "DEVICE_FAULT");
  EXPECT_TRUE(details.has_retry);
  const int64_t position = GetSession("s").position();
  EXPECT_EQ(details.info.metadata().at("position"), std::to_string(position));
  EXPECT_THAT(out.status.error_message(), HasSubstr("on fire; session 's' stands at position " +
                                                    std::to_string(position) + "; go on from there once"));
  EXPECT_EQ(out.text, Expected(5, static_cast<int64_t>(out.ids.size())));
}

TEST_F(GenerationTest, AfterADeviceFaultRequestsAreRefusedBeforeTheirPromptIsLogged) {
  CreateSession("s");
  model_->broken = true;
  EXPECT_THAT(Stream(Spec("hello", 1)).status.error_message(), HasSubstr("on fire; send the request again once"));
  v1::GenerationSpec spec = Spec("hello", 1);
  spec.set_session("sessions/s");
  const Streamed refused = Stream(spec);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(refused.status).info.reason(), "DEVICE_FAULT");
  EXPECT_EQ(GetSession("s").position(), 0);
}

TEST_F(GenerationTest, AFullQueueIsUnavailableBeforeThePromptIsLogged) {
  slots_ = 1;
  engine_options_.max_queue = 0;
  StartServer();
  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 1);
  spec.set_session("sessions/s");
  const Streamed out = Stream(spec);
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(out.status).info.reason(), "QUEUE_FULL");
  EXPECT_EQ(GetSession("s").position(), 0);
}

TEST_F(GenerationTest, AFailedSyncIsToldInsteadOfFinished) {
  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 50);
  spec.set_session("sessions/s");
  model_->step_us = 1000;
  const Streamed out = Stream(spec, [&](const v1::GenerationEvent& event) {
    if (event.has_chunk()) store_->FailCommits(1000, absl::UnavailableError("the disk is gone"));
    return true;
  });
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::UNAVAILABLE) << out.status.error_message();
  EXPECT_THAT(out.finished.reason(), v1::FINISH_REASON_UNSPECIFIED);
}

// The request runs while its record is on the way to the disk; its client hears nothing before that is there.
TEST_F(GenerationTest, NothingIsToldBeforeTheRequestIsOnDisk) {
  int turns = 0;
  for (const v1::Durability durability : {v1::DURABILITY_TURN, v1::DURABILITY_TOKEN}) {
    const std::string id = durability == v1::DURABILITY_TURN ? "turn" : "token";
    CreateSession(id);
    v1::GenerationSpec spec = Spec("hello", 20);
    spec.set_session("sessions/" + id);
    spec.set_request_id("r");
    spec.mutable_output()->set_echo(true);
    spec.set_durability(durability);
    store_->Hold(true);
    std::atomic<bool> told{false};
    Streamed out;
    std::thread reader([&] {
      out = Stream(spec, [&](const v1::GenerationEvent&) {
        told = true;
        return true;
      });
    });
    store_->WaitUntilCommitWaits();
    const std::string ended = StrCat("smt_generations_finished_total{reason=\"max_tokens\"} ", ++turns, "\n");
    EXPECT_TRUE(Eventually([&] { return metrics_.Text().find(ended) != std::string::npos; }));
    absl::SleepFor(absl::Milliseconds(50));
    EXPECT_FALSE(told);
    v1::GetGenerationRequest get;
    get.set_session(spec.session());
    get.set_request_id("r");
    v1::GetGenerationResponse got;
    grpc::ClientContext context;
    ASSERT_TRUE(generation().GetGeneration(&context, get, &got).ok());
    EXPECT_EQ(got.generation().position(), 5) << "of what is not told yet";
    store_->Hold(false);
    reader.join();
    ASSERT_TRUE(out.status.ok()) << out.status.error_message();
    ASSERT_TRUE(out.events[0].has_started());
    EXPECT_EQ(out.started.durable_position(), 5);
    EXPECT_EQ(out.echo, "hello");
    EXPECT_EQ(out.text, Expected(5, 20));
    EXPECT_EQ(out.finished.durable_position(), 25);
  }
}

TEST_F(GenerationTest, ARequestThatCannotBeRecordedIsRefusedAndItsSessionStaysAsItWas) {
  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 3);
  spec.set_session("sessions/s");
  ASSERT_TRUE(Stream(spec).status.ok());
  const v1::Session before = GetSession("s");
  model_->step_us = 500;
  for (const int64_t max_tokens : {int64_t{0}, int64_t{1}, int64_t{100'000}}) {  // it ends before or after it fails
    spec.set_request_id("r");
    spec.mutable_stopping()->set_max_tokens(max_tokens);
    store_->FailCommits(1, absl::ResourceExhaustedError("no space left"));
    const Streamed out = Stream(spec);
    EXPECT_EQ(out.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(out.status.error_message(), "no space left");
    EXPECT_THAT(out.events, IsEmpty());
    const v1::Session after = GetSession("s");
    EXPECT_EQ(after.position(), 8);
    EXPECT_EQ(after.etag(), before.etag());
    EXPECT_FALSE(after.active());
    v1::GetGenerationRequest get;
    get.set_session("sessions/s");
    get.set_request_id("r");
    v1::GetGenerationResponse got;
    grpc::ClientContext context;
    EXPECT_EQ(generation().GetGeneration(&context, get, &got).error_code(), grpc::StatusCode::NOT_FOUND);
  }
  spec.mutable_stopping()->set_max_tokens(4);
  const Streamed again = Stream(spec);
  ASSERT_TRUE(again.status.ok()) << again.status.error_message();
  EXPECT_EQ(again.started.start_position(), 8);
  EXPECT_EQ(again.text, Expected(13, 4));
}

TEST_F(GenerationTest, ARequestThatCannotBeRecordedLeavesNoSessionBehind) {
  v1::GenerationSpec spec = Spec("hello", 100'000);
  spec.set_session("sessions/s");
  spec.set_create_session(true);
  generation();
  store_->FailWrite(absl::UnavailableError("the sync failed"),  // without which the session is made
                    [](const SessionWrite&, bool sync) { return sync; });
  const Streamed out = Stream(spec);
  EXPECT_EQ(out.status.error_message(), "the sync failed");
  EXPECT_THAT(out.events, IsEmpty());
  EXPECT_THAT(session_manager_->Get("s"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("'s'")));
}

TEST_F(GenerationTest, ATurnThatMakesItsSessionSyncsOnceBeforeItStartsAndOnceAtItsEnd) {
  v1::GenerationSpec spec = Spec("hello", 3);
  spec.set_session("sessions/s");
  spec.set_create_session(true);
  generation();
  const int64_t syncs = store_->syncs();
  ASSERT_TRUE(Stream(spec).status.ok());
  EXPECT_EQ(store_->syncs() - syncs, 2);
}

TEST_F(GenerationTest, WithTokenDurabilityNothingIsSentThatIsNotOnDisk) {
  CreateSession("s");
  model_->step_us = 200;
  v1::GenerationSpec spec = Spec("hello", 100);
  spec.set_session("sessions/s");
  spec.set_durability(v1::DURABILITY_TOKEN);
  const int64_t syncs = store_->syncs();
  const Streamed out = Stream(spec, [](const v1::GenerationEvent& event) {
    if (event.has_chunk()) {
      EXPECT_LE(event.chunk().position(), event.chunk().durable_position());
    }
    return true;
  });
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.text, Expected(5, 100));
  EXPECT_EQ(out.finished.durable_position(), 105);
  EXPECT_GT(store_->syncs(), syncs + 10);
}

TEST_F(GenerationTest, WithTokenDurabilityAStoreThatFailsEndsTheStreamAtWhatIsOnDisk) {
  CreateSession("s");
  model_->step_us = 500;
  v1::GenerationSpec spec = Spec("hello", 5000);
  spec.set_session("sessions/s");
  spec.set_request_id("r");
  spec.set_durability(v1::DURABILITY_TOKEN);
  const Streamed out = Stream(spec, [&](const v1::GenerationEvent& event) {
    if (event.has_chunk() && event.chunk().position() > 20) {
      store_->FailCommits(1, absl::ResourceExhaustedError("no space left"));
    }
    return true;
  });
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << out.status.error_message();
  const auto sent = static_cast<int64_t>(out.text.size());
  EXPECT_EQ(out.text, Expected(5, sent));
  EXPECT_LT(sent, 5000);
  EXPECT_GE(GetSession("s").position(), 5 + sent) << "what was sent is in the log";
}

TEST_F(GenerationTest, ScoreGivesTheLogprobOfEachIdAndItsSum) {
  v1::ScoreRequest request;
  request.set_text("ab");
  request.set_top_logprobs(1);
  const auto score = [&](const v1::ScoreRequest& r, std::vector<v1::TokenLogprob>* entries, v1::ScoreSummary* summary) {
    grpc::ClientContext context;
    auto reader = generation().Score(&context, r);
    v1::ScoreResponse response;
    while (reader->Read(&response)) {
      for (const auto& entry : response.scores().logprobs()) entries->push_back(entry);
      if (response.has_summary()) *summary = response.summary();
    }
    return reader->Finish();
  };
  std::vector<v1::TokenLogprob> entries;
  v1::ScoreSummary summary;
  ASSERT_TRUE(score(request, &entries, &summary).ok());
  ASSERT_THAT(entries, SizeIs(2));
  EXPECT_FALSE(entries[0].has_logprob()) << "nothing precedes it";
  EXPECT_FLOAT_EQ(entries[1].logprob(), -0.5f - 'b');
  EXPECT_EQ(summary.scored_tokens(), 1);
  EXPECT_DOUBLE_EQ(summary.total_logprob(), -0.5 - 'b');

  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 3);
  spec.set_session("sessions/s");
  Stream(spec);
  request.set_session("sessions/s");
  entries.clear();
  ASSERT_TRUE(score(request, &entries, &summary).ok());
  ASSERT_THAT(entries, SizeIs(2));
  EXPECT_TRUE(entries[0].has_logprob()) << "the session precedes it";
  EXPECT_EQ(summary.position(), 8);
  EXPECT_EQ(GetSession("s").position(), 8) << "only read";
  request.set_expected_position(7);
  EXPECT_EQ(score(request, &entries, &summary).error_code(), grpc::StatusCode::ABORTED);
}

TEST_F(GenerationTest, LongScoresComeInMessagesOfAtMostOneMebibyte) {
  v1::ScoreRequest request;
  request.set_text(std::string(30'000, 'x'));
  request.set_top_logprobs(20);
  grpc::ClientContext context;
  auto reader = generation().Score(&context, request);
  v1::ScoreResponse response;
  int64_t entries = 0, next = 1;
  int messages = 0;
  while (reader->Read(&response)) {
    EXPECT_LE(response.ByteSizeLong(), size_t{1} << 20);
    if (!response.has_scores()) continue;
    EXPECT_EQ(response.scores().first_position(), next);
    entries += response.scores().logprobs_size();
    next += response.scores().logprobs_size();
    ++messages;
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(entries, 30'000);
  EXPECT_GT(messages, 1);
}

TEST_F(GenerationTest, TokenizeAndDetokenizeAreInverse) {
  v1::TokenizeRequest request;
  request.set_text_bytes("h\xC3\xA9 \xFF");
  v1::TokenizeResponse tokens;
  grpc::ClientContext context;
  ASSERT_TRUE(generation().Tokenize(&context, request, &tokens).ok());
  EXPECT_THAT(tokens.token_ids(), ElementsAre('h', 0xC3, 0xA9, ' ', 0xFF));
  v1::DetokenizeRequest back;
  *back.mutable_token_ids() = tokens.token_ids();
  back.add_token_ids(kEos);
  v1::DetokenizeResponse text;
  grpc::ClientContext other;
  ASSERT_TRUE(generation().Detokenize(&other, back, &text).ok());
  EXPECT_EQ(text.text_bytes(), "h\xC3\xA9 \xFF<eos>");
  EXPECT_EQ(text.text(), "h\xC3\xA9 \xEF\xBF\xBD<eos>");
  back.set_skip_special_tokens(true);
  grpc::ClientContext third;
  ASSERT_TRUE(generation().Detokenize(&third, back, &text).ok());
  EXPECT_EQ(text.text_bytes(), "h\xC3\xA9 \xFF");
}

TEST_F(GenerationTest, ManyStreamsAtOnceEachGetTheirOwnText) {
  slots_ = 3;
  engine_options_.max_queue = 64;
  StartServer();
  std::vector<std::thread> clients;
  for (int i = 0; i < 12; ++i) {
    clients.emplace_back([&, i] {
      const std::string prompt(i + 1, 'x');
      EXPECT_EQ(Stream(Spec(prompt, 100)).text, Expected(i + 1, 100));
    });
  }
  for (std::thread& client : clients) client.join();
}

}  // namespace
}  // namespace smt
