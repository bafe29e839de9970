// Parts of a kernel whose blocks, one a multiprocessor, go through phases together.
#pragma once

#include <algorithm>
#include <cstdint>

#include "model/cuda/bulk_copy.cuh"
#include "model/cuda/few_rows.cuh"
#include "model/cuda/kernels.h"
#include "model/cuda/ring_places.h"

namespace smt::cuda {

// Of shared memory, for Keep.
template <typename T>
__host__ __device__ constexpr size_t KeptBytes(int count) {
  return (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16;
}

// Dynamic shared memory: compute capability 9.0 has 227 KiB a block, of which a little is left for what is static.
inline constexpr size_t kMaxBlockMemory = 225 * 1024;

// A barrier of all blocks of a cooperative launch: a counter that only grows (Arrivals), so that nothing resets it.
class GridBarrier {
 public:
  __device__ GridBarrier(uint32_t* count, uint32_t base) : count_(count), target_(base) {}

  // What any thread wrote before is seen by all after. All warps but the first call meanwhile().
  template <typename Meanwhile>
  __device__ __forceinline__ void Wait(Meanwhile meanwhile) {
    target_ += gridDim.x;
    __syncthreads();
    if (threadIdx.x == 0) {
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(count_) : "memory");
      uint32_t seen;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(count_) : "memory");
      } while (static_cast<int32_t>(seen - target_) < 0);
    } else if (threadIdx.x >= kWarp) {
      meanwhile();
    }
    __syncthreads();
  }

 private:
  uint32_t* count_;
  uint32_t target_;
};

// Copies what every phase asks for into shared memory, where no barrier makes it stale. The caller synchronizes.
template <typename T>
__device__ __forceinline__ T* Keep(const T* from, int count, std::byte*& shared) {
  static_assert(alignof(T) <= 8);
  T* to = reinterpret_cast<T*>(shared);
  const auto* words = reinterpret_cast<const uint32_t*>(from);
  const int length = count * static_cast<int>(sizeof(T)) / 4;
  for (int i = threadIdx.x; i < length; i += kFewRowsThreads) reinterpret_cast<uint32_t*>(to)[i] = words[i];
  shared += KeptBytes<T>(count);
  return to;
}

inline constexpr int kRingPad = 8;  // elements after a row of weights in the ring, against bank conflicts
// Of the weights of one task, 16 outputs.
__host__ __device__ constexpr uint32_t TaskBytes(Type type, int64_t k) {
  return (type == Type::kSplit ? 32u : 16u) * 2u * static_cast<uint32_t>(k + kRingPad);
}

// A product's tasks, 16 outputs each, that a block does: `first`, and from there on every step-th.
struct GridTasks {
  const Linear* linear;  // in shared memory, or null
  int first, step;
};

// The weights of this block's tasks in a sequence of products, on their way into shared memory before they are asked
// for: the device's memory is read while the blocks compute and wait for each other. Every block of the kernel asks for
// every product of which it has tasks once and in order.
template <typename TasksAt>
class WeightRing {
 public:
  static constexpr int kJobs = 8;  // tasks in the ring, at most

