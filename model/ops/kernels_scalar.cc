// The kernels in plain C++; the compiler vectorises them where its target has fused multiply-adds (64-bit ARM).
#include <bit>
#include <cstdint>

#include "model/ops/kernels.h"

#define SMT_INLINE [[maybe_unused]] static inline
#define SMT_FN [[maybe_unused]] static
#define SMT_ISA_NAME "scalar"

namespace smt::ops {
namespace scalar {
#include "model/ops/v16_scalar.inc"
// After V16, which it is written in:
#include "model/ops/body.inc"
}  // namespace scalar

const Kernels* ScalarKernels() { return &scalar::kTable; }

}  // namespace smt::ops
