// Every bad field of every request, by what the client is told.
#include <cmath>
#include <limits>

#include "server/service/malformed_request.h"
#include "tests/server/service/service_testing.h"

namespace smt {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct BadSpec {
  std::string name;
  std::string field;
  std::string says;  // part of the description: the value, or what is allowed
  std::function<void(v1::GenerationSpec&)> spoil;
};
void PrintTo(const BadSpec& bad, std::ostream* out) { *out << bad.name; }

class BadSpecTest : public ServiceTest, public testing::WithParamInterface<BadSpec> {};

TEST_P(BadSpecTest, IsRefusedNamingTheFieldTheValueAndWhatIsAllowed) {
  v1::GenerationSpec spec = Spec("hi", 4);
  GetParam().spoil(spec);
  const Streamed out = Stream(spec);
  EXPECT_THAT(out.events, IsEmpty());
  ASSERT_EQ(out.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << out.status.error_message();
  const ErrorDetails details = DetailsOf(out.status);
  EXPECT_EQ(details.info.reason(), "INVALID_REQUEST");
  ASSERT_THAT(details.fields, ElementsAre(GetParam().field));
  EXPECT_THAT(details.bad_request.field_violations(0).description(), HasSubstr(GetParam().says));
  EXPECT_THAT(out.status.error_message(), AllOf(HasSubstr(GetParam().field), HasSubstr(GetParam().says)));
}

std::vector<BadSpec> BadSpecs() {
  using S = v1::GenerationSpec;
  return {
      {"NoInput", "spec.input", "required", [](S& s) { s.clear_text(); }},
      {"EmptyTextWithoutBos", "spec.input", "at least one", [](S& s) { s.set_text(""); }},
      {"NoIds", "spec.input", "at least one", [](S& s) { s.mutable_token_ids(); }},
      {"LongText", "spec.text", "65537 bytes", [](S& s) { s.set_text(std::string(65537, 'x')); }},
      {"LongBytes", "spec.text_bytes", "at most 65536", [](S& s) { s.set_text_bytes(std::string(70000, 'x')); }},
      {"ManyTokens", "spec.input", "at most 32768", [](S& s) { s.set_text(std::string(32769, 'x')); }},
      {"ManyIds", "spec.token_ids.ids", "32769 ids",
       [](S& s) {
         for (int i = 0; i < 32769; ++i) s.mutable_token_ids()->add_ids(1);
       }},
      {"NegativeId", "spec.token_ids.ids[0]", "is -1; allowed is 0 to 263",
       [](S& s) { s.mutable_token_ids()->add_ids(-1); }},
      {"IdBeyondVocabulary", "spec.token_ids.ids[1]", "is 264",
       [](S& s) {
         s.mutable_token_ids()->add_ids(1);
         s.mutable_token_ids()->add_ids(264);
       }},
      {"MalformedSession", "spec.session", "'a b'", [](S& s) { s.set_session("a b"); }},
      {"SessionWithUpperCase", "spec.session", "sessions/{id}", [](S& s) { s.set_session("sessions/A"); }},
      {"LongSession", "spec.session", "1 to 63", [](S& s) { s.set_session("sessions/" + std::string(64, 'a')); }},
      {"RequestIdWithoutSession", "spec.request_id", "session", [](S& s) { s.set_request_id("r"); }},
      {"MalformedRequestId", "spec.request_id", "'r r'",
       [](S& s) {
         s.set_session("sessions/a");
         s.set_request_id("r r");
       }},
      {"NegativeExpectedPosition", "spec.expected_position", "is -1",
       [](S& s) {
         s.set_session("sessions/a");
         s.set_expected_position(-1);
       }},
      {"ExpectedPositionWithoutSession", "spec.expected_position", "no session",
       [](S& s) { s.set_expected_position(1); }},
      {"EtagWithoutSession", "spec.etag", "no session", [](S& s) { s.set_etag("e"); }},
      {"TemperatureNaN", "spec.sampling.temperature", "is NaN; allowed is 0 to 100",
       [](S& s) { s.mutable_sampling()->set_temperature(kNaN); }},
      {"TemperatureInfinite", "spec.sampling.temperature", "is infinity",
       [](S& s) { s.mutable_sampling()->set_temperature(kInf); }},
      {"TemperatureNegative", "spec.sampling.temperature", "is -0.5",
       [](S& s) { s.mutable_sampling()->set_temperature(-0.5f); }},
      {"TopKNegative", "spec.sampling.top_k", "is -1", [](S& s) { s.mutable_sampling()->set_top_k(-1); }},
      {"TopKBeyondVocabulary", "spec.sampling.top_k", "0 to 264", [](S& s) { s.mutable_sampling()->set_top_k(265); }},
      {"TopPZero", "spec.sampling.top_p", "is 0; allowed is greater than 0 to 1",
       [](S& s) { s.mutable_sampling()->set_top_p(0); }},
      {"TopPAboveOne", "spec.sampling.top_p", "is 1.5", [](S& s) { s.mutable_sampling()->set_top_p(1.5f); }},
      {"TopPNaN", "spec.sampling.top_p", "is NaN", [](S& s) { s.mutable_sampling()->set_top_p(kNaN); }},
      {"MinPNegative", "spec.sampling.min_p", "is -0.1", [](S& s) { s.mutable_sampling()->set_min_p(-0.1f); }},
      {"MinPNaN", "spec.sampling.min_p", "is NaN", [](S& s) { s.mutable_sampling()->set_min_p(kNaN); }},
      {"RepetitionPenaltyZero", "spec.sampling.repetition_penalty", "greater than 0",
       [](S& s) { s.mutable_sampling()->set_repetition_penalty(0); }},
      {"PresencePenalty", "spec.sampling.presence_penalty", "-2 to 2",
       [](S& s) { s.mutable_sampling()->set_presence_penalty(2.5f); }},
      {"FrequencyPenaltyNaN", "spec.sampling.frequency_penalty", "NaN",
       [](S& s) { s.mutable_sampling()->set_frequency_penalty(kNaN); }},
      {"LogitBiasId", "spec.sampling.logit_bias[0].token_id", "is 264",
       [](S& s) { s.mutable_sampling()->add_logit_bias()->set_token_id(264); }},
      {"LogitBiasNaN", "spec.sampling.logit_bias[0].bias", "NaN",
       [](S& s) { s.mutable_sampling()->add_logit_bias()->set_bias(kNaN); }},
      {"LogitBiasTwice", "spec.sampling.logit_bias[1].token_id", "again",
       [](S& s) {
         s.mutable_sampling()->add_logit_bias()->set_token_id(3);
         s.mutable_sampling()->add_logit_bias()->set_token_id(3);
       }},
      {"MuchLogitBias", "spec.sampling.logit_bias", "at most 1024",
       [](S& s) {
         for (int i = 0; i < 1025; ++i) s.mutable_sampling()->add_logit_bias();
       }},
      {"MaxTokensNegative", "spec.stopping.max_tokens", "is -1; allowed is 0",
       [](S& s) { s.mutable_stopping()->set_max_tokens(-1); }},
      {"MaxTokensTwoToThe31", "spec.stopping.max_tokens", "is 2147483648",
       [](S& s) { s.mutable_stopping()->set_max_tokens(int64_t{1} << 31); }},
      {"MinTokensAboveMaxTokens", "spec.stopping.min_tokens", "0 to 4",
       [](S& s) { s.mutable_stopping()->set_min_tokens(5); }},
      {"MinTokensNegative", "spec.stopping.min_tokens", "is -1",
       [](S& s) { s.mutable_stopping()->set_min_tokens(-1); }},
      {"StopStringEmpty", "spec.stopping.stop_strings[0]", "is empty; allowed are 1 to 256 bytes",
       [](S& s) { s.mutable_stopping()->add_stop_strings(""); }},
      {"StopStringLong", "spec.stopping.stop_strings[0]", "257 bytes",
       [](S& s) { s.mutable_stopping()->add_stop_strings(std::string(257, 'x')); }},
      {"StopStringTwice", "spec.stopping.stop_strings[1]", "'x' again",
       [](S& s) {
         s.mutable_stopping()->add_stop_strings("x");
         s.mutable_stopping()->add_stop_strings("x");
       }},
      {"ManyStopStrings", "spec.stopping.stop_strings", "at most 16",
       [](S& s) {
         for (int i = 0; i < 17; ++i) s.mutable_stopping()->add_stop_strings(std::string(i + 1, 'x'));
       }},
      {"StopTokenOutOfRange", "spec.stopping.stop_token_ids[0]", "is 264",
       [](S& s) { s.mutable_stopping()->add_stop_token_ids(264); }},
      {"StopTokenTwice", "spec.stopping.stop_token_ids[1]", "again",
       [](S& s) {
         s.mutable_stopping()->add_stop_token_ids(5);
         s.mutable_stopping()->add_stop_token_ids(5);
       }},
      {"ManyStopTokens", "spec.stopping.stop_token_ids", "at most 64",
       [](S& s) {
         for (int i = 0; i < 65; ++i) s.mutable_stopping()->add_stop_token_ids(i);
       }},
      {"TopLogprobs", "spec.output.top_logprobs", "0 to 20", [](S& s) { s.mutable_output()->set_top_logprobs(21); }},
      {"PromptLogprobs", "spec.output.prompt_logprobs", "is -1",
       [](S& s) { s.mutable_output()->set_prompt_logprobs(-1); }},
      {"OnDisconnect", "spec.on_disconnect", "is 9",
       [](S& s) { s.set_on_disconnect(static_cast<v1::DisconnectPolicy>(9)); }},
      {"Durability", "spec.durability", "is 9", [](S& s) { s.set_durability(static_cast<v1::Durability>(9)); }},
      {"MaxDurationZero", "spec.max_duration", "more than 0", [](S& s) { s.mutable_max_duration(); }},
      {"MaxDurationOutOfRange", "spec.max_duration", "is 9223372036854775807 s",
       [](S& s) { s.mutable_max_duration()->set_seconds(std::numeric_limits<int64_t>::max()); }},
      {"Priority", "spec.priority", "-100 to 100", [](S& s) { s.set_priority(101); }},
  };
}
INSTANTIATE_TEST_SUITE_P(All, BadSpecTest, testing::ValuesIn(BadSpecs()),
                         [](const auto& info) { return info.param.name; });

class ValidationTest : public ServiceTest {};

TEST_F(ValidationTest, AllViolationsOfARequestAreToldAtOnce) {
  v1::GenerationSpec spec = Spec("hi", -1);
  spec.mutable_sampling()->set_temperature(kNaN);
  spec.mutable_sampling()->set_top_p(0);
  spec.mutable_stopping()->add_stop_strings("");
  spec.set_priority(1000);
  const ErrorDetails details = DetailsOf(Stream(spec).status);
  EXPECT_THAT(details.fields,
              ElementsAre("spec.sampling.temperature", "spec.sampling.top_p", "spec.stopping.max_tokens",
                          "spec.stopping.stop_strings[0]", "spec.priority"));
}

TEST_F(ValidationTest, ManyViolationsStayWithinTheLimitsOfATrailer) {
  v1::GenerationSpec spec = Spec("hi", 1);
  for (int i = 0; i < 500; ++i) spec.mutable_sampling()->add_logit_bias()->set_token_id(-i - 1);
  const Streamed out = Stream(spec);
  EXPECT_THAT(DetailsOf(out.status).fields, testing::SizeIs(32));
  EXPECT_THAT(out.status.error_message(), HasSubstr("499 more violations"));
}

TEST_F(ValidationTest, EveryTextThatIsNoUtf8IsNamedWithItsValue) {
  v1::GenerationSpec spec = Spec("hi \xFF", 1);
  spec.mutable_stopping()->add_stop_strings("fine");
  spec.mutable_stopping()->add_stop_strings("\x80");
  spec.mutable_sampling()->set_top_k(3);
  spec.set_etag("\xC3");
  const Streamed out = Stream(spec);
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(out.status.error_message(),
              AllOf(HasSubstr("spec.text"), HasSubstr("UTF-8"), HasSubstr("text_bytes"), HasSubstr("'hi \uFFFD'")));
  EXPECT_THAT(DetailsOf(out.status).fields,
              testing::UnorderedElementsAre("spec.text", "spec.stopping.stop_strings[1]", "spec.etag"));
}

TEST_F(ValidationTest, BytesThatAreNoMessageAreRefusedWhateverTheyAre) {
  for (const std::string& bytes :
       {std::string("\xFF\xFF\xFF\xFF"), std::string("\x0A\x7F"), std::string("\x0A\x03\x0A\x09x"),
        std::string("\x0B\x0B\x0B"), std::string("\x0A\xFF\xFF\xFF\xFF\x0F")}) {
    const absl::Status status = MalformedRequest(*v1::StreamGenerateRequest::descriptor(), bytes);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("smt.v1.StreamGenerateRequest"));
  }
}

TEST_F(ValidationTest, ATimeToLiveBeyondAHundredYearsIsAViolation) {
  v1::CreateSessionRequest request;
  request.mutable_session()->mutable_ttl()->set_seconds(int64_t{101} * 366 * 86400);
  v1::CreateSessionResponse response;
  grpc::ClientContext context;
  const grpc::Status status = sessions().CreateSession(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(status).fields, ElementsAre("session.ttl"));
}

TEST_F(ValidationTest, TextAsBytesMayBeAnything) {
  v1::GenerationSpec spec = Spec("", 2);
  spec.set_text_bytes("hi \xFF");
  const Streamed out = Stream(spec);
  EXPECT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.started.prompt_tokens(), 4);
}

