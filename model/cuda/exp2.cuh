// The exponential that attention and GELU are made of.
#pragma once

namespace smt::cuda {

// 2^x to 2 ulp; 0 for -infinity.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace smt::cuda
