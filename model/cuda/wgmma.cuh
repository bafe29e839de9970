// What matrix products on compute capability 9.0a are made of: barriers in shared memory, tensor copies, wgmma, and the
// loop over the slabs and pieces of the inner dimension. SharedAddress-es are of the block's own shared memory.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "model/cuda/bulk_copy.cuh"
#include "model/cuda/tensor_core.cuh"
#include "model/cuda/tensor_map.h"

namespace smt::cuda {

__device__ __forceinline__ void InitBarrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void Arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void ArriveExpecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Until the barrier's phase of this parity is over.
__device__ __forceinline__ void WaitFor(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  } while (done == 0);
}

// All planes of the map's box at (column, row).
__device__ __forceinline__ void LoadBox(uint32_t to, const CUtensorMap& map, int column, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(column), "r"(row), "r"(0)
      : "memory");
}

// The map's box at (column, row) from shared memory, stored or added to what is there, in the background. One thread
// begins copies, commits them, and may wait until all that it committed have been read.
__device__ __forceinline__ void StoreBox(const CUtensorMap& map, int column, int row, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
               "r"(from), "r"(column), "r"(row)
               : "memory");
}
__device__ __forceinline__ void AddBox(const CUtensorMap& map, int column, int row, uint32_t from) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
      "r"(from), "r"(column), "r"(row)
      : "memory");
}
__device__ __forceinline__ void CommitStores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
__device__ __forceinline__ void AwaitStoresRead() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ __forceinline__ void AwaitStores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
// What this thread stored into shared memory can be copied.
__device__ __forceinline__ void FenceForCopies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Of `threads` threads, a number of warps; barrier 0 is __syncthreads'.
__device__ __forceinline__ void SyncSome(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Of a matrix [.., 64] of 16-bit numbers in 128-byte swizzle, 1024-byte aligned: k-major, 1024 bytes between groups of
// eight rows. A k16 step further is 32 bytes further, the swizzle being of the address's bits.
__device__ __forceinline__ uint64_t Descriptor(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroup = uint64_t{1024 >> 4} << 32, kUnused = uint64_t{1} << 16;
  return kSwizzle128 | kGroup | kUnused | (address & 0x3ffff) >> 4;
}

__device__ __forceinline__ void FenceWgmma() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void CommitWgmma() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void WaitWgmma() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of the registers across.
template <int kCount>
__device__ __forceinline__ void Pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// d = a b^T + (add ? d : 0) of a k16 step, a being [64, 16] and b [n, 16] of E. Of d, lane 4 g + t of warp w has
// columns 8 i + 2 t and the next in d[4 i] and d[4 i + 1] for row 16 w + g, in the following two for row 16 w + g + 8.
#define SMT_FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SMT_SIXTEEN(i) SMT_FOUR(i), SMT_FOUR(i + 4), SMT_FOUR(i + 8), SMT_FOUR(i + 12)

#define SMT_STEP(format, shape, registers, a_at, b_at, add_at, ...)                           \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" add_at                                    \
               ", 0;\n"                                                                       \
               "wgmma.mma_async.sync.aligned." shape ".f32." format "." format " {" registers \
               "}, "                                                                          \
               "%" a_at ", %" b_at ", p, 1, 1, 0, 0;\n}"                                      \
               : __VA_ARGS__                                                                  \
               : "l"(a), "l"(b), "r"(add))

template <typename E>
__device__ __forceinline__ void WgmmaStep(float (&d)[16], uint64_t a, uint64_t b, int add) {
#define SMT_REGISTERS "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
  if constexpr (kIsHalf<E>) {
    SMT_STEP("f16", "m64n32k16", SMT_REGISTERS, "16", "17", "18", SMT_SIXTEEN(0));
  } else {
    SMT_STEP("bf16", "m64n32k16", SMT_REGISTERS, "16", "17", "18", SMT_SIXTEEN(0));
  }
#undef SMT_REGISTERS
}

