// Score, Tokenize and Detokenize.
#include "tests/server/service/service_testing.h"

namespace smt {
namespace {

using testing::ElementsAre;
using testing::SizeIs;

class ScoreTest : public ServiceTest {};

TEST_F(ScoreTest, ScoreGivesTheLogprobOfEachIdAndItsSum) {
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

TEST_F(ScoreTest, LongScoresComeInMessagesOfAtMostOneMebibyte) {
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

TEST_F(ScoreTest, TokenizeAndDetokenizeAreInverse) {
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

}  // namespace
}  // namespace smt
