#include "model/io/float_bits.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "gtest/gtest.h"

namespace smt {
namespace {

// What a float16 is by definition, in double arithmetic.
double Float16ByDefinition(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 0x3ff;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

TEST(FloatBitsTest, EveryFloat16WidensToItsValueAndNarrowsBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = Float16ToFloat(half);
    if ((half & 0x7c00) == 0x7c00) {
      const bool is_nan = (half & 0x3ff) != 0;
      ASSERT_EQ(std::isnan(value), is_nan) << bits;
      ASSERT_EQ(std::isinf(value), !is_nan) << bits;
      ASSERT_EQ(FloatToFloat16(value), is_nan ? half | 0x200 : half) << bits;  // NaNs come back quiet
    } else {
      ASSERT_EQ(static_cast<double>(value), Float16ByDefinition(half)) << bits;
      ASSERT_EQ(std::signbit(value), (half & 0x8000) != 0) << bits;
      ASSERT_EQ(FloatToFloat16(value), half) << bits;
    }
  }
}

TEST(FloatBitsTest, BetweenTwoFloat16TheNearerIsTakenAndTheEvenOneHalfway) {
  for (uint16_t half = 0; half < 0x7c00; ++half) {  // the last pair is 65504 and, but for the exponent, 65536
    const double low = Float16ByDefinition(half), high = Float16ByDefinition(half + 1);
    const auto middle = static_cast<float>((low + high) / 2);  // exact
    const auto even = static_cast<uint16_t>((half & 1) == 0 ? half : half + 1);
    for (const uint16_t sign : {0, 0x8000}) {
      const float side = sign == 0 ? 1.0f : -1.0f;
      ASSERT_EQ(FloatToFloat16(side * middle), sign | even) << half;
      ASSERT_EQ(FloatToFloat16(side * std::nextafter(middle, 0.0f)), sign | half) << half;
      ASSERT_EQ(FloatToFloat16(side * std::nextafter(middle, 1e9f)), sign | (half + 1)) << half;
    }
  }
  EXPECT_EQ(FloatToFloat16(std::numeric_limits<float>::max()), 0x7c00);
  EXPECT_EQ(FloatToFloat16(-std::numeric_limits<float>::denorm_min()), 0x8000);
}

TEST(FloatBitsTest, EveryBFloat16WidensAndNarrowsBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto brain = static_cast<uint16_t>(bits);
    const float value = BFloat16ToFloat(brain);
    ASSERT_EQ(std::bit_cast<uint32_t>(value), bits << 16);
    ASSERT_EQ(FloatToBFloat16(value), std::isnan(value) ? brain | 0x40 : brain) << bits;
  }
}

TEST(FloatBitsTest, BetweenTwoBFloat16TheNearerIsTakenAndTheEvenOneHalfway) {
  for (uint32_t brain = 0; brain < 0x7f80; ++brain) {
    const uint32_t middle = brain << 16 | 0x8000;
    ASSERT_EQ(FloatToBFloat16(std::bit_cast<float>(middle)), brain + (brain & 1));
    ASSERT_EQ(FloatToBFloat16(std::bit_cast<float>(middle - 1)), brain);
    ASSERT_EQ(FloatToBFloat16(std::bit_cast<float>(middle + 1)), brain + 1);
    ASSERT_EQ(FloatToBFloat16(std::bit_cast<float>(0x80000000 | middle)), 0x8000 | (brain + (brain & 1)));
  }
  // A NaN whose payload lies in the low bits only must not become infinity.
  EXPECT_TRUE(std::isnan(BFloat16ToFloat(FloatToBFloat16(std::bit_cast<float>(0x7f800001u)))));
}

}  // namespace
}  // namespace smt
