// The arithmetic of a log-probability that host and device must agree on bit for bit. The terms of the sum are
// integers, so that their order does not matter; its logarithm is made of correctly rounded float64 operations, in
// which no product is added to anything but by fma. Usable from CUDA; compile without fast-math.
//
//   log p(id) = logit - max - log sum exp(logit - max)
#pragma once

#include <math.h>
#include <stdint.h>

#include "model/sampling/exp_weight.h"

namespace smt {

// Of a term: 64 bits hold the sum of 2^21 terms. What rounding down takes from the sum is less than ids * 2^-43, 6e-9
// for 50,000 ids: a tenth of a rounding of the float32 terms.
inline constexpr int kTermBits = 43;
inline constexpr float kTermCutoff = -30.0f;  // exp(x) * 2^43 < 1 from about -29.8 on
inline constexpr int32_t kMaxTerms = 1 << 21;

// floor(2^43 * exp(x)) for x <= 0: 2^43 at 0, 0 for NaN.
SMT_HOST_DEVICE inline uint64_t ExpTerm(float x) { return ExpFixed(x, kTermBits, kTermCutoff); }

// The natural logarithm of sum * 2^-43, within an ulp; `sum` > 0.
SMT_HOST_DEVICE inline double LogOfTerms(uint64_t sum) {
  int exponent = 0;
  double m = frexp(static_cast<double>(sum), &exponent);
  if (m < 0.70710678118654752) {
    m = 2.0 * m;
    --exponent;
  }
  // log(1 + f) = 2 atanh(s) = f - s (f - z (2/3 + 2/5 z + ...)) with s = f / (2 + f), z = s s, |s| < 0.172; the minimax
  // coefficients are those of fdlibm's log.
  const double f = m - 1.0, s = f / (2.0 + f), z = s * s;
  double t = fma(z, 1.479819860511658591e-1, 1.531383769920937332e-1);
  t = fma(z, t, 1.818357216161805012e-1);
  t = fma(z, t, 2.222219843214978396e-1);
  t = fma(z, t, 2.857142874366239149e-1);
  t = fma(z, t, 3.999999999940941908e-1);
  t = fma(z, t, 6.666666666666735130e-1);
  const double log_m = fma(-s, fma(-z, t, f), f), n = exponent - kTermBits;
  return fma(n, 6.93147180369123816490e-1, fma(n, 1.90821492927058770002e-10, log_m));
}

// `log_sum`: LogOfTerms over the row whose largest logit is `max`; it does not matter where `max` is not finite. NaN
// counts as -infinity; where a logit is +infinity those that are have 0 and all others -infinity. The signs of logits
// that are zero do not matter.
SMT_HOST_DEVICE inline float LogprobOf(float logit, float max, double log_sum) {
  if (isnan(logit) || max == -INFINITY) return -INFINITY;
  if (max == INFINITY) return logit == max ? 0.0f : -INFINITY;
  return static_cast<float>(static_cast<double>(logit) - static_cast<double>(max) - log_sum + 0.0);  // no -0
}

}  // namespace smt
