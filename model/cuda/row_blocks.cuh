// What kernels over rows of logits share: the blocks that work on a row, an order of its ids, block-wide reductions and
// the launch. The blocks of a cluster share a row, a run of its ids each, when rows are few; otherwise a block has a
// row of its own.
#pragma once

#include <cooperative_groups.h>

#include <cstddef>
#include <cstdint>

#include "model/cuda/bulk_copy.cuh"
#include "model/cuda/chain.cuh"
#include "model/cuda/kernels.h"

namespace smt::cuda {

using Sum = unsigned long long;

inline constexpr int kWarp = 32;
inline constexpr unsigned kAll = 0xffffffffu;
inline constexpr int kThreads = 1024, kWarps = kThreads / kWarp;
inline constexpr int kMaxBlocks = 8;  // of a row
static_assert(kWarps == kWarp);

// Counts the bytes that blocks of a row send to a block. What was sent is all that Await promises to see; it takes half
// the time of a barrier of the cluster, which waits for all that was written before.
using Box = uint64_t;

// The blocks of a row.
template <bool kCluster>
struct Blocks {
  __device__ int count() const { return 1; }
  __device__ int rank() const { return 0; }
  template <typename Shared>
  __device__ Shared& SharedOf(Shared& own, int) const {
    return own;
  }
  // Before the first Wait, by one thread.
  __device__ void Open(Box*, int) const {}
  __device__ void Arrive() const {}
  __device__ void Wait() const {}
  __device__ void Sync() const { __syncthreads(); }
  template <typename T>
  __device__ void Send(T* to, T number, int, Box*) const {
    *to = number;
  }
  __device__ void Await(Box*, unsigned, unsigned) const {}
  // Where Await is not enough to see what warps of the own block have sent.
  __device__ void SyncAlone() const { __syncthreads(); }
};
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
template <>
struct Blocks<true> {
  __device__ int count() const { return static_cast<int>(cooperative_groups::this_cluster().num_blocks()); }
  __device__ int rank() const { return static_cast<int>(cooperative_groups::this_cluster().block_rank()); }
  template <typename Shared>
  __device__ Shared& SharedOf(Shared& own, int rank) const {
    return *cooperative_groups::this_cluster().map_shared_rank(&own, rank);
  }
  __device__ void Open(Box* boxes, int box_count) const {
    for (int i = 0; i < box_count; ++i) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" : : "r"(SharedAddress(&boxes[i])) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
  }
  // Others are known to run after a Wait; nothing that was written before Arrive is promised but opened boxes.
  __device__ void Arrive() const { asm volatile("barrier.cluster.arrive.relaxed.aligned;" : : : "memory"); }
  __device__ void Wait() const { asm volatile("barrier.cluster.wait.acquire.aligned;" : : : "memory"); }
  __device__ void Sync() const { cooperative_groups::this_cluster().sync(); }
  // Stores a number of 4 or 8 bytes in the block of that rank, and counts them in its box. `to` and `box`: this
  // block's.
  template <typename T>
  __device__ void Send(T* to, T number, int to_rank, Box* box) const {
    const unsigned at = AddressIn(to_rank, to), counter = AddressIn(to_rank, box);
    if constexpr (sizeof(T) == 8) {
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];"
                   :
                   : "r"(at), "l"(number), "r"(counter)
                   : "memory");
    } else {
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
                   :
                   : "r"(at), "r"(reinterpret_cast<const unsigned&>(number)), "r"(counter)
                   : "memory");
    }
  }
  __device__ void SyncAlone() const {}
  // By the first thread, and all others that want to see them: until so many bytes have come into the box, for the
  // first (parity 0), second (1), third (0) time.
  __device__ void Await(Box* box, unsigned bytes, unsigned parity) const {
    const unsigned at = SharedAddress(box);
    if (threadIdx.x == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" : : "r"(at), "r"(bytes) : "memory");
    }
    unsigned done;
    do {
      asm volatile(
          "{\n\t.reg .pred p;\n\t"
          "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
          "selp.u32 %0, 1, 0, p;\n\t}"
          : "=r"(done)
          : "r"(at), "r"(parity)
          : "memory");
    } while (done == 0);
  }

 private:
  __device__ static unsigned AddressIn(int rank, const void* place) {
    unsigned there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(SharedAddress(place)), "r"(rank));
    return there;
  }
};
#endif
// Whether the code that is compiled can run with these blocks.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
template <bool kCluster>
inline constexpr bool kCanRun = true;
#else
template <bool kCluster>
inline constexpr bool kCanRun = !kCluster;
#endif

