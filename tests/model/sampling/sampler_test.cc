// The sampler against a reference that sorts everything, written from docs/sampling.md alone.
#include "model/sampling/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include "model/sampling/exp_weight.h"
#include "model/sampling/logprobs.h"
#include "model/sampling/philox.h"

namespace smt {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

constexpr float kInf = std::numeric_limits<float>::infinity();

// --- the reference -------------------------------------------------------------------------------------------------

struct History {
  std::vector<int32_t> prior = {}, generated = {};
};

std::vector<float> AdjustedLogits(std::vector<float> logits, const SamplingParams& p, const History& history) {
  for (auto [id, bias] : p.logit_bias) logits[id] += bias;
  for (int32_t id = 0; id < static_cast<int32_t>(logits.size()); ++id) {
    const int64_t drawn = std::count(history.generated.begin(), history.generated.end(), id);
    const bool seen = drawn > 0 || std::count(history.prior.begin(), history.prior.end(), id) > 0;
    float& l = logits[id];
    if (seen) l = l > 0 ? l / p.repetition_penalty : l * p.repetition_penalty;
    if (drawn > 0) l = std::fma(-p.frequency_penalty, static_cast<float>(drawn), l - p.presence_penalty);
  }
  if (static_cast<int64_t>(history.generated.size()) < p.min_tokens) {
    for (int32_t id : p.masked_until_min_tokens) logits[id] = -kInf;
  }
  return logits;
}

// Every id that may be drawn with its weight.
std::map<int32_t, uint64_t> KeptWeights(const std::vector<float>& logits, const SamplingParams& p) {
  const float max = *std::max_element(logits.begin(), logits.end());
  std::vector<std::pair<uint64_t, int32_t>> order;
  for (size_t i = 0; i < logits.size(); ++i) {
    order.emplace_back(ExpWeight(logits[i] / p.temperature - max / p.temperature), static_cast<int32_t>(i));
  }
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  if (p.top_k > 0 && static_cast<size_t>(p.top_k) < order.size()) order.resize(p.top_k);
  uint64_t sum = 0;
  for (const auto& [weight, id] : order) sum += weight;
  if (p.top_p < 1) {
    // ceil(top_p * sum) in exact arithmetic: top_p is numerator / 2^40 for the values the tests use.
    const auto numerator = static_cast<unsigned __int128>(std::ldexp(static_cast<double>(p.top_p), 40));
    const unsigned __int128 one = 1;
    const auto threshold = static_cast<uint64_t>((numerator * sum + (one << 40) - 1) >> 40);
    uint64_t prefix = 0;
    size_t kept = 0;
    while (prefix < threshold) prefix += order[kept++].first;
    order.resize(kept);
  }
  std::map<int32_t, uint64_t> kept;
  for (const auto& [weight, id] : order) {
    if (static_cast<double>(weight) >= static_cast<double>(p.min_p) * 4294967296.0) kept[id] = weight;
  }
  return kept;
}

int32_t ReferenceDraw(const std::vector<float>& raw, const SamplingParams& p, const History& history,
                      int64_t position) {
  const std::vector<float> logits = AdjustedLogits(raw, p, history);
  if (p.temperature == 0) {
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  const std::map<int32_t, uint64_t> kept = KeptWeights(logits, p);
  unsigned __int128 sum = 0;
  for (const auto& [id, weight] : kept) sum += weight;
  const auto r = static_cast<uint64_t>((sum * DrawBits(p.seed, position)) >> 64);
  uint64_t cumulative = 0;
  for (const auto& [id, weight] : kept) {
    cumulative += weight;
    if (cumulative > r) return id;
  }
  ADD_FAILURE() << "the reference drew nothing";
  return -1;
}

// --- helpers -------------------------------------------------------------------------------------------------------

int32_t Draw(const std::vector<float>& logits, const SamplingParams& params, int64_t position,
             const History& history = {}) {
  Sampler sampler(static_cast<int32_t>(logits.size()));
  PenaltyState penalties;
  penalties.Bind(params, history.prior, history.generated);
  SampledToken token;
  const absl::Status status = sampler.Sample(logits, params, penalties, position, &token);
  EXPECT_TRUE(status.ok()) << status;
  return token.id;
}

std::vector<float> RandomLogits(size_t size, float spread, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(size);
  for (float& l : logits) l = normal(random);
  return logits;
}

// --- tests ---------------------------------------------------------------------------------------------------------

TEST(Sampler, EqualsTheSortingReferenceUnderRandomOptions) {
  std::mt19937 random(11);
  const auto pick = [&](auto... values) {
    const std::vector<double> options = {static_cast<double>(values)...};
    return options[random() % options.size()];
  };
  for (int round = 0; round < 3000; ++round) {
    const size_t vocab = static_cast<size_t>(pick(1, 2, 17, 256, 300, 1000));
    std::vector<float> logits = RandomLogits(vocab, static_cast<float>(pick(0.0, 0.3, 2, 10)), random());
    if (pick(0, 1) != 0) {  // ties
      for (float& l : logits) l = std::round(l);
    }
    SamplingParams p;
    p.temperature = static_cast<float>(pick(0, 0.25, 0.7, 1, 1, 1.7));
    p.top_k = static_cast<int32_t>(pick(0, 0, 1, 2, 5, 40, 2000));
    p.top_p = static_cast<float>(pick(1, 1, 0.95, 0.5, 0.1, 1.0 / 1024));
    p.min_p = static_cast<float>(pick(0, 0, 0.05, 0.5, 1));
    p.repetition_penalty = static_cast<float>(pick(1, 1.2, 0.8));
    p.presence_penalty = static_cast<float>(pick(0, 0.6, -0.5));
    p.frequency_penalty = static_cast<float>(pick(0, 0.3, -0.1));
    p.seed = random();
    p.min_tokens = static_cast<int64_t>(pick(0, 4));
    History history;
    for (int i = 0; i < 8; ++i) history.prior.push_back(static_cast<int32_t>(random() % vocab));
    for (int i = static_cast<int>(pick(0, 2, 6)); i > 0; --i) {
      history.generated.push_back(static_cast<int32_t>(random() % vocab));
    }
    if (vocab > 2) {
      p.masked_until_min_tokens = {1};
      if (pick(0, 1) != 0) p.logit_bias = {{2, 3.5f}, {0, -100.0f}};
    }
    const int64_t position = 1 + static_cast<int64_t>(random());
    ASSERT_EQ(Draw(logits, p, position, history), ReferenceDraw(logits, p, history, position)) << "round " << round;
  }
}

TEST(Sampler, EqualsTheReferenceAtTheSizeOfARealVocabulary) {
  for (uint32_t round = 0; round < 12; ++round) {
    const std::vector<float> logits = RandomLogits(50257, 3, round);
    SamplingParams p{.top_k = round % 3 == 0 ? 50 : 0, .top_p = round % 2 == 0 ? 0.9f : 1.0f, .seed = round};
    ASSERT_EQ(Draw(logits, p, 100 + round), ReferenceDraw(logits, p, {}, 100 + round)) << "round " << round;
  }
}

TEST(Sampler, IsAPureFunctionOfSeedAndPosition) {
  const std::vector<float> logits = RandomLogits(500, 2, 3);
  Sampler sampler(500);
  PenaltyState penalties;
  const auto sequence = [&](uint64_t seed, std::vector<int64_t> positions) {
    std::map<int64_t, int32_t> drawn;
    for (int64_t position : positions) {
      SampledToken token;
      EXPECT_TRUE(sampler.Sample(logits, {.seed = seed}, penalties, position, &token).ok());
      drawn[position] = token.id;
    }
    return drawn;
  };
  const auto forward = sequence(5, {1, 2, 3, 4, 5, 6, 7, 8});
  EXPECT_EQ(forward, sequence(5, {8, 3, 1, 7, 2, 6, 5, 4}));
  EXPECT_NE(forward, sequence(6, {1, 2, 3, 4, 5, 6, 7, 8}));
}

// With 20 categories and 19 degrees of freedom chi-square exceeds 43.8 once in a thousand; the seed is fixed.
TEST(Sampler, DrawsInProportionToTheExponentials) {
  std::vector<float> logits(20);
  for (size_t i = 0; i < logits.size(); ++i)
    logits[i] = 0.15f * static_cast<float>(i % 7) - 0.1f * static_cast<float>(i);
  const float temperature = 0.8f;
  double total = 0;
  for (float l : logits) total += std::exp(static_cast<double>(l) / temperature);
  constexpr int kDraws = 200000;
  std::vector<int> counts(logits.size());
  Sampler sampler(20);
  PenaltyState penalties;
  SampledToken token;
  for (int i = 1; i <= kDraws; ++i) {
    ASSERT_TRUE(sampler.Sample(logits, {.temperature = temperature, .seed = 99}, penalties, i, &token).ok());
    ++counts[token.id];
  }
  double chi_square = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double expected = kDraws * std::exp(static_cast<double>(logits[i]) / temperature) / total;
    chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  EXPECT_LT(chi_square, 43.8);
}

TEST(Sampler, TemperatureZeroIsTheArgmaxWithTiesToTheLowestId) {
  EXPECT_EQ(Draw({1, 3, 2, 3, 3}, {.temperature = 0, .seed = 4}, 9), 1);
  EXPECT_EQ(Draw({-5, -kInf, -5}, {.temperature = 0}, 1), 0);
}

TEST(Sampler, ATemperatureTooSmallToDivideByIsTheArgmax) {
  for (int64_t position = 1; position < 20; ++position) {
    EXPECT_EQ(Draw({1, 3, 2.999f}, {.temperature = 1e-40f}, position), 1);
    EXPECT_EQ(Draw({-4, -3, -2.999f}, {.temperature = 1e-40f}, position), 2);
  }
}

TEST(Sampler, NaNAndMinusInfinityAreNeverDrawn) {
  const std::vector<float> logits = {std::nanf(""), 0, -kInf, 0, std::nanf("")};
  for (int64_t position = 1; position < 200; ++position) {
    EXPECT_THAT(Draw(logits, {.seed = 1}, position), testing::AnyOf(1, 3));
    EXPECT_THAT(Draw(logits, {.top_k = 4, .top_p = 0.99f, .seed = 1}, position), testing::AnyOf(1, 3));
  }
  EXPECT_EQ(Draw(logits, {.temperature = 0}, 1), 1);
}

TEST(Sampler, AnInfiniteLogitIsDrawn) { EXPECT_EQ(Draw({1, 2, kInf, kInf}, {.seed = 3}, 7), 2); }

TEST(Sampler, SaysSoWhenNothingCanBeDrawn) {
  Sampler sampler(3);
  PenaltyState penalties;
  SampledToken token;
  const std::vector<float> nans(3, std::nanf(""));
  EXPECT_EQ(sampler.Sample(nans, {}, penalties, 1, &token).code(), absl::StatusCode::kInternal);
  const std::vector<float> fine = {1, 2, 3};
  const SamplingParams masked{.min_tokens = 1, .masked_until_min_tokens = {0, 1, 2}};
  EXPECT_EQ(sampler.Sample(fine, masked, penalties, 1, &token).code(), absl::StatusCode::kInternal);
  const std::vector<float> short_row = {1, 2};
  EXPECT_EQ(sampler.Sample(short_row, {}, penalties, 1, &token).code(), absl::StatusCode::kInternal);
}

// Which ids come up at all, over many positions.
std::vector<int32_t> Support(const std::vector<float>& logits, const SamplingParams& params,
                             const History& history = {}) {
  std::vector<int32_t> drawn;
  for (int64_t position = 1; position <= 600; ++position) drawn.push_back(Draw(logits, params, position, history));
  std::sort(drawn.begin(), drawn.end());
  drawn.erase(std::unique(drawn.begin(), drawn.end()), drawn.end());
  return drawn;
}

TEST(Sampler, TopKBreaksTiesTowardsTheLowerId) {
  EXPECT_THAT(Support({0, 1, 1, 1, 0}, {.top_k = 2}), ElementsAre(1, 2));
  EXPECT_THAT(Support({0, 0, 0, 0}, {.top_k = 3}), ElementsAre(0, 1, 2));
}

TEST(Sampler, TopPKeepsTheShortestPrefixThatReachesItsShare) {
  const std::vector<float> quarters(4, 0.0f);
  EXPECT_THAT(Support(quarters, {.top_p = 0.5f}), ElementsAre(0, 1));
  EXPECT_THAT(Support(quarters, {.top_p = std::nextafter(0.5f, 1.0f)}), ElementsAre(0, 1, 2));
  EXPECT_THAT(Support(quarters, {.top_p = 1e-30f}), ElementsAre(0));
}

TEST(Sampler, TopPCountsItsShareOfWhatTopKLeft) {
  // Of ten equal ids top_k leaves four; half of those are two, half of all would be five.
  EXPECT_THAT(Support(std::vector<float>(10, 0.0f), {.top_k = 4, .top_p = 0.5f}), ElementsAre(0, 1));
}

TEST(Sampler, MinPComparesWithTheLikeliest) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.2f), std::log(0.26f), std::log(0.04f)};
  EXPECT_THAT(Support(logits, {.min_p = 0.5f}), ElementsAre(0, 2));
  EXPECT_THAT(Support(logits, {.min_p = 0.3f}), ElementsAre(0, 1, 2));
  EXPECT_THAT(Support(logits, {.min_p = 1.0f}), ElementsAre(0));
}

