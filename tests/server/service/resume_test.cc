// ResumeGenerate: whatever breaks a stream off, what the client has and what comes afterwards are one stream.
#include <algorithm>
#include <thread>

#include "server/service/digest.h"
#include "tests/server/service/service_testing.h"

namespace smt {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

class ResumeTest : public ServiceTest {
 protected:
  void SetUp() override { CreateSession("s"); }

  static v1::GenerationSpec SessionSpec(const std::string& request_id, int64_t max_tokens) {
    v1::GenerationSpec spec = Spec("hello", max_tokens);
    spec.set_session("sessions/s");
    spec.set_request_id(request_id);
    return spec;
  }

  // What a client keeps of a stream.
  struct Kept {
    std::string text, digest;
    std::vector<int32_t> ids;
    int64_t position = 0;
  };
  // Reads until `tokens` ids have come, drops the call, and waits for the server to notice.
  Kept BreakOff(const v1::GenerationSpec& spec, size_t tokens) {
    Kept kept;
    model_->step_us = 500;
    Stream(spec, [&](const v1::GenerationEvent& event) {
      Keep(event, &kept);
      return kept.ids.size() < tokens;
    });
    const bool goes_on = spec.on_disconnect() == v1::DISCONNECT_POLICY_CONTINUE;
    EXPECT_TRUE(goes_on || Eventually([&] { return StateOf(spec.request_id()) != v1::GENERATION_STATE_RUNNING; }));
    model_->step_us = 0;
    return kept;
  }
  // The same on a session made anew.
  Kept BreakOffAnew(const v1::GenerationSpec& spec, size_t tokens) {
    grpc::ClientContext context;
    v1::DeleteSessionRequest remove;
    remove.set_name("sessions/s");
    v1::DeleteSessionResponse removed;
    EXPECT_TRUE(sessions().DeleteSession(&context, remove, &removed).ok());
    CreateSession("s");
    return BreakOff(spec, tokens);
  }
  static void Keep(const v1::GenerationEvent& event, Kept* kept) {
    if (event.has_started()) {
      kept->position = event.started().start_position() + event.started().prompt_tokens();
      kept->digest = event.started().digest();
    }
    if (!event.has_chunk()) return;
    kept->text += event.chunk().text();
    kept->ids.insert(kept->ids.end(), event.chunk().token_ids().begin(), event.chunk().token_ids().end());
    kept->position = event.chunk().position();
    kept->digest = event.chunk().digest();
  }
  v1::GenerationState StateOf(const std::string& request_id) {
    v1::GetGenerationRequest request;
    request.set_session("sessions/s");
    request.set_request_id(request_id);
    grpc::ClientContext context;
    v1::GetGenerationResponse response;
    EXPECT_TRUE(generation().GetGeneration(&context, request, &response).ok());
    return response.generation().state();
  }
  bool Parked(const std::string& request_id) {
    return Eventually([&] { return StateOf(request_id) == v1::GENERATION_STATE_PARKED; });
  }
};

TEST_F(ResumeTest, AStreamThatBrokeOffGoesOnPastWhatTheClientHas) {
  const Kept kept = BreakOff(SessionSpec("r", 200), 20);
  ASSERT_TRUE(Parked("r"));
  const Streamed rest = Resume("r", kept.position, kept.digest);
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(kept.text + rest.text, Expected(5, 200));
  EXPECT_EQ(rest.started.start_position(), 0);
  EXPECT_EQ(rest.started.prompt_tokens(), 5);
  EXPECT_FALSE(rest.started.replayed());
  EXPECT_EQ(rest.finished.reason(), v1::FINISH_REASON_MAX_TOKENS);
  EXPECT_EQ(rest.finished.usage().prompt_tokens(), 5);
  EXPECT_EQ(rest.finished.usage().generated_tokens(), 200);
  EXPECT_EQ(rest.finished.position(), 205);
  RunningDigest digest(0, "r");
  for (const char c : kept.text + rest.text) digest.Add(static_cast<unsigned char>(c));
  EXPECT_EQ(rest.finished.digest(), digest.bytes());
  EXPECT_EQ(StateOf("r"), v1::GENERATION_STATE_FINISHED);
  EXPECT_EQ(GetSession("s").position(), 205);
}

TEST_F(ResumeTest, AClientMayLoseItsStreamAgainAndAgainAndForgetWhatItHad) {
  Kept kept = BreakOff(SessionSpec("r", 300), 10);
  model_->step_us = 200;
  for (int broken = 0; broken < 8; ++broken) {
    ASSERT_TRUE(Parked("r"));
    const size_t had = kept.ids.size();
    const Streamed out = Resume("r", kept.position, kept.digest, [&](const v1::GenerationEvent& event) {
      if (event.has_chunk()) Keep(event, &kept);
      return kept.ids.size() < had + 20;
    });
    ASSERT_EQ(kept.text, Expected(5, static_cast<int64_t>(kept.ids.size())));
  }
  ASSERT_TRUE(Parked("r"));
  EXPECT_EQ(Resume("r", 5).text, Expected(5, 300)) << "from the start";
}

TEST_F(ResumeTest, WhatHasEndedIsReplayedFromAnyPoint) {
  const Streamed whole = Stream(SessionSpec("r", 50));
  const int64_t steps = model_->steps;
  const Streamed all = Resume("r", 5, whole.started.digest());
  EXPECT_EQ(all.text, whole.text);
  EXPECT_TRUE(all.started.replayed());
  RunningDigest digest(0, "r");
  for (size_t i = 0; i < whole.ids.size(); ++i) {
    digest.Add(whole.ids[i]);
    const Streamed rest = Resume("r", 6 + static_cast<int64_t>(i), digest.bytes());
    ASSERT_TRUE(rest.status.ok()) << i << rest.status.error_message();
    ASSERT_EQ(rest.text, whole.text.substr(i + 1));
    ASSERT_EQ(rest.finished.SerializeAsString(), all.finished.SerializeAsString());
  }
  EXPECT_EQ(model_->steps, steps) << "nothing is computed";
}

TEST_F(ResumeTest, AnotherTextIsNeverSplicedOn) {
  const Kept kept = BreakOff(SessionSpec("r", 100), 10);
  ASSERT_TRUE(Parked("r"));
  const Streamed out = Resume("r", kept.position, "12345678");
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(DetailsOf(out.status).info.reason(), "DIVERGED");
  EXPECT_THAT(out.events, IsEmpty());
  // It is still there for who knows it.
  EXPECT_EQ(StateOf("r"), v1::GENERATION_STATE_PARKED);
  EXPECT_EQ(kept.text + Resume("r", kept.position, kept.digest).text, Expected(5, 100));
  const Streamed ended = Resume("r", kept.position, "12345678");
  EXPECT_EQ(DetailsOf(ended.status).info.reason(), "DIVERGED");
}

TEST_F(ResumeTest, WhatIsAheadOfTheLogIsGeneratedAgainAndMustBeTheSame) {
  const Kept kept = BreakOff(SessionSpec("r", 100), 10);
  ASSERT_TRUE(Parked("r"));
  const int64_t end = GetSession("s").position();
  // A client that has more than the log kept, as after a crash of the machine.
  RunningDigest digest(0, "r");
  const std::string expected = Expected(5, 100);
  for (int64_t i = 5; i < end + 30; ++i) digest.Add(static_cast<unsigned char>(expected[static_cast<size_t>(i - 5)]));
  const Streamed rest = Resume("r", end + 30, digest.bytes());
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(rest.text, expected.substr(static_cast<size_t>(end + 25)));
  EXPECT_EQ(rest.finished.position(), 105);
}

TEST_F(ResumeTest, WhatIsAheadOfTheLogEndsInTheMiddleOfWhatIsReleasedAtOnce) {
  // An id is held back until the next one comes, and those that come together are released together.
  v1::GenerationSpec spec = SessionSpec("r", 300);
  for (const char* stop : {"a!", "b!", "c!", "d!", "e!", "f!", "g!", "h!", "i!", "j!"}) {
    spec.mutable_stopping()->add_stop_strings(stop);
  }
  BreakOff(spec, 10);
  ASSERT_TRUE(Parked("r"));
  const int64_t end = GetSession("s").position();
  const std::string expected = Expected(5, 300);
  RunningDigest digest(0, "r");
  for (int64_t i = 5; i < end + 30; ++i) digest.Add(static_cast<unsigned char>(expected[static_cast<size_t>(i - 5)]));
  const Streamed rest = Resume("r", end + 30, digest.bytes());
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(rest.text, expected.substr(static_cast<size_t>(end + 25)));
}

TEST_F(ResumeTest, AWrongTextAheadOfTheLogIsFoundOutWhereItDiffers) {
  BreakOff(SessionSpec("r", 400), 10);
  ASSERT_TRUE(Parked("r"));
  const int64_t end = GetSession("s").position();
  model_->step_us = 300;
  const Streamed out = Resume("r", end + 30, "87654321");
  model_->step_us = 0;
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION) << out.status.error_message();
  EXPECT_EQ(DetailsOf(out.status).info.reason(), "DIVERGED");
  EXPECT_EQ(out.text, "");
  EXPECT_EQ(StateOf("r"), v1::GENERATION_STATE_PARKED);
  EXPECT_EQ(Resume("r", 5).text, Expected(5, 400));
}

