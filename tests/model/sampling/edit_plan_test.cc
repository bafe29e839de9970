// Edits that a device applies against what the sampler does to a row, bit for bit.
#include "model/sampling/edit_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "model/sampling/adjust_logits.h"
#include "model/sampling/sampler.h"
#include "tests/model/sampling/random_requests.h"

namespace smt {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

std::vector<float> Planned(const EditPlan& plan, size_t index, int32_t drawn, std::vector<float> logits) {
  ApplyEdits(plan.rows()[index], plan.edits(), drawn, logits);
  return logits;
}

std::vector<float> Adjusted(const Request& request, std::vector<float> logits) {
  AdjustLogits(request.params, request.Penalties(), logits);
  return logits;
}

TEST(EditPlan, GivesTheBitsThatTheSamplerWorksWith) {
  RandomRequests random(1);
  for (int round = 0; round < 5000; ++round) {
    const auto vocab = static_cast<size_t>(random.Pick(1, 2, 9, 40, 300));
    const std::vector<float> logits = random.Logits(vocab);
    const Request request = random.Next(vocab, false);
    EditPlan plan(static_cast<int32_t>(vocab));
    const bool edits = plan.Add(3, request.params, request.Penalties());
    ASSERT_EQ(BitsOf(edits ? Planned(plan, 0, -1, logits) : logits), BitsOf(Adjusted(request, logits)))
        << "round " << round;
  }
}

TEST(EditPlan, CountsAnIdThatTheHostDoesNotKnowAsIfItDid) {
  RandomRequests random(2);
  for (int round = 0; round < 5000; ++round) {
    const auto vocab = static_cast<size_t>(random.Pick(1, 2, 9, 40, 300));
    const std::vector<float> logits = random.Logits(vocab);
    const Request request = random.Next(vocab, true);
    EditPlan plan(static_cast<int32_t>(vocab));
    const bool edits = plan.Add(0, request.params, request.Penalties(1), 7);
    ASSERT_EQ(BitsOf(edits ? Planned(plan, 0, request.generated.back(), logits) : logits),
              BitsOf(Adjusted(request, logits)))
        << "round " << round;
  }
}

TEST(EditPlan, LeavesAPlainRequestTheDrawOfTheWholeSampler) {
  RandomRequests random(3);
  Sampler sampler(300);
  for (int64_t position = 1; position < 1000; ++position) {
    const std::vector<float> logits = random.Logits(300);
    const Request request = random.Next(300, false);
    EditPlan plan(300);
    const bool edits = plan.Add(0, request.params, request.Penalties());
    const std::vector<float> edited = edits ? Planned(plan, 0, -1, logits) : logits;
    const SamplingParams plain{
        .temperature = request.params.temperature, .top_k = request.params.top_k, .seed = request.params.seed};
    SampledToken whole, drawn;
    ASSERT_TRUE(sampler.Sample(logits, request.params, request.Penalties(), position, &whole).ok());
    ASSERT_TRUE(sampler.Sample(edited, plain, PenaltyState(), position, &drawn).ok());
    ASSERT_EQ(drawn.id, whole.id) << "position " << position;
  }
}

TEST(EditPlan, KeepsTheRowsOfABatchApartWithEachIdOnceARow) {
  RandomRequests random(4);
  EditPlan plan(40);
  for (int round = 0; round < 100; ++round) {
    plan.Clear();
    std::vector<Request> requests;
    std::vector<std::vector<float>> logits;
    for (int32_t row = 0; row < 20; ++row) {
      Request request = random.Next(40, true);
      if (!plan.Add(row, request.params, request.Penalties(1), row)) continue;
      requests.push_back(request);
      logits.push_back(random.Logits(40));
    }
    ASSERT_THAT(plan.rows(), SizeIs(requests.size()));
    int32_t first = 0;
    for (size_t i = 0; i < requests.size(); ++i) {
      const RowEdits& row = plan.rows()[i];
      EXPECT_EQ(row.first, first);
      first += row.count;
      std::set<int32_t> ids;
      for (int32_t j = row.first; j < first; ++j) {
        const int32_t id = plan.edits()[static_cast<size_t>(j)].id;
        EXPECT_TRUE(ids.insert(id).second);
        EXPECT_EQ(id == -1, row.drawn >= 0 && j == first - 1);
      }
      EXPECT_EQ(BitsOf(Planned(plan, i, requests[i].generated.back(), logits[i])),
                BitsOf(Adjusted(requests[i], logits[i])));
    }
    ASSERT_THAT(plan.edits(), SizeIs(static_cast<size_t>(first)));
  }
}

TEST(EditPlan, HasNothingForARequestWithoutEdits) {
  EditPlan plan(10);
  Request request{.params = {.temperature = 0.5f, .top_p = 0.9f, .top_logprobs = 5}, .generated = {1, 2}};
  EXPECT_FALSE(plan.Add(0, request.params, request.Penalties()));
  EXPECT_FALSE(plan.Add(0, request.params, request.Penalties(), 4));
  request.params.min_tokens = 3;
  request.params.masked_until_min_tokens = {9};
  EXPECT_TRUE(plan.Add(1, request.params, request.Penalties()));
  EXPECT_FALSE(plan.Add(2, request.params, request.Penalties(), 4));  // the third id is on its way
  EXPECT_THAT(plan.rows(), SizeIs(1));
  plan.Clear();
  EXPECT_THAT(plan.rows(), IsEmpty());
  EXPECT_THAT(plan.edits(), IsEmpty());
}

TEST(EditPlan, LeavesOutWhatARepetitionPenaltyOfOneWouldNotChange) {
  EditPlan plan(10);
  const Request request{.params = {.presence_penalty = 1}, .prior = {1, 2, 3, 4}, .generated = {2}};
  ASSERT_TRUE(plan.Add(0, request.params, request.Penalties()));
  EXPECT_THAT(plan.edits(), SizeIs(1));
}

TEST(EditPlan, PassesOverIdsOutsideTheVocabulary) {
  EditPlan plan(4);
  const SamplingParams params{.repetition_penalty = 2,
                              .logit_bias = {{-1, 5.0f}, {4, 5.0f}},
                              .min_tokens = 9,
                              .masked_until_min_tokens = {4, 1 << 30}};
  const Request request{.params = params, .prior = {7, -3}};
  EXPECT_FALSE(plan.Add(0, request.params, request.Penalties()));
  ASSERT_TRUE(plan.Add(0, request.params, request.Penalties(), 0));
  const std::vector<float> logits = {1, 2, 3, 4};
  for (const int32_t drawn : {-1, 4, 1 << 30}) EXPECT_EQ(Planned(plan, 0, drawn, logits), logits);
  EXPECT_EQ(Planned(plan, 0, 3, logits), (std::vector<float>{1, 2, 3, 2}));
}

}  // namespace
}  // namespace smt
