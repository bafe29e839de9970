// float16 and bfloat16 as bit patterns. Widening is exact, NaN payloads included; narrowing rounds to nearest, ties to
// even, overflows to infinity, keeps subnormals and signed zeros, and makes NaNs quiet.
#pragma once

#include <bit>
#include <cstdint>

namespace smt {

inline float BFloat16ToFloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float Float16ToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);  // inf, NaN
  if (magnitude >= 0x400) return std::bit_cast<float>(sign | ((magnitude << 13) + (uint32_t{127 - 15} << 23)));
  return std::bit_cast<float>(sign |
                              std::bit_cast<uint32_t>(static_cast<float>(magnitude) * 0x1p-24f));  // subnormal, 0
}

inline uint16_t FloatToFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00 | (magnitude >> 13 & 0x3ff);  // NaN, quiet
  } else if (magnitude >= 0x477ff000) {
    half = 0x7c00;                       // from 65520 = 65504 + half a step on: infinity
  } else if (magnitude >= 0x38800000) {  // 2^-14, the smallest normal
    const uint32_t rebiased = magnitude - (uint32_t{127 - 15} << 23);
    half = (rebiased + 0xfff + (rebiased >> 13 & 1)) >> 13;
  } else {
    // Subnormal: adding 0.5 leaves the value's bits above 2^-24 at the end of the mantissa, rounded by the adder.
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  }
  return static_cast<uint16_t>(sign | half);
}

}  // namespace smt