TEST(Sampler, AppliesBiasBeforePenaltiesAndPenaltiesBeforeTheTemperature) {
  // id 1: (1 + 3) / 2 = 2 beats id 0's 1.9; without bias first it would be 1 / 2 + 3 = 3.5 and also beat id 2's 2.5.
  const SamplingParams p{.temperature = 0, .repetition_penalty = 2, .logit_bias = {{1, 3.0f}}};
  EXPECT_EQ(Draw({1.9f, 1, 0}, p, 1, {.prior = {1}}), 1);
  EXPECT_EQ(Draw({1.9f, 1, 2.5f}, p, 1, {.prior = {1}}), 2);
  // Presence 1 taken off before dividing by the temperature 0.5: odds of e^(2 * 1) against e^0, not e^(2 * 2 - 1).
  const SamplingParams q{.temperature = 0.5f, .presence_penalty = 1};
  const SamplingParams plain{.temperature = 0.5f};
  for (int64_t position = 1; position < 500; ++position) {
    EXPECT_EQ(Draw({2, 0}, q, position, {.generated = {0}}), Draw({1, 0}, plain, position));
  }
}

TEST(Sampler, RepetitionDividesPositiveAndMultipliesNegativeLogits) {
  const SamplingParams p{.temperature = 0, .repetition_penalty = 1.5f};
  EXPECT_EQ(Draw({3, 2.1f}, p, 1, {.prior = {0}}), 1);
  EXPECT_EQ(Draw({-1, -1.4f}, p, 1, {.generated = {0}}), 1);
}

