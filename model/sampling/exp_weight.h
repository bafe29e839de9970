// The arithmetic of a draw that host and device must agree on bit for bit: correctly rounded float32 operations
// (+, -, /, fmaf) and integers only. Usable from CUDA; compile without fast-math. No product is added to anything but
// by fmaf, so that a compiler finds nothing to fuse.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define SMT_HOST_DEVICE __host__ __device__
#else
#define SMT_HOST_DEVICE
#endif

namespace smt {

// Constants of ExpWeight, shared with the vector implementation.
struct ExpConstants {
  static constexpr int kWeightBits = 32;              // of a weight, after the point
  static constexpr float kCutoff = -24.0f;            // exp(x) * 2^32 < 1 from about -22.2 on
  static constexpr float kLog2E = 1.44269504088896f;  // 1 / ln 2
  static constexpr float kRound = 12582912.0f;        // 1.5 * 2^23: adding it rounds to an integer, ties to even
  static constexpr float kLn2Hi = 0.693359375f;       // 9 bits, so n * kLn2Hi is exact for |n| < 2^15
  static constexpr float kLn2Lo = -2.12194440e-4f;
  // exp(r) = 1 + r (1 + r (c2 + r (c3 + ...))) on |r| <= ln2 / 2, relative error below 1e-7.
  static constexpr float kC2 = 5.0000001201e-1f;
  static constexpr float kC3 = 1.6666665459e-1f;
  static constexpr float kC4 = 4.1665795894e-2f;
  static constexpr float kC5 = 8.3334519073e-3f;
  static constexpr float kC6 = 1.3981999507e-3f;
  static constexpr float kC7 = 1.9875691500e-4f;
};

// exp(x) / 2^n, in [0.70, 1.42], n being the whole number next to x / ln 2.
SMT_HOST_DEVICE inline float ExpOfRest(float x, float n) {
  using C = ExpConstants;
  float r = fmaf(n, -C::kLn2Hi, x);
  r = fmaf(n, -C::kLn2Lo, r);
  float p = fmaf(C::kC7, r, C::kC6);
  p = fmaf(p, r, C::kC5);
  p = fmaf(p, r, C::kC4);
  p = fmaf(p, r, C::kC3);
  p = fmaf(p, r, C::kC2);
  p = fmaf(p, r, 1.0f);
  return fmaf(p, r, 1.0f);
}

// floor(2^bits * exp(x)) for x <= 0, exp being the polynomial above: 2^bits at 0, 0 up to the cutoff and for NaN.
// `bits` is at least 24, and exp(cutoff) * 2^bits lies in (2^-24, 1).
SMT_HOST_DEVICE inline uint64_t ExpFixed(float x, int bits, float cutoff) {
  using C = ExpConstants;
  if (!(x > cutoff)) return 0;
  const float shifted = fmaf(x, C::kLog2E, C::kRound), n = shifted - C::kRound;
  float p = ExpOfRest(x, n);
  // The lowest bits of `shifted` are n's, so this is p * 2^(n + bits), exactly; its conversion rounds down.
  uint32_t scaled = 0, power = 0;
  memcpy(&scaled, &p, sizeof(scaled));
  memcpy(&power, &shifted, sizeof(power));
  scaled += (power + static_cast<uint32_t>(bits)) << 23;
  memcpy(&p, &scaled, sizeof(p));
  return static_cast<uint64_t>(p);
}

// The weight of an id whose scaled logit is `x` above the largest one: floor(2^32 * exp(x)).
SMT_HOST_DEVICE inline uint64_t ExpWeight(float x) {
  return ExpFixed(x, ExpConstants::kWeightBits, ExpConstants::kCutoff);
}

// ceil(top_p * sum), exactly, for 0 < top_p <= 1.
SMT_HOST_DEVICE inline uint64_t TopPThreshold(float top_p, uint64_t sum) {
  if (!(top_p < 1.0f)) return sum;
  int exponent = 0;
  const float fraction = frexpf(top_p, &exponent);  // top_p = fraction * 2^exponent, exponent <= 0
  const uint64_t mantissa = static_cast<uint64_t>(fraction * 16777216.0f);
  const int shift = 24 - exponent;
  const unsigned __int128 product = static_cast<unsigned __int128>(mantissa) * sum;  // < 2^88
  if (shift >= 100) return sum > 0 ? 1 : 0;
  const unsigned __int128 one = 1;
  return static_cast<uint64_t>((product + (one << shift) - 1) >> shift);
}

// The smallest weight that min_p in [0, 1] keeps: ceil(min_p * w_max), w_max being 2^32 always.
SMT_HOST_DEVICE inline uint64_t MinPThreshold(float min_p) {
  return static_cast<uint64_t>(ceilf(min_p * 4294967296.0f));
}

// floor(random * sum / 2^64).
SMT_HOST_DEVICE inline uint64_t ScaleRandom(uint64_t random, uint64_t sum) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(random) * sum) >> 64);
}

}  // namespace smt
