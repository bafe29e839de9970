#include "model/ops/kernels.h"

namespace smt::ops {
namespace {

const Kernels& Choose() {
  if (const Kernels* avx512 = Avx512Kernels()) return *avx512;
  if (const Kernels* avx2 = Avx2Kernels()) return *avx2;
  return *ScalarKernels();
}

}  // namespace

const Kernels& BestKernels() {
  static const Kernels& best = Choose();
  return best;
}

}  // namespace smt::ops
