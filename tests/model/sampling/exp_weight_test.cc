// The arithmetic under a draw: random numbers, integer weights and the exact thresholds.
#include "model/sampling/exp_weight.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "model/sampling/logit_scan.h"
#include "model/sampling/philox.h"

namespace smt {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNaN = std::nanf("");

void ExpectBlock(const PhiloxBlock& got, const PhiloxBlock& want) {
  for (int i = 0; i < 4; ++i) EXPECT_EQ(got.word[i], want.word[i]) << "word " << i;
}

// The known answers published with Random123 (kat_vectors, philox 4x32 10).
TEST(Philox, GivesThePublishedAnswers) {
  ExpectBlock(Philox4x32({{0, 0, 0, 0}}, 0, 0), {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  ExpectBlock(Philox4x32({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u), {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  ExpectBlock(Philox4x32({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0),
              {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST(Philox, DrawBitsAreWordsOneAndZeroOfSeedAndPosition) {
  const PhiloxBlock block = Philox4x32({{0x00000005, 0x00000007, 0, 0}}, 0x9abcdef0, 0x12345678);
  EXPECT_EQ(DrawBits(0x123456789abcdef0, 0x0000000700000005),
            static_cast<uint64_t>(block.word[1]) << 32 | block.word[0]);
  EXPECT_EQ(DrawBits(0, 0), 0xe169c58d6627e8d5);
}

TEST(ExpWeight, IsTwoToTheThirtyTwoAtZeroAndNothingFarBelow) {
  EXPECT_EQ(ExpWeight(0.0f), uint64_t{1} << 32);
  EXPECT_EQ(ExpWeight(-0.0f), uint64_t{1} << 32);
  EXPECT_EQ(ExpWeight(-24.0f), 0u);
  EXPECT_EQ(ExpWeight(-kInf), 0u);
  EXPECT_EQ(ExpWeight(kNaN), 0u);
}

TEST(ExpWeight, FollowsTheExponentialWithinThreeRoundings) {
  for (float x = 0; x > -24; x -= 0.00037f) {
    const double exact = std::exp(static_cast<double>(x)) * 4294967296.0;
    EXPECT_NEAR(static_cast<double>(ExpWeight(x)), exact, 1.0 + exact * 2e-7) << x;
  }
}

// Fixes the numbers themselves: another implementation must give exactly this checksum.
TEST(ExpWeight, HasNotChanged) {
  uint64_t hash = 0xcbf29ce484222325;
  for (int i = 0; i < 200000; ++i) {
    hash = (hash ^ ExpWeight(-static_cast<float>(i) * 0.000125f)) * 0x100000001b3;
  }
  EXPECT_EQ(ExpWeight(-1.0f), 1580030208u);
  EXPECT_EQ(ExpWeight(-10.5f), 118268u);
  EXPECT_EQ(hash, 0x4368e74aa718fd99u);
}

TEST(TopPThreshold, IsTheExactCeiling) {
  EXPECT_EQ(TopPThreshold(1.0f, 12345), 12345u);
  EXPECT_EQ(TopPThreshold(0.5f, 10), 5u);
  EXPECT_EQ(TopPThreshold(0.5f, 11), 6u);
  EXPECT_EQ(TopPThreshold(0.25f, uint64_t{1} << 62), uint64_t{1} << 60);
  EXPECT_EQ(TopPThreshold(0.1f, 10), 2u);  // 0.1f is a little more than a tenth
  EXPECT_EQ(TopPThreshold(0.9f, 10), 9u);  // and 0.9f a little less than nine
  EXPECT_EQ(TopPThreshold(std::numeric_limits<float>::denorm_min(), ~uint64_t{0}), 1u);
  EXPECT_EQ(TopPThreshold(std::nextafter(1.0f, 0.0f), uint64_t{1} << 40), (uint64_t{1} << 40) - (1 << 16));
}

TEST(MinPThreshold, ScalesTheLargestWeight) {
  EXPECT_EQ(MinPThreshold(0.0f), 0u);
  EXPECT_EQ(MinPThreshold(0.5f), uint64_t{1} << 31);
  EXPECT_EQ(MinPThreshold(1.0f), uint64_t{1} << 32);
  EXPECT_EQ(MinPThreshold(1e-20f), 1u);
}

TEST(ScaleRandom, StaysBelowTheSum) {
  EXPECT_EQ(ScaleRandom(0, 100), 0u);
  EXPECT_EQ(ScaleRandom(~uint64_t{0}, 100), 99u);
  EXPECT_EQ(ScaleRandom(uint64_t{1} << 63, 100), 50u);
}

TEST(LogitScan, VectorAndScalarPassesGiveTheSameBits) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, 8);
  for (size_t size : {1, 7, 8, 255, 256, 257, 1000, 4096, 50257}) {
    std::vector<float> logits(size);
    for (float& l : logits) l = normal(random);
    if (size > 100) {
      logits[3] = kNaN;
      logits[50] = -kInf;
      logits[size - 1] = kNaN;
      logits[size - 2] = 1e-38f;
    }
    const float max = MaxLogit(logits);
    EXPECT_EQ(max, scalar::MaxLogit(logits));
    for (float temperature : {1.0f, 0.7f, 3.0f, 0.01f}) {
      const size_t blocks = (size + kWeightBlock - 1) / kWeightBlock;
      std::vector<uint64_t> weights(size), sums(blocks), expected_weights(size), expected_sums(blocks);
      const uint64_t sum = WeighLogits(logits, temperature, max / temperature, weights.data(), sums.data());
      EXPECT_EQ(sum, scalar::WeighLogits(logits, temperature, max / temperature, expected_weights.data(),
                                         expected_sums.data()));
      EXPECT_EQ(weights, expected_weights);
      EXPECT_EQ(sums, expected_sums);
    }
    EXPECT_EQ(SumExp(logits, max), scalar::SumExp(logits, max));
  }
}

TEST(LogitScan, TheLargestOfNothingIsMinusInfinity) {
  const std::vector<float> nothing(20, kNaN);
  EXPECT_EQ(MaxLogit(nothing), -kInf);
  EXPECT_EQ(MaxLogit(std::span<const float>()), -kInf);
  std::vector<float> one(20, kNaN);
  one[13] = -3;
  EXPECT_EQ(MaxLogit(one), -3);
}

}  // namespace
}  // namespace smt