TEST_F(ResumeTest, PositionsOutsideTheRequestAreOutOfRange) {
  Stream(SessionSpec("r", 20));
  for (const int64_t position : {0, 4, 26, 1000}) {
    const Streamed out = Resume("r", position);
    EXPECT_EQ(out.status.error_code(), grpc::StatusCode::OUT_OF_RANGE) << position;
    EXPECT_THAT(out.status.error_message(), HasSubstr("allowed: 5 to 25"));
  }
  BreakOff(SessionSpec("q", 100), 10);
  ASSERT_TRUE(Parked("q"));
  EXPECT_EQ(Resume("q", 3).status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  const Streamed beyond = Resume("q", 1000);
  EXPECT_EQ(beyond.status.error_code(), grpc::StatusCode::OUT_OF_RANGE) << "found at the end, which is kept";
  EXPECT_EQ(StateOf("q"), v1::GENERATION_STATE_FINISHED);
}

TEST_F(ResumeTest, ANewRequestSupersedesAParkedOne) {
  const Kept kept = BreakOff(SessionSpec("r", 100), 10);
  ASSERT_TRUE(Parked("r"));
  ASSERT_TRUE(Stream(SessionSpec("other", 3)).status.ok());
  const Streamed out = Resume("r", kept.position, kept.digest);
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(DetailsOf(out.status).info.reason(), "SUPERSEDED");
}

TEST_F(ResumeTest, AStreamMayBeTakenOverFromAClientThatIsStillThere) {
  model_->step_us = 300;
  Kept kept;
  Streamed taken;
  std::thread other;
  const Streamed first = Stream(SessionSpec("r", 400), [&](const v1::GenerationEvent& event) {
    Keep(event, &kept);
    if (kept.ids.size() >= 20 && !other.joinable()) {
      other = std::thread([&, position = kept.position, digest = kept.digest] {
        taken = Resume("r", position, digest);
        taken.text.insert(0, Expected(5, position - 5));
      });
    }
    return true;
  });
  other.join();
  EXPECT_EQ(first.status.error_code(), grpc::StatusCode::ABORTED) << first.status.error_message();
  EXPECT_EQ(DetailsOf(first.status).info.reason(), "TAKEN_OVER");
  ASSERT_TRUE(taken.status.ok()) << taken.status.error_message();
  EXPECT_EQ(taken.text, Expected(5, 400));
}

TEST_F(ResumeTest, OneThatWentOnWithoutItsClientIsTakenOverToo) {
  v1::GenerationSpec spec = SessionSpec("r", 2000);
  spec.set_on_disconnect(v1::DISCONNECT_POLICY_CONTINUE);
  const Kept kept = BreakOff(spec, 10);
  const Streamed rest = Resume("r", kept.position, kept.digest);
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(kept.text + rest.text, Expected(5, 2000));
}

TEST_F(ResumeTest, WhatIsHeldBackIsHeldBackAgain) {
  // A stop string, and code points, that the break cuts in two.
  model_->script = {'a', 0xC3, 0xA9, 'S', 'T', 'O', 'x', 0xF0, 0x9F, 0x98, 0x80};
  v1::GenerationSpec spec = SessionSpec("r", 60);
  spec.mutable_stopping()->add_stop_strings("STOP");
  spec.mutable_output()->set_top_logprobs(0);
  const Streamed whole = Stream(spec);
  for (size_t tokens = 1; tokens < 30; ++tokens) {
    const std::string id = "r" + std::to_string(tokens);
    spec.set_request_id(id);
    const Kept kept = BreakOffAnew(spec, tokens);
    const Streamed rest = Resume(id, kept.position, kept.digest);
    ASSERT_TRUE(rest.status.ok()) << tokens << rest.status.error_message();
    ASSERT_EQ(kept.text + rest.text, whole.text) << tokens;
  }
}

TEST_F(ResumeTest, WhatACancellationSetsFreeIsSentOnceTheCancellationIsRecorded) {
  for (const auto durability : {v1::DURABILITY_TOKEN, v1::DURABILITY_TURN}) {
    const std::string id = v1::Durability_Name(durability);
    v1::GenerationSpec spec = SessionSpec(id, 300);
    spec.set_durability(durability);
    spec.set_expected_position(GetSession("s").position());
    const int64_t first = spec.expected_position() + 5;
    spec.mutable_stopping()->add_stop_strings("cdefghijabcdefghijabcdefghij!");  // most of the time it may be beginning
    Kept kept;
    model_->step_us = 500;
    const Streamed cancelled = Stream(spec, [&](const v1::GenerationEvent& event) {
      const bool begins = kept.ids.empty();
      Keep(event, &kept);
      if (kept.ids.empty() || !begins) return true;
      store_->FailWrite(absl::UnavailableError("power is lost"),
                        [](const SessionWrite& write, bool) { return !write.requests.empty(); });
      absl::SleepFor(absl::Milliseconds(20));
      grpc::ClientContext context;
      v1::CancelGenerationRequest request;
      request.set_session("sessions/s");
      request.set_request_id(id);
      v1::CancelGenerationResponse response;
      generation().CancelGeneration(&context, request, &response);
      return true;
    });
    model_->step_us = 0;
    ASSERT_EQ(cancelled.status.error_code(), grpc::StatusCode::UNAVAILABLE) << cancelled.status.error_message();
    const Streamed rest = Resume(id, kept.position, kept.digest);
    ASSERT_TRUE(rest.status.ok()) << id << ": " << rest.status.error_message();
    EXPECT_EQ(kept.text + rest.text, Expected(first, 300));
  }
}

TEST_F(ResumeTest, TextBeforeAStopStringThatBeginsInsideAnIdComesExactlyOnce) {
  model_->script = {'a', 'b', 'c', 'd', 258};  // " world.", of which " " is sent without its id
  v1::GenerationSpec spec = SessionSpec("r", 60);
  spec.set_text("hello!");
  spec.mutable_stopping()->add_stop_strings("world.");
  const Streamed whole = Stream(spec);
  ASSERT_EQ(whole.finished.reason(), v1::FINISH_REASON_STOP_STRING);
  ASSERT_EQ(whole.text.back(), ' ');
  ASSERT_GT(whole.ids.size(), 1U);
  RunningDigest digest(0, "r");
  for (const int32_t id : whole.ids) digest.Add(id);
  // The ids have come, the text behind them has not.
  const Streamed rest = Resume("r", whole.finished.text_position(), digest.bytes());
  EXPECT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(rest.text, " ");
  EXPECT_THAT(rest.ids, IsEmpty());
  EXPECT_EQ(rest.finished.digest(), whole.finished.digest());
  // It has come too.
  const Streamed nothing = Resume("r", whole.finished.text_position(), whole.finished.digest());
  EXPECT_TRUE(nothing.status.ok()) << nothing.status.error_message();
  EXPECT_EQ(nothing.text, "");
  EXPECT_EQ(nothing.finished.digest(), whole.finished.digest());
  // A client cannot have it in the middle.
  RunningDigest early(0, "r");
  early.Add(whole.ids[0]);
  early.AddTail();
  EXPECT_EQ(Resume("r", whole.finished.text_position() - static_cast<int64_t>(whole.ids.size()) + 1, early.bytes())
                .status.error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(ResumeTest, TextBeforeAStopStringCanBeAllThatThereIs) {
  model_->script = {258};
  v1::GenerationSpec spec = SessionSpec("r", 60);
  spec.mutable_stopping()->add_stop_strings("world.");
  const Streamed whole = Stream(spec);
  ASSERT_EQ(whole.text, " ");
  ASSERT_THAT(whole.ids, IsEmpty());
  const Streamed rest = Resume("r", whole.finished.text_position(), whole.started.digest());
  EXPECT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(rest.text, " ");
  const Streamed nothing = Resume("r", whole.finished.text_position(), whole.finished.digest());
  EXPECT_TRUE(nothing.status.ok()) << nothing.status.error_message();
  EXPECT_EQ(nothing.text, "");
}

TEST_F(ResumeTest, StopStringsAndMinTokensCountWhatCameBefore) {
  v1::GenerationSpec spec = SessionSpec("r", 200);
  spec.mutable_stopping()->add_stop_strings("fghijabc");
  spec.mutable_stopping()->set_min_tokens(33);
  const Streamed whole = Stream(spec);
  EXPECT_EQ(whole.finished.reason(), v1::FINISH_REASON_STOP_STRING);
  for (const size_t tokens : {3, 15, 28}) {
    const std::string id = "r" + std::to_string(tokens);
    spec.set_request_id(id);
    const Kept kept = BreakOffAnew(spec, tokens);
    ASSERT_TRUE(Parked(id));
    const Streamed rest = Resume(id, kept.position, kept.digest);
    EXPECT_EQ(kept.text + rest.text, whole.text) << tokens;
    EXPECT_EQ(rest.finished.reason(), v1::FINISH_REASON_STOP_STRING);
    EXPECT_EQ(rest.finished.stop_string(), "fghijabc");
    EXPECT_EQ(rest.finished.position(), whole.finished.position());
  }
}

TEST_F(ResumeTest, ASlowReaderGetsEverythingOfALongOne) {
  const Kept kept = BreakOff(SessionSpec("r", 5000), 10);
  ASSERT_TRUE(Parked("r"));
  int chunks = 0;
  const Streamed first = Resume("r", kept.position, kept.digest, [&](const v1::GenerationEvent&) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    return ++chunks < 30;
  });
  ASSERT_TRUE(Eventually([&] { return StateOf("r") != v1::GENERATION_STATE_RUNNING; }));
  const Streamed all = Resume("r", 5);
  ASSERT_TRUE(all.status.ok()) << all.status.error_message();
  EXPECT_EQ(all.text, Expected(5, 5000));
}

TEST_F(ResumeTest, BadRequestsNameTheirFields) {
  const Streamed unknown = Resume("nobody", 5);
  EXPECT_EQ(unknown.status.error_code(), grpc::StatusCode::NOT_FOUND);
  const Streamed bad = Resume(std::string(10'240, 'x'), -1, "short");
  EXPECT_EQ(bad.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(bad.status).fields, testing::ElementsAre("request_id", "after_position", "after_digest"));
  Stream(SessionSpec("failed", 5));
  model_->broken = true;
  Stream(SessionSpec("broken", 5));
  EXPECT_EQ(Resume("broken", 5).status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ResumeTest, MaxDurationCountsFromTheFirstStartButWhatTheClientHasComesAgain) {
  v1::GenerationSpec spec = SessionSpec("r", 100'000);
  spec.mutable_max_duration()->set_nanos(300'000'000);
  const Kept kept = BreakOff(spec, 20);
  ASSERT_TRUE(Parked("r"));
  absl::SleepFor(absl::Milliseconds(350));
  const Streamed rest = Resume("r", kept.position, kept.digest);
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(rest.finished.reason(), v1::FINISH_REASON_MAX_DURATION);
  EXPECT_EQ(kept.text + rest.text, Expected(5, rest.finished.usage().generated_tokens()));
}

}  // namespace
}  // namespace smt