template <typename E>
__device__ __forceinline__ void WgmmaStep(float (&d)[24], uint64_t a, uint64_t b, int add) {
#define SMT_REGISTERS                                                      \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23"
  if constexpr (kIsHalf<E>) {
    SMT_STEP("f16", "m64n48k16", SMT_REGISTERS, "24", "25", "26", SMT_SIXTEEN(0), SMT_FOUR(16), SMT_FOUR(20));
  } else {
    SMT_STEP("bf16", "m64n48k16", SMT_REGISTERS, "24", "25", "26", SMT_SIXTEEN(0), SMT_FOUR(16), SMT_FOUR(20));
  }
#undef SMT_REGISTERS
}

template <typename E>
__device__ __forceinline__ void WgmmaStep(float (&d)[32], uint64_t a, uint64_t b, int add) {
#define SMT_REGISTERS                                                      \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
  if constexpr (kIsHalf<E>) {
    SMT_STEP("f16", "m64n64k16", SMT_REGISTERS, "32", "33", "34", SMT_SIXTEEN(0), SMT_SIXTEEN(16));
  } else {
    SMT_STEP("bf16", "m64n64k16", SMT_REGISTERS, "32", "33", "34", SMT_SIXTEEN(0), SMT_SIXTEEN(16));
  }
#undef SMT_REGISTERS
}

template <typename E>
__device__ __forceinline__ void WgmmaStep(float (&d)[48], uint64_t a, uint64_t b, int add) {
#define SMT_REGISTERS                                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
  if constexpr (kIsHalf<E>) {
    SMT_STEP("f16", "m64n96k16", SMT_REGISTERS, "48", "49", "50", SMT_SIXTEEN(0), SMT_SIXTEEN(16), SMT_SIXTEEN(32));
  } else {
    SMT_STEP("bf16", "m64n96k16", SMT_REGISTERS, "48", "49", "50", SMT_SIXTEEN(0), SMT_SIXTEEN(16), SMT_SIXTEEN(32));
  }
#undef SMT_REGISTERS
}

template <typename E>
__device__ __forceinline__ void WgmmaStep(float (&d)[64], uint64_t a, uint64_t b, int add) {
#define SMT_REGISTERS                                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
  if constexpr (kIsHalf<E>) {
    SMT_STEP("f16", "m64n128k16", SMT_REGISTERS, "64", "65", "66", SMT_SIXTEEN(0), SMT_SIXTEEN(16), SMT_SIXTEEN(32),
             SMT_SIXTEEN(48));
  } else {
    SMT_STEP("bf16", "m64n128k16", SMT_REGISTERS, "64", "65", "66", SMT_SIXTEEN(0), SMT_SIXTEEN(16), SMT_SIXTEEN(32),
             SMT_SIXTEEN(48));
  }
#undef SMT_REGISTERS
}

template <typename E>
__device__ __forceinline__ void WgmmaStep(float (&d)[96], uint64_t a, uint64_t b, int add) {
#define SMT_REGISTERS                                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
  if constexpr (kIsHalf<E>) {
    SMT_STEP("f16", "m64n192k16", SMT_REGISTERS, "96", "97", "98", SMT_SIXTEEN(0), SMT_SIXTEEN(16), SMT_SIXTEEN(32),
             SMT_SIXTEEN(48), SMT_SIXTEEN(64), SMT_SIXTEEN(80));
  } else {
    SMT_STEP("bf16", "m64n192k16", SMT_REGISTERS, "96", "97", "98", SMT_SIXTEEN(0), SMT_SIXTEEN(16), SMT_SIXTEEN(32),
             SMT_SIXTEEN(48), SMT_SIXTEEN(64), SMT_SIXTEEN(80));
  }
#undef SMT_REGISTERS
}

#undef SMT_STEP
#undef SMT_SIXTEEN
#undef SMT_FOUR

