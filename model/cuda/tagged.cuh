// Numbers that blocks of one kernel hand to each other without a barrier: each is stored together with a tag, in one
// access of eight bytes, and a reader asks again until the tag is the one it waits for. What would be a barrier's way
// (all stores acknowledged, a counter raised, its new value seen) and a load after it becomes one store and one load
// (the "LL" protocol of NVIDIA's NCCL).
//
// Tags of one place only ever change, and a place is not written again before all have read it: that is the kernel's to
// see to. All blocks have to be on the device.
#pragma once

#include <cstdint>

#include "model/cuda/few_rows.cuh"

namespace smt::cuda {

// A float32, or a pair of 16-bit numbers, and, in the upper half, its tag.
using TaggedWord = uint64_t;

__device__ __forceinline__ void PutTagged(TaggedWord* to, uint32_t bits, uint32_t tag) {
  const uint64_t word = uint64_t{tag} << 32 | bits;
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}
__device__ __forceinline__ void PutTagged(TaggedWord* to, float value, uint32_t tag) {
  PutTagged(to, __float_as_uint(value), tag);
}
__device__ __forceinline__ TaggedWord LoadTagged(const TaggedWord* from) {
  TaggedWord word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  return word;
}
// Two neighbours, on 16 bytes.
__device__ __forceinline__ void LoadTagged(const TaggedWord* from, TaggedWord& first, TaggedWord& second) {
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(first), "=l"(second) : "l"(from) : "memory");
}
__device__ __forceinline__ float NumberOf(TaggedWord word) { return __uint_as_float(static_cast<uint32_t>(word)); }
__device__ __forceinline__ bool HasTag(TaggedWord word, uint32_t tag) {
  return static_cast<uint32_t>(word >> 32) == tag;
}
// `word` was loaded from `from`, ahead.
__device__ __forceinline__ float AwaitTagged(TaggedWord word, const TaggedWord* from, uint32_t tag) {
  while (!HasTag(word, tag)) word = LoadTagged(from);
  return NumberOf(word);
}

// By the block: waits for rows [rows, columns] and calls put(row, column, two numbers). `columns` is even; rows of
// `from` begin on 16 bytes. kEach: words of 16 bytes that a thread has on their way at once.
template <int kEach, typename Put>
__device__ __forceinline__ void AwaitRows(const TaggedWord* from, int64_t ld, int rows, int columns, uint32_t tag,
                                          Put put) {
  const int pairs = columns / 2, all = rows * pairs;
  const float inverse = 1.0f / static_cast<float>(pairs);
  const auto row_of = [&](int pair) { return static_cast<int>((static_cast<float>(pair) + 0.5f) * inverse); };
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x); first < all; first += kEach * kFewRowsThreads) {
    unsigned waiting = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) waiting |= (first + i * kFewRowsThreads < all ? 1u : 0u) << i;
#pragma unroll 1
    do {
      TaggedWord words[kEach][2];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int pair = first + i * kFewRowsThreads, row = row_of(pair);
        if ((waiting >> i & 1) == 0) continue;
        LoadTagged(from + row * ld + 2 * (pair - row * pairs), words[i][0], words[i][1]);
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int pair = first + i * kFewRowsThreads, row = row_of(pair);
        if ((waiting >> i & 1) == 0 || !HasTag(words[i][0], tag) || !HasTag(words[i][1], tag)) continue;
        put(row, 2 * (pair - row * pairs), float2{NumberOf(words[i][0]), NumberOf(words[i][1])});
        waiting &= ~(1u << i);
      }
    } while (waiting != 0);
  }
}

}  // namespace smt::cuda