TEST(Sampler, FrequencyCountsOccurrencesAndPresenceOnlyOne) {
  const History thrice{.generated = {0, 0, 0}};
  EXPECT_EQ(Draw({2, 1.2f}, {.temperature = 0, .presence_penalty = 0.5f}, 1, thrice), 0);
  EXPECT_EQ(Draw({2, 1.2f}, {.temperature = 0, .frequency_penalty = 0.5f}, 1, thrice), 1);
  // Ids of the prompt count for neither.
  EXPECT_EQ(Draw({2, 1.2f}, {.temperature = 0, .presence_penalty = 2, .frequency_penalty = 2}, 1, {.prior = {0}}), 0);
}

TEST(Sampler, MasksStopTokensUntilMinTokens) {
  const SamplingParams p{.temperature = 0, .min_tokens = 2, .masked_until_min_tokens = {0}};
  EXPECT_EQ(Draw({5, 1}, p, 1, {}), 1);
  EXPECT_EQ(Draw({5, 1}, p, 2, {.generated = {1}}), 1);
  EXPECT_EQ(Draw({5, 1}, p, 3, {.generated = {1, 1}}), 0);
}

TEST(Sampler, LeavesNothingBehindBetweenCalls) {
  Sampler sampler(300);
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    const std::vector<float> logits = RandomLogits(300, 2, random());
    SamplingParams p{.top_k = static_cast<int32_t>(random() % 3) * 7, .top_p = round % 2 ? 0.8f : 1.0f, .seed = 1};
    if (round % 3 == 0) p.logit_bias = {{static_cast<int32_t>(random() % 300), 4.0f}};
    PenaltyState penalties;
    penalties.Bind(p, {}, {});
    SampledToken token;
    ASSERT_TRUE(sampler.Sample(logits, p, penalties, round, &token).ok());
    EXPECT_EQ(token.id, Draw(logits, p, round));
  }
}

