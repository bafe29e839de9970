// Instructions of the tensor cores and of the copies that feed them. E: the format of the operands, __nv_bfloat16 or
// __half.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace smt::cuda {

inline constexpr int kWarp = 32;

template <typename E>
inline constexpr bool kIsHalf = std::is_same_v<E, __half>;
// Of weights for rows of T: float32 rows are split, as their weights are.
template <typename T>
using WeightOf = std::conditional_t<sizeof(T) == 4, __nv_bfloat16, T>;

template <typename E>
__device__ __forceinline__ void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kIsHalf<E>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    return;
  }
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <typename E>
__device__ __forceinline__ uint32_t Pair(const E* p) {
  static_assert(sizeof(E) == 2);
  return *reinterpret_cast<const uint32_t*>(p);
}
// Two numbers, rounded, the first one low; and back.
template <typename E>
__device__ __forceinline__ uint32_t PackPair(float first, float second) {
  if constexpr (kIsHalf<E>) {
    const __half2 pair = __floats2half2_rn(first, second);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}
template <typename E>
__device__ __forceinline__ float2 UnpackPair(uint32_t pair) {
  if constexpr (kIsHalf<E>) {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  } else {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
  }
}

template <typename E>
__device__ __forceinline__ void LoadMatrices(uint32_t (&to)[4], const E* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(from))));
}

template <typename E>
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&to)[4], const E* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(from))));
}

// x = high + low, each bfloat16, but for 2^-17 of x.
__device__ __forceinline__ void SplitPair(float2 x, uint32_t& high, uint32_t& low) {
  const __nv_bfloat162 h = __floats2bfloat162_rn(x.x, x.y);
  const __nv_bfloat162 l = __floats2bfloat162_rn(x.x - __low2float(h), x.y - __high2float(h));
  high = *reinterpret_cast<const uint32_t*>(&h);
  low = *reinterpret_cast<const uint32_t*>(&l);
}

__device__ __forceinline__ void SplitOne(float x, __nv_bfloat16& high, __nv_bfloat16& low) {
  high = __float2bfloat16_rn(x);
  low = __float2bfloat16_rn(x - __bfloat162float(high));
}

__device__ __forceinline__ void CopyAsync(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from));
}

}  // namespace smt::cuda