TEST_F(ValidationTest, GenerateChecksTheSameFields) {
  v1::GenerateRequest request;
  *request.mutable_spec() = Spec("hi", -5);
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const grpc::Status status = generation().Generate(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(status).fields, ElementsAre("spec.stopping.max_tokens"));
}

TEST_F(ValidationTest, ScoreTokenizeAndDetokenizeCheckTheirFields) {
  {
    v1::ScoreRequest request;
    request.set_top_logprobs(21);
    request.set_session("nope");
    request.set_priority(-101);
    grpc::ClientContext context;
    auto reader = generation().Score(&context, request);
    v1::ScoreResponse response;
    EXPECT_FALSE(reader->Read(&response));
    EXPECT_THAT(DetailsOf(reader->Finish()).fields, ElementsAre("input", "session", "top_logprobs", "priority"));
  }
  {
    grpc::ClientContext context;
    v1::TokenizeResponse response;
    EXPECT_THAT(DetailsOf(generation().Tokenize(&context, {}, &response)).fields, ElementsAre("input"));
  }
  {
    v1::DetokenizeRequest request;
    request.add_token_ids(-3);
    grpc::ClientContext context;
    v1::DetokenizeResponse response;
    EXPECT_THAT(DetailsOf(generation().Detokenize(&context, request, &response)).fields, ElementsAre("token_ids[0]"));
  }
}

