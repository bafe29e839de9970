#include "model/sampling/logit_scan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "model/sampling/exp_weight.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define SMT_AVX2 __attribute__((target("avx2,fma")))
#endif

namespace smt {
namespace {

using C = ExpConstants;

// exp(x) in float32 for x <= 0 by ExpWeight's polynomial, unrounded; 0 below -87.
float ExpFloat(float x) {
  if (!(x > -87.0f)) return 0.0f;
  const float n = fmaf(x, C::kLog2E, C::kRound) - C::kRound;
  float r = fmaf(n, -C::kLn2Hi, x);
  r = fmaf(n, -C::kLn2Lo, r);
  float p = fmaf(C::kC7, r, C::kC6);
  for (float c : {C::kC5, C::kC4, C::kC3, C::kC2, 1.0f, 1.0f}) p = fmaf(p, r, c);
  return std::ldexp(p, static_cast<int>(n));
}

double SumLanes(const double* lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

}  // namespace

namespace scalar {

float MaxLogit(std::span<const float> logits) {
  float max = -std::numeric_limits<float>::infinity();
  for (float l : logits) max = l > max ? l : max;
  return max;
}

uint64_t WeighLogits(std::span<const float> logits, float temperature, float max_scaled, uint64_t* weights,
                     uint64_t* block_sums) {
  uint64_t total = 0;
  for (size_t begin = 0; begin < logits.size(); begin += kWeightBlock) {
    uint64_t sum = 0;
    for (size_t i = begin, end = std::min(begin + kWeightBlock, logits.size()); i < end; ++i) {
      sum += weights[i] = ExpWeight(logits[i] / temperature - max_scaled);
    }
    *block_sums++ = sum;
    total += sum;
  }
  return total;
}

double SumExp(std::span<const float> logits, float max) {
  double lanes[8] = {};
  for (size_t i = 0; i < logits.size(); ++i) lanes[i % 8] += ExpFloat(logits[i] - max);
  return SumLanes(lanes);
}

}  // namespace scalar

#if defined(__x86_64__)
namespace {

const bool kHaveAvx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");

SMT_AVX2 float MaxAvx2(std::span<const float> logits) {
  // max_ps gives its second operand when either is NaN, so a NaN logit leaves the maximum as it is.
  __m256 max = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  size_t i = 0;
  for (; i + 8 <= logits.size(); i += 8) max = _mm256_max_ps(_mm256_loadu_ps(logits.data() + i), max);
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, max);
  return std::max(scalar::MaxLogit(lanes), scalar::MaxLogit(logits.subspan(i)));
}

struct Exp8 {
  __m256 p;     // in [0.70, 1.42]
  __m256i n;    // exp(x) = p * 2^n
  __m256 keep;  // x > cutoff
};

SMT_AVX2 inline Exp8 ExpAvx2(__m256 x, float cutoff) {
  const __m256 round = _mm256_set1_ps(C::kRound);
  const __m256 keep = _mm256_cmp_ps(x, _mm256_set1_ps(cutoff), _CMP_GT_OQ);
  x = _mm256_and_ps(x, keep);  // what is not kept is computed at 0
  const __m256 n = _mm256_sub_ps(_mm256_fmadd_ps(x, _mm256_set1_ps(C::kLog2E), round), round);
  __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-C::kLn2Hi), x);
  r = _mm256_fmadd_ps(n, _mm256_set1_ps(-C::kLn2Lo), r);
  __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(C::kC7), r, _mm256_set1_ps(C::kC6));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(C::kC5));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(C::kC4));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(C::kC3));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(C::kC2));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  return {p, _mm256_cvtps_epi32(n), keep};
}

// Four weights from four 32-bit mantissas and shifts.
SMT_AVX2 inline __m256i Shift4(__m128i mantissa, __m128i left, __m128i right) {
  const __m256i m = _mm256_sllv_epi64(_mm256_cvtepu32_epi64(mantissa), _mm256_cvtepu32_epi64(left));
  return _mm256_srlv_epi64(m, _mm256_cvtepu32_epi64(right));
}