  // tasks_at(i): of the i-th product. `size`: bytes of `memory`.
  __device__ WeightRing(std::byte* memory, uint32_t size, uint64_t* full, TasksAt tasks_at)
      : memory_(memory), full_(full), tasks_at_(tasks_at), places_(size) {
    GoTo(0);
    SkipToTask();
    if (threadIdx.x == 0) {
      for (int i = 0; i < kJobs; ++i) InitCopyBarrier(full_ + i);
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
  }

  // Calls with(j0, weights) for this block's tasks of the next product; all threads together. ahead(j0) comes before
  // the weights are waited for.
  template <typename Ahead, typename With>
  __device__ __forceinline__ void ForTasks(const GridTasks& tasks, Ahead ahead, With with) {
    const Linear& linear = *tasks.linear;
#pragma unroll 1
    for (int j0 = tasks.first * 16; j0 < linear.n; j0 += tasks.step * 16) {
      auto held = ahead(j0);
      with(j0, Await(linear), held);
      Done();
      // The barriers between products come too late where a block has more tasks of one product than the ring holds.
      const int left = linear.n - j0 - tasks.step * 16;
      if (threadIdx.x >= kWarp && Waiting() * tasks.step * 16 < left) Issue();
    }
  }

  // The next task's weights, one task at a time: Await, what needs them, Done; all threads together, and nobody issues
  // in between.
  __device__ __forceinline__ const std::byte* Await(const Linear& linear) {
    const uint32_t at = places_.Next(TaskBytes(linear.type, linear.k));
    AwaitCopies(full_ + places_.used() % kJobs, static_cast<uint32_t>(places_.used() / kJobs) & 1);
    return memory_ + at;
  }
  __device__ __forceinline__ int Waiting() const { return places_.issued() - places_.used(); }  // in warps that issue
  __device__ __forceinline__ void Done() {
    __syncthreads();
    places_.Use();
  }

  // Starts copies where tasks that are done have made room. By all warps but the first, which share the rows: a warp's
  // copies start one after the other.
  __device__ void Issue() {
    constexpr int kIssuers = kChunks - 1;
    const int lane = threadIdx.x % kWarp, issuer = threadIdx.x / kWarp - 1;
#pragma unroll 1
    while (next_ != nullptr && Waiting() < kJobs) {
      const Linear& linear = *next_;
      const uint32_t bytes = TaskBytes(linear.type, linear.k), row_bytes = 2 * static_cast<uint32_t>(linear.k);
      const int64_t at = places_.Place(bytes);
      if (at < 0) return;
      uint64_t* full = full_ + places_.issued() % kJobs;
      const int rows = linear.type == Type::kSplit ? 32 : 16;
      if (issuer == 0 && lane == 0) ExpectCopies(full, static_cast<uint32_t>(rows) * row_bytes);
      const int row = issuer + lane * kIssuers;
      if (row < rows) {
        const std::byte* from = static_cast<const std::byte*>(linear.weight) +
                                2 * (row / 16 * linear.plane + static_cast<int64_t>(next_j0_ + row % 16) * linear.k);
        CopyBulk(memory_ + at + row * (row_bytes + 2 * kRingPad), from, row_bytes, full);
      }
      places_.Issue(at, bytes);
      next_j0_ += next_step_;
      SkipToTask();
    }
  }

 private:
  __device__ void GoTo(int index) {
    const GridTasks tasks = tasks_at_(index);
    next_index_ = index;
    next_ = tasks.linear;
    next_j0_ = tasks.first * 16;
    next_step_ = tasks.step * 16;
  }
  __device__ void SkipToTask() {
#pragma unroll 1
    while (next_ != nullptr && next_j0_ >= next_->n) GoTo(next_index_ + 1);
  }
  std::byte* memory_;
  uint64_t* full_;
  TasksAt tasks_at_;
  const Linear* next_;
  int next_index_, next_j0_, next_step_;
  RingPlaces places_;
};

// Begins copying rows [rows, ldx] into shared memory, [rows, ldy].
template <typename T>
__device__ __forceinline__ void StageRows(const T* x, int64_t ldx, int rows, int k, T* y, int64_t ldy) {
  constexpr int kOfChunk = 16 / static_cast<int>(sizeof(T));
  for (int row = 0; row < rows; ++row) {
    for (int i = threadIdx.x * kOfChunk; i < k; i += kFewRowsThreads * kOfChunk) {
      CopyAsync(y + row * ldy + i, x + row * ldx + i);
    }
  }
  asm volatile("cp.async.commit_group;");
}

// This block's tasks of a product of all rows (at most 8 kTiles): store(row, j, sum, ahead(row, j)), `ahead` being
// called before the sums are there. x may lie in shared memory.
template <int kTiles, typename T, typename Ring, typename Ahead, typename Store>
__device__ __forceinline__ void GridProduct(Ring& ring, const GridTasks& tasks, const T* x, int64_t ldx, int rows,
                                            PieceSums<kTiles>& pieces, Ahead ahead, Store store) {
  using Elements = OwnElements<kTiles>;
  const Linear& linear = *tasks.linear;
  struct Held {
    decltype(ahead(0, 0)) of[Elements::kCount];
  };
  ring.ForTasks(
      tasks,
      [&](int j0) {
        Held held;
        Elements::ForEach([&](int i, int, int row, int j) {
          if (row < rows && j0 + j < linear.n) held.of[i] = ahead(row, j0 + j);
        });
        return held;
      },
      [&](int j0, const std::byte* weight, Held held) {
        float sum[kTiles][4] = {};
        SumPieceOfShared<kTiles>(reinterpret_cast<const WeightOf<T>*>(weight), linear.k + kRingPad, linear.k, x, ldx,
                                 rows, sum);
        AddPieces<kTiles>(pieces, sum, [&](int i, int row, int j, float total) {
          if (row < rows && j0 + j < linear.n) store(row, j0 + j, total, held.of[i]);
        });
      });
}

// Shared memory of such a block: sums of pieces, room for a phase's own use, the ring and its barriers, what it keeps.
template <int kTiles, typename T>
struct BlockMemory {
  // Rows in shared memory begin on different banks.
  static constexpr int kRowPad = 16 / static_cast<int>(sizeof(T));
  static constexpr size_t kPieces = sizeof(PieceSums<kTiles>);
  static constexpr size_t kBarriers = 8 * sizeof(uint64_t);
  size_t work, ring, kept;

  // work: eight rows of `k` columns, or what `least` says. The ring takes what is left of a multiprocessor's memory.
  BlockMemory(int64_t k, size_t least, size_t kept) : kept(kept) {
    work = least;
    if (kTiles == 1) work = std::max(work, 8 * static_cast<size_t>(k + kRowPad) * sizeof(T));
    work = (work + 15) / 16 * 16;
    const size_t taken = kPieces + work + kBarriers + kept;
    ring = taken < kMaxBlockMemory ? (kMaxBlockMemory - taken) / 16 * 16 : 0;
  }
  size_t bytes() const { return kPieces + work + ring + kBarriers + kept; }
  // Whether the ring holds a task of a product with inner dimension `k`.
  bool Holds(int64_t k) const { return TaskBytes(sizeof(T) == 4 ? Type::kSplit : Type::kBfloat16, k) <= ring; }
};

// The multiprocessors that a kernel for `blocks` of them takes; 0: all.
inline int OrAllMultiprocessors(int blocks) {
  return blocks > 0 ? std::min(blocks, Multiprocessors()) : Multiprocessors();
}

// Whether this device runs such kernels.
inline bool CanLaunchOnAll() { return ComputeMajor() >= 9; }

// Launches kernel(arguments..., count, base) on `blocks` multiprocessors, a block each, which waits `barriers` times.
template <typename Kernel, typename... Arguments>
void LaunchOnAll(Kernel* kernel, size_t bytes, Arrivals* arrivals, int barriers, int blocks, cudaStream_t stream,
                 const Arguments&... arguments) {
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
            "raising a kernel's shared memory");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = kFewRowsThreads;
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  CheckCuda(cudaLaunchKernelEx(&config, kernel, arguments..., arrivals->count, arrivals->base), "launching a pass");
  arrivals->base += static_cast<uint32_t>(blocks) * static_cast<uint32_t>(barriers);
}

}  // namespace smt::cuda