TEST(PenaltyState, AResumedRequestCountsAsIfItHadNotStopped) {
  const SamplingParams p{.frequency_penalty = 1};
  const std::vector<int32_t> prior = {4, 5, 4}, first = {7, 4};
  PenaltyState straight, resumed;
  straight.Bind(p, prior, {});
  for (int32_t id : {7, 4, 7}) straight.Add(id);
  resumed.Bind(p, prior, first);
  resumed.Add(7);
  const auto counts = [](const PenaltyState& state) {
    std::map<int32_t, int32_t> out;
    for (const PenaltyState::Entry& e : state.entries()) out[e.id] = e.generated;
    return out;
  };
  EXPECT_EQ(straight.generated_total(), 3);
  EXPECT_EQ(resumed.generated_total(), 3);
  EXPECT_EQ(counts(straight), counts(resumed));
  EXPECT_THAT(counts(straight), ElementsAre(Pair(4, 1), Pair(5, 0), Pair(7, 2)));
}

TEST(Logprobs, AreTheModelsOwnWhateverTheSamplingDoes) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.6f), std::log(0.3f)};
  Sampler sampler(3);
  PenaltyState penalties;
  SampledToken token;
  const SamplingParams p{.temperature = 0, .logit_bias = {{0, 50.0f}}, .top_logprobs = 2};
  ASSERT_TRUE(sampler.Sample(logits, p, penalties, 1, &token).ok());
  EXPECT_EQ(token.id, 0);
  EXPECT_NEAR(token.logprobs.logprob, std::log(0.1), 1e-6);
  ASSERT_EQ(token.logprobs.top.size(), 2u);
  EXPECT_EQ(token.logprobs.top[0].first, 1);
  EXPECT_NEAR(token.logprobs.top[0].second, std::log(0.6), 1e-6);
  EXPECT_EQ(token.logprobs.top[1].first, 2);
}

TEST(Logprobs, TiesGoToTheLowerIdAndNaNComesLast) {
  TokenLogprobs out;
  ComputeLogprobs(std::vector<float>{1, 2, std::nanf(""), 2, 1, 1}, 2, 4, &out);
  EXPECT_EQ(out.logprob, -kInf);
  EXPECT_THAT(out.top, ElementsAre(Pair(1, testing::_), Pair(3, testing::_), Pair(0, testing::_), Pair(4, testing::_)));
  ComputeLogprobs(std::vector<float>{std::nanf(""), 0}, 1, 5, &out);
  EXPECT_THAT(out.top, ElementsAre(Pair(1, 0.0f), Pair(0, -kInf)));
}

TEST(Logprobs, SumToOneOverARealVocabulary) {
  const std::vector<float> logits = RandomLogits(50257, 4, 1);
  TokenLogprobs out;
  ComputeLogprobs(logits, 0, 50257, &out);
  double sum = 0;
  for (const auto& [id, logprob] : out.top) sum += std::exp(static_cast<double>(logprob));
  EXPECT_NEAR(sum, 1.0, 2e-6);
}

}  // namespace
}  // namespace smt
