// Streams, from the request to the last event: what is in them.
#include <thread>

#include "server/service/digest.h"
#include "server/service/utf8.h"
#include "tests/server/service/service_testing.h"

namespace smt {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
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
