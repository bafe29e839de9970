#include "model/sampling/logit_scan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "model/sampling/exp_weight.h"
#include "model/sampling/log_softmax.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define SMT_AVX2 __attribute__((target("avx2,fma")))
#endif

namespace smt {
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

uint64_t SumExp(std::span<const float> logits, float max) {
  uint64_t sum = 0;
  for (float l : logits) sum += ExpTerm(l - max);
  return sum;
}

}  // namespace scalar

#if defined(__x86_64__)
namespace {

using C = ExpConstants;

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

// Four fixed-point numbers from four 32-bit mantissas and shifts.
SMT_AVX2 inline __m256i Shift4(__m128i mantissa, __m128i left, __m128i right) {
  const __m256i m = _mm256_sllv_epi64(_mm256_cvtepu32_epi64(mantissa), _mm256_cvtepu32_epi64(left));
  return _mm256_srlv_epi64(m, _mm256_cvtepu32_epi64(right));
}

struct Fixed8 {
  __m256i low, high;  // four each
};

// ExpFixed.
SMT_AVX2 inline Fixed8 ExpFixedAvx2(__m256 x, int bits, float cutoff) {
  const __m256i zero = _mm256_setzero_si256();
  const Exp8 e = ExpAvx2(x, cutoff);
  const __m256i mantissa = _mm256_and_si256(_mm256_cvttps_epi32(_mm256_mul_ps(e.p, _mm256_set1_ps(16777216.0f))),
                                            _mm256_castps_si256(e.keep));
  const __m256i shift = _mm256_add_epi32(e.n, _mm256_set1_epi32(bits - 24));
  const __m256i left = _mm256_max_epi32(shift, zero);
  const __m256i right = _mm256_max_epi32(_mm256_sub_epi32(zero, shift), zero);
  return {Shift4(_mm256_castsi256_si128(mantissa), _mm256_castsi256_si128(left), _mm256_castsi256_si128(right)),
          Shift4(_mm256_extracti128_si256(mantissa, 1), _mm256_extracti128_si256(left, 1),
                 _mm256_extracti128_si256(right, 1))};
}

SMT_AVX2 inline uint64_t SumOf(__m256i sums) {
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums);
  return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

SMT_AVX2 uint64_t WeighAvx2(std::span<const float> logits, float temperature, float max_scaled, uint64_t* weights,
                            uint64_t* block_sums) {
  const __m256 divisor = _mm256_set1_ps(temperature), max = _mm256_set1_ps(max_scaled);
  const size_t whole = logits.size() / kWeightBlock * kWeightBlock;
  uint64_t total = 0;
  for (size_t begin = 0; begin < whole; begin += kWeightBlock) {
    __m256i sums = _mm256_setzero_si256();
    for (size_t i = begin; i < begin + kWeightBlock; i += 8) {
      const __m256 x = _mm256_sub_ps(_mm256_div_ps(_mm256_loadu_ps(logits.data() + i), divisor), max);
      const Fixed8 w = ExpFixedAvx2(x, C::kWeightBits, C::kCutoff);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + i), w.low);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + i + 4), w.high);
      sums = _mm256_add_epi64(sums, _mm256_add_epi64(w.low, w.high));
    }
    *block_sums = SumOf(sums);
    total += *block_sums++;
  }
  if (whole == logits.size()) return total;
  return total + scalar::WeighLogits(logits.subspan(whole), temperature, max_scaled, weights + whole, block_sums);
}

SMT_AVX2 uint64_t SumExpAvx2(std::span<const float> logits, float max) {
  __m256i sums = _mm256_setzero_si256();
  size_t i = 0;
  for (; i + 8 <= logits.size(); i += 8) {
    const __m256 x = _mm256_sub_ps(_mm256_loadu_ps(logits.data() + i), _mm256_set1_ps(max));
    const Fixed8 terms = ExpFixedAvx2(x, kTermBits, kTermCutoff);
    sums = _mm256_add_epi64(sums, _mm256_add_epi64(terms.low, terms.high));
  }
  return SumOf(sums) + scalar::SumExp(logits.subspan(i), max);
}

}  // namespace

float MaxLogit(std::span<const float> logits) { return kHaveAvx2 ? MaxAvx2(logits) : scalar::MaxLogit(logits); }

uint64_t WeighLogits(std::span<const float> logits, float temperature, float max_scaled, uint64_t* weights,
                     uint64_t* block_sums) {
  return kHaveAvx2 ? WeighAvx2(logits, temperature, max_scaled, weights, block_sums)
                   : scalar::WeighLogits(logits, temperature, max_scaled, weights, block_sums);
}

uint64_t SumExp(std::span<const float> logits, float max) {
  return kHaveAvx2 ? SumExpAvx2(logits, max) : scalar::SumExp(logits, max);
}

#else

float MaxLogit(std::span<const float> logits) { return scalar::MaxLogit(logits); }

uint64_t WeighLogits(std::span<const float> logits, float temperature, float max_scaled, uint64_t* weights,
                     uint64_t* block_sums) {
  return scalar::WeighLogits(logits, temperature, max_scaled, weights, block_sums);
}

uint64_t SumExp(std::span<const float> logits, float max) { return scalar::SumExp(logits, max); }

#endif

}  // namespace smt
