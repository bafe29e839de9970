// The kernels for processors with AVX2. Only functions marked with the target attribute use it, so the program
// still starts where it is missing; hence no lambdas and no library templates in the included bodies.
#include <cstdint>

#include "model/ops/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define SMT_TARGET __attribute__((target("avx2,fma")))
#define SMT_INLINE [[maybe_unused]] SMT_TARGET __attribute__((always_inline)) static inline
#define SMT_FN [[maybe_unused]] SMT_TARGET static
#define SMT_ISA_NAME "avx2"

namespace smt::ops {
namespace avx2 {
#include "model/ops/v16_avx2.inc"
// After V16, which it is written in:
#include "model/ops/body.inc"
}  // namespace avx2

const Kernels* Avx2Kernels() {
  static const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return supported ? &avx2::kTable : nullptr;
}

}  // namespace smt::ops
#else
namespace smt::ops {
const Kernels* Avx2Kernels() { return nullptr; }
}  // namespace smt::ops
#endif