// An order of (logit, lower id first) as integers, > 0; zeros are equal. Not of NaN.
__device__ __forceinline__ Sum Rank(float logit, int id) {
  const unsigned bits = __float_as_uint(logit + 0.0f);
  return Sum{bits >> 31 ? ~bits : bits | 0x80000000u} << 32 | ~static_cast<unsigned>(id);
}
__device__ __forceinline__ float LogitOf(Sum rank) {
  const unsigned bits = static_cast<unsigned>(rank >> 32);
  return __uint_as_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}
__device__ __forceinline__ int IdOf(Sum rank) { return static_cast<int>(~static_cast<unsigned>(rank)); }

// x1 op x2 op ... of the block's threads, in each of them; `op` is associative and commutative.
template <typename Op>
__device__ Sum BlockReduce(Sum (&scratch)[kWarps], Sum x, Op op) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const auto of_warp = [op](Sum y) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) y = op(y, __shfl_xor_sync(kAll, y, offset));
    return y;
  };
  x = of_warp(x);
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  x = of_warp(scratch[lane]);
  __syncthreads();
  return x;
}
__device__ inline Sum BlockMax(Sum (&scratch)[kWarps], Sum x) {
  return BlockReduce(scratch, x, [](Sum a, Sum b) { return b > a ? b : a; });
}

// How rows are launched on the device.
struct RowDevice {
  int processors = 0, shared_bytes = 0;  // that a block may have
  bool clusters = false;
};
inline const RowDevice& TheRowDevice() {
  static const RowDevice device = [] {
    int index = 0, major = 0;
    RowDevice found;
    CheckCuda(cudaGetDevice(&index), "asking for the device");
    const auto ask = [index](int* value, cudaDeviceAttr attribute) {
      CheckCuda(cudaDeviceGetAttribute(value, attribute, index), "asking for the device");
    };
    ask(&major, cudaDevAttrComputeCapabilityMajor);
    ask(&found.processors, cudaDevAttrMultiProcessorCount);
    ask(&found.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    found.clusters = major >= 9;
    return found;
  }();
  return device;
}

struct RowLaunch {
  int rows, blocks, ids_a_block;
  bool held;               // 4 bytes an id have room in shared memory
  size_t bytes;            // of shared memory
  int threads = kThreads;  // of a block
};
// For a kernel whose block needs `bytes` of shared memory beside what it holds of the row. Rows get more blocks up to
// `at_once` of all.
inline RowLaunch LaunchOf(int rows, int vocab, size_t bytes, int at_once) {
  const RowDevice& device = TheRowDevice();
  const int held_ids = (device.shared_bytes - static_cast<int>(bytes)) / static_cast<int>(sizeof(float));
  const auto ids_a_block = [vocab](int blocks) { return (vocab + blocks - 1) / blocks; };
  const int most = device.clusters ? kMaxBlocks : 1;
  int blocks = 1;
  while (blocks < most && ids_a_block(blocks) > held_ids) blocks *= 2;
  // Two blocks of a multiprocessor hide each other's waiting.
  if (blocks < most && 4 * rows > at_once) blocks *= 2;
  const bool held = ids_a_block(blocks) <= held_ids;
  // Enough ids for each block to be worth the cluster's barriers.
  while (blocks < most && 2 * blocks * rows <= at_once && vocab > 4096 * blocks) blocks *= 2;
  if (held) bytes += sizeof(float) * static_cast<size_t>(ids_a_block(blocks));
  return {rows, blocks, ids_a_block(blocks), held, bytes};
}

// Lets kernels have all the shared memory there is.
template <typename... Kernels>
void RaiseSharedMemory(Kernels... kernels) {
  const auto raise = [](auto kernel) {
    CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, TheRowDevice().shared_bytes),
              "raising the shared memory of a kernel");
  };
  (raise(kernels), ...);
}

// The kernel awaits those before it (chain.cuh).
template <typename... Parameters, typename... Arguments>
void LaunchRows(const RowLaunch& launch, cudaStream_t stream, const char* what, void (*kernel)(Parameters...),
                Arguments... arguments) {
  LaunchChainedClusters(kernel, static_cast<unsigned>(launch.blocks),
                        static_cast<unsigned>(launch.rows * launch.blocks), static_cast<unsigned>(launch.threads),
                        launch.bytes, stream, what, arguments...);
}

}  // namespace smt::cuda