// A ring of slabs in shared memory that one thread fills and `consumers` warps empty: barriers of kStages stages, at
// `full` and from there on. By the block, which is synchronized.
template <int kStages>
__device__ __forceinline__ void InitRing(uint32_t stages, uint32_t full, int consumers) {
  if (threadIdx.x == 0) {
    if (stages % 1024 != 0) __trap();  // the swizzle wants it
    for (int i = 0; i < kStages; ++i) {
      InitBarrier(full + i * 8, 1);
      InitBarrier(full + (kStages + i) * 8, consumers);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    FenceForCopies();
  }
  __syncthreads();
}

inline constexpr int kStepsOfSlab = kSlab / 16;
// Steps of 16 columns of a piece for which ForPieces is compiled; else a piece has whole slabs, or neither.
inline constexpr int kWholeSlabs = 0, kAnySteps = -1;
// with(kSteps) as an integral constant, for inner dimension k.
template <typename With>
auto WithSteps(int k, With with) {
  const int steps = k / kChunks / 16;
  if (steps == 6) return with(std::integral_constant<int, 6>());  // k = 768
  if (steps % kStepsOfSlab == 0) return with(std::integral_constant<int, kWholeSlabs>());
  return with(std::integral_constant<int, kAnySteps>());
}

// Goes through `groups` times kTogether pieces of `steps` steps: multiply(piece of its group, step, add) each, between
// begin_slab() and end_slab() of its slab and before end_group(). The steps of a slab come one after the other in the
// code: of a loop's, or with branches between them, each would wait for the one before to end.
template <int kSteps, int kTogether, typename BeginSlab, typename Multiply, typename EndSlab, typename EndGroup>
__device__ __forceinline__ void ForPieces(int steps, int groups, BeginSlab begin_slab, Multiply multiply,
                                          EndSlab end_slab, EndGroup end_group) {
  if constexpr (kSteps > 0) {
    // Groups that end with a slab.
    constexpr int kPeriod = kTogether * kSteps % kStepsOfSlab == 0 ? 1 : 2, kAll = kPeriod * kTogether * kSteps;
    const auto period = [&](auto of) {
      constexpr int kCount = decltype(of)::value;
#pragma unroll
      for (int step = 0; step < kCount; ++step) {
        const int piece = step / kSteps % kTogether;
        if (step % kStepsOfSlab == 0) begin_slab();
        multiply(piece, step, step % kSteps > 0 ? 1 : 0);
        if (piece == kTogether - 1 && step % kSteps == kSteps - 1) end_group();
        if (step % kStepsOfSlab == kStepsOfSlab - 1 || step == kCount - 1) end_slab();
      }
    };
#pragma unroll 1
    for (; groups >= kPeriod; groups -= kPeriod) period(std::integral_constant<int, kAll>());
    if (kPeriod == 2 && groups > 0) period(std::integral_constant<int, kAll / 2>());
  } else if constexpr (kSteps == kWholeSlabs) {
#pragma unroll 1
    for (int group = 0; group < groups; ++group) {
#pragma unroll
      for (int piece = 0; piece < kTogether; ++piece) {
#pragma unroll 1
        for (int slab = 0; slab < steps / kStepsOfSlab; ++slab) {
          begin_slab();
#pragma unroll
          for (int i = 0; i < kStepsOfSlab; ++i) multiply(piece, i, slab + i > 0 ? 1 : 0);
          end_slab();
        }
      }
      end_group();
    }
  } else {
    int step = 0;
#pragma unroll 1
    for (int group = 0; group < groups; ++group) {
#pragma unroll
      for (int piece = 0; piece < kTogether; ++piece) {
#pragma unroll 1
        for (int i = 0; i < steps; ++i, ++step) {
          if (step % kStepsOfSlab == 0) {
            if (step > 0) end_slab();
            begin_slab();
          }
          multiply(piece, step, i > 0 ? 1 : 0);
        }
      }
      end_group();
    }
    end_slab();
  }
}

}  // namespace smt::cuda