SMT_AVX2 uint64_t WeighAvx2(std::span<const float> logits, float temperature, float max_scaled, uint64_t* weights,
                            uint64_t* block_sums) {
  const __m256 divisor = _mm256_set1_ps(temperature), max = _mm256_set1_ps(max_scaled);
  const __m256i zero = _mm256_setzero_si256(), eight = _mm256_set1_epi32(8);
  const size_t whole = logits.size() / kWeightBlock * kWeightBlock;
  uint64_t total = 0;
  for (size_t begin = 0; begin < whole; begin += kWeightBlock) {
    __m256i sums = zero;
    for (size_t i = begin; i < begin + kWeightBlock; i += 8) {
      const __m256 x = _mm256_sub_ps(_mm256_div_ps(_mm256_loadu_ps(logits.data() + i), divisor), max);
      const Exp8 e = ExpAvx2(x, C::kCutoff);
      const __m256i mantissa = _mm256_and_si256(_mm256_cvttps_epi32(_mm256_mul_ps(e.p, _mm256_set1_ps(16777216.0f))),
                                                _mm256_castps_si256(e.keep));
      const __m256i shift = _mm256_add_epi32(e.n, eight);
      const __m256i left = _mm256_max_epi32(shift, zero);
      const __m256i right = _mm256_max_epi32(_mm256_sub_epi32(zero, shift), zero);
      const __m256i low =
          Shift4(_mm256_castsi256_si128(mantissa), _mm256_castsi256_si128(left), _mm256_castsi256_si128(right));
      const __m256i high = Shift4(_mm256_extracti128_si256(mantissa, 1), _mm256_extracti128_si256(left, 1),
                                  _mm256_extracti128_si256(right, 1));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + i), low);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + i + 4), high);
      sums = _mm256_add_epi64(sums, _mm256_add_epi64(low, high));
    }
    alignas(32) uint64_t lanes[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums);
    *block_sums = lanes[0] + lanes[1] + lanes[2] + lanes[3];
    total += *block_sums++;
  }
  if (whole == logits.size()) return total;
  return total + scalar::WeighLogits(logits.subspan(whole), temperature, max_scaled, weights + whole, block_sums);
}

SMT_AVX2 double SumExpAvx2(std::span<const float> logits, float max) {
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
  size_t i = 0;
  for (; i + 8 <= logits.size(); i += 8) {
    const Exp8 e = ExpAvx2(_mm256_sub_ps(_mm256_loadu_ps(logits.data() + i), _mm256_set1_ps(max)), -87.0f);
    const __m256 scale =
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e.n, _mm256_set1_epi32(127)), 23));  // 2^n
    const __m256 value = _mm256_and_ps(_mm256_mul_ps(e.p, scale), e.keep);
    low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(value)));
    high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1)));
  }
  alignas(32) double lanes[8];
  _mm256_store_pd(lanes, low);
  _mm256_store_pd(lanes + 4, high);
  for (; i < logits.size(); ++i) lanes[i % 8] += ExpFloat(logits[i] - max);
  return SumLanes(lanes);
}

}  // namespace

float MaxLogit(std::span<const float> logits) { return kHaveAvx2 ? MaxAvx2(logits) : scalar::MaxLogit(logits); }

uint64_t WeighLogits(std::span<const float> logits, float temperature, float max_scaled, uint64_t* weights,
                     uint64_t* block_sums) {
  return kHaveAvx2 ? WeighAvx2(logits, temperature, max_scaled, weights, block_sums)
                   : scalar::WeighLogits(logits, temperature, max_scaled, weights, block_sums);
}

double SumExp(std::span<const float> logits, float max) {
  return kHaveAvx2 ? SumExpAvx2(logits, max) : scalar::SumExp(logits, max);
}

#else

float MaxLogit(std::span<const float> logits) { return scalar::MaxLogit(logits); }

uint64_t WeighLogits(std::span<const float> logits, float temperature, float max_scaled, uint64_t* weights,
                     uint64_t* block_sums) {
  return scalar::WeighLogits(logits, temperature, max_scaled, weights, block_sums);
}

double SumExp(std::span<const float> logits, float max) { return scalar::SumExp(logits, max); }

#endif

}  // namespace smt