TEST_F(ValidationTest, SessionRequestsCheckTheirFields) {
  {
    v1::CreateSessionRequest request;
    request.set_session_id("Not Good");
    request.mutable_session()->mutable_ttl()->set_seconds(-1);
    (*request.mutable_session()->mutable_labels())["Bad Key"] = "v";
    request.set_request_id("a b");
    grpc::ClientContext context;
    v1::CreateSessionResponse response;
    EXPECT_THAT(DetailsOf(sessions().CreateSession(&context, request, &response)).fields,
                ElementsAre("session_id", "session.ttl", "session.labels", "request_id"));
  }
  {
    v1::UpdateSessionRequest request;
    request.mutable_update_mask()->add_paths("position");
    grpc::ClientContext context;
    v1::UpdateSessionResponse response;
    EXPECT_THAT(DetailsOf(sessions().UpdateSession(&context, request, &response)).fields,
                ElementsAre("session.name", "update_mask"));
  }
  {
    v1::ListSessionsRequest request;
    request.set_page_size(-1);
    grpc::ClientContext context;
    v1::ListSessionsResponse response;
    EXPECT_THAT(DetailsOf(sessions().ListSessions(&context, request, &response)).fields, ElementsAre("page_size"));
  }
  for (const std::string name : {"", "sessions/", "sessions/../x", "session/a", "sessions/a/b", "sessions/-a"}) {
    v1::GetSessionRequest request;
    request.set_name(name);
    grpc::ClientContext context;
    v1::GetSessionResponse response;
    EXPECT_THAT(DetailsOf(sessions().GetSession(&context, request, &response)).fields, Contains("name")) << name;
  }
}

}  // namespace
}  // namespace smt
