// The arithmetic under a log-probability: integer terms and a logarithm of rounded operations.
#include "model/sampling/log_softmax.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "model/sampling/logit_scan.h"
#include "model/sampling/logprobs.h"

namespace smt {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNaN = std::nanf("");

TEST(ExpTerm, IsTwoToTheFortyThreeAtZeroAndNothingFarBelow) {
  EXPECT_EQ(ExpTerm(0.0f), uint64_t{1} << 43);
  EXPECT_EQ(ExpTerm(-0.0f), uint64_t{1} << 43);
  EXPECT_EQ(ExpTerm(std::nextafter(kTermCutoff, 0.0f)), 0u);
  EXPECT_EQ(ExpTerm(kTermCutoff), 0u);
  EXPECT_EQ(ExpTerm(-kInf), 0u);
  EXPECT_EQ(ExpTerm(kNaN), 0u);
}

TEST(ExpTerm, FollowsTheExponentialWithinThreeRoundings) {
  for (float x = 0; x > -31; x -= 0.00041f) {
    const double exact = std::exp(static_cast<double>(x)) * 0x1p43;
    EXPECT_NEAR(static_cast<double>(ExpTerm(x)), exact, 1.0 + exact * 2e-7) << x;
  }
}

TEST(LogOfTerms, IsZeroForOneTermAndWithinAnUlpOtherwise) {
  EXPECT_EQ(LogOfTerms(uint64_t{1} << kTermBits), 0.0);
  std::mt19937_64 random(3);
  const auto expect_near = [](uint64_t sum) {
    const long double exact = std::log(static_cast<long double>(static_cast<double>(sum)) * 0x1p-43L);
    const auto ulp = static_cast<long double>(std::abs(std::nextafter(static_cast<double>(exact), 100.0) - exact)) +
                     static_cast<long double>(std::abs(exact)) * 0x1p-53L;
    EXPECT_LE(std::abs(LogOfTerms(sum) - exact), ulp) << sum;
  };
  for (int i = 0; i < 200000; ++i) {
    const uint64_t any = random();
    expect_near((any >> (any % 21)) | uint64_t{1} << kTermBits);  // one term to 2^21
    expect_near((uint64_t{1} << kTermBits) + (any >> (22 + any % 40)));
  }
  expect_near(~uint64_t{0});
}

// Fixes the numbers themselves: another implementation must give exactly this checksum.
TEST(LogSoftmax, HasNotChanged) {
  uint64_t hash = 0xcbf29ce484222325;
  const auto add = [&](uint64_t value) { hash = (hash ^ value) * 0x100000001b3; };
  for (int i = 0; i < 200000; ++i) add(ExpTerm(-static_cast<float>(i) * 0.00015625f));
  uint64_t sum = uint64_t{1} << kTermBits;
  for (int i = 0; i < 200000; ++i, sum += sum >> 13) add(std::bit_cast<uint64_t>(LogOfTerms(sum)));
  for (int i = 0; i < 200000; ++i) {
    add(std::bit_cast<uint32_t>(LogprobOf(9.5f - static_cast<float>(i) * 0x1p-12f, 9.5f, 2.25)));
  }
  EXPECT_EQ(ExpTerm(-1.0f), 3235901865984u);
  EXPECT_EQ(LogOfTerms(uint64_t{3} << kTermBits), 0x1.193ea7aad030bp0);
  EXPECT_EQ(hash, 9248193064881599497u);
}

TEST(LogprobOf, SaysWhatInfinitiesAndNaNMean) {
  EXPECT_EQ(LogprobOf(kNaN, 1, 0), -kInf);
  EXPECT_EQ(LogprobOf(-kInf, 1, 0), -kInf);
  EXPECT_EQ(LogprobOf(-kInf, -kInf, 0), -kInf);
  EXPECT_EQ(LogprobOf(1, kInf, 0), -kInf);
  EXPECT_EQ(LogprobOf(kInf, kInf, 0), 0.0f);
}

TEST(SumExp, DoesNotDependOnTheOrder) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 6);
  std::vector<float> logits(50257);
  for (float& l : logits) l = normal(random);
  const float max = MaxLogit(logits);
  const uint64_t sum = SumExp(logits, max);
  std::shuffle(logits.begin(), logits.end(), random);
  EXPECT_EQ(SumExp(logits, max), sum);
}

TEST(Logprobs, AgreeWithFloat64OverARealVocabulary) {
  for (const float spread : {0.0f, 0.5f, 4.0f, 12.0f}) {
    std::mt19937 random(9);
    std::normal_distribution<float> normal(-40, spread + 1e-20f);
    std::vector<float> logits(50257);
    for (float& l : logits) l = normal(random);
    const double max = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const float l : logits) sum += std::exp(l - max);
    for (const int32_t id : {0, 1, 777, 50256}) {
      TokenLogprobs out;
      ComputeLogprobs(logits, id, 0, &out);
      const double exact = logits[static_cast<size_t>(id)] - max - std::log(sum);
      EXPECT_NEAR(out.logprob, exact, 1.5e-7 + std::abs(exact) * 6e-8) << spread;
    }
  }
}

}  // namespace
}  // namespace smt
