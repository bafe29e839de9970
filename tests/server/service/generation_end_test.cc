// How streams end: cancelled, left by their clients, late, slow, drained, refused, with a device that fails.
#include <thread>

#include "tests/server/service/service_testing.h"

namespace smt {
namespace {

using testing::HasSubstr;

class GenerationEndTest : public ServiceTest {};

TEST_F(GenerationEndTest, CancelGenerationEndsTheStreamWithItsTokens) {
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

TEST_F(GenerationEndTest, AClientThatVanishesAtAnyMomentHarmsNobody) {
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

TEST_F(GenerationEndTest, TheDeadlineOfTheCallEndsTheGeneration) {
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

TEST_F(GenerationEndTest, MaxDurationEndsTheGeneration) {
  model_->step_us = 1000;
  v1::GenerationSpec spec = Spec("hello", 100'000);
  spec.mutable_max_duration()->set_nanos(50'000'000);
  const Streamed out = Stream(spec);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.finished.reason(), v1::FINISH_REASON_MAX_DURATION);
  EXPECT_EQ(out.text, Expected(5, out.finished.usage().generated_tokens()));
}

TEST_F(GenerationEndTest, ASlowReaderIsPausedAndHoldsUpNobodyElse) {
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

TEST_F(GenerationEndTest, ALongPromptReportsItsProgress) {
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

TEST_F(GenerationEndTest, ADrainingServerRefusesAndEndsRunningStreamsWithTheirPosition) {
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

TEST_F(GenerationEndTest, ADeviceFaultIsUnavailable) {
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

TEST_F(GenerationEndTest, AfterADeviceFaultRequestsAreRefusedBeforeTheirPromptIsLogged) {
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

TEST_F(GenerationEndTest, AFullQueueIsUnavailableBeforeThePromptIsLogged) {
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

}  // namespace
}  // namespace smt
