// The kernels for processors with AVX512. Only functions marked with the target attribute use it, so the program
// still starts where it is missing; hence no lambdas and no library templates in the included bodies.
#include <cstdint>

#include "model/ops/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own AVX-512 intrinsics start from an undefined register on purpose (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define SMT_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")))
#define SMT_INLINE [[maybe_unused]] SMT_TARGET __attribute__((always_inline)) static inline
#define SMT_FN [[maybe_unused]] SMT_TARGET static
#define SMT_ISA_NAME "avx512"

namespace smt::ops {
namespace avx512 {
#include "model/ops/v16_avx512.inc"
// After V16, which it is written in:
#include "model/ops/body.inc"
}  // namespace avx512

const Kernels* Avx512Kernels() {
  static const bool supported = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                                __builtin_cpu_supports("fma");
  return supported ? &avx512::kTable : nullptr;
}

}  // namespace smt::ops
#else
namespace smt::ops {
const Kernels* Avx512Kernels() { return nullptr; }
}  // namespace smt::ops
#endif
