// What a kernel of one row is made of (row_pass.cu): who has which outputs, where the row is handed over, and the
// weights on their way. Sums are those of few_rows.cuh.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "model/cuda/bulk_copy.cuh"
#include "model/cuda/grid.cuh"
#include "model/cuda/kernels.h"
#include "model/cuda/ring_places.h"
#include "model/cuda/tagged.cuh"
#include "model/cuda/tensor_core.cuh"

namespace smt::cuda::row_pass {

enum Part { kQkv, kProj, kFc, kMlpProj, kParts };
inline constexpr int kTaskOutputs = 16;
// Tasks that a block has of a product at most: what keeps those that add to the row free on 132 multiprocessors.
__host__ __device__ constexpr int MostTasks(Part part, int steps) {
  if (part == kProj || part == kMlpProj) return 1;
  return part == kQkv ? (steps + 2) / 3 : (steps + 1) / 2;
}
__host__ __device__ constexpr int DivideUp(int a, int b) { return (a + b - 1) / b; }

// Which blocks do what: blocks from `first` on have `each` tasks of a part, the last one what is left. Those that add
// to the row, whose weights are most of a layer's, do nothing else where there are enough others. These count from the
// end; the heads are the first of them, which have least to do.
struct RowPlan {
  int tasks[kParts], first[kParts], each[kParts];
  int first_head;

  RowPlan(int d, int inner, int heads, int blocks) {
    const int steps = d / (16 * kChunks);
    const auto share = [&](Part part, int outputs) {
      tasks[part] = outputs / kTaskOutputs;
      each[part] = 1;
      first[part] = 0;
      if (part == kProj || part == kMlpProj) return;
      const int others = blocks - tasks[kProj];
      while (each[part] < MostTasks(part, steps) && DivideUp(tasks[part], each[part]) > others) ++each[part];
      first[part] = blocks - DivideUp(tasks[part], each[part]);
    };
    share(kProj, d);
    share(kMlpProj, d);
    share(kQkv, 3 * d);
    share(kFc, inner);
    first_head = std::min(tasks[kProj], blocks - heads);
  }
  bool Fits(int blocks, int heads) const {
    return first[kQkv] >= 0 && first[kFc] >= 0 && tasks[kProj] <= blocks && heads <= blocks;
  }
  __device__ __forceinline__ int FirstTask(int part) const {
    const int at = static_cast<int>(blockIdx.x) - first[part];
    return at < 0 ? tasks[part] : min(at * each[part], tasks[part]);
  }
  __device__ __forceinline__ int TaskCount(int part) const { return min(each[part], tasks[part] - FirstTask(part)); }
};

// The row on its way from block to block. A place is written again a layer later, by when all have read it: whoever
// writes it has waited, part by part, for all that was made of it.
struct RowExchange {
  TaggedWord *x, *x_between;           // after mlp_proj and after proj
  TaggedWord *qkv, *attended, *inner;  // pairs of numbers

  __host__ __device__ RowExchange(uint64_t* at, int d)
      : x(at), x_between(x + d), qkv(x_between + d), attended(qkv + 3 * d / 2), inner(attended + d / 2) {}
  static size_t Words(int d, int of_inner) { return static_cast<size_t>(4 * d + of_inner / 2); }
};

// A block's tasks of a product.
struct RowTasks {
  const Linear* linear;  // in shared memory, or null after the last product
  int first, count;
};

// The weights of this block's tasks, part after part, on their way into shared memory before they are asked for.
template <typename TasksAt>
class RowRing {
 public:
  static constexpr int kJobs = 8;  // tasks in the ring, at most

  // tasks_at(i): of the i-th product, the first and how many. `full`: kJobs barriers.
  __device__ RowRing(std::byte* memory, uint32_t size, uint64_t* full, TasksAt tasks_at)
      : memory_(memory), full_(full), tasks_at_(tasks_at), places_(size) {
    GoTo(0);
    if (threadIdx.x == 0) {
      for (int i = 0; i < kJobs; ++i) InitCopyBarrier(full_ + i);
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
  }

  // Begins copying what there is room for; all threads, and not between Await and Done. The warps share the rows: a
  // warp's copies start one after the other.
  __device__ __forceinline__ void Bring() {
#pragma unroll 1
    while (next_ != nullptr && places_.issued() - places_.used() < kJobs) {
      const Linear& linear = *next_;
      const uint32_t row_bytes = 2 * static_cast<uint32_t>(linear.k), bytes = TaskBytes(linear.type, linear.k);
      const int64_t at = places_.Place(bytes);
      if (at < 0) return;
      uint64_t* const full = full_ + places_.issued() % kJobs;
      if (threadIdx.x == 0) ExpectCopies(full, kTaskOutputs * row_bytes);
      const int row = static_cast<int>(threadIdx.x) / kWarp + static_cast<int>(threadIdx.x) % kWarp * kChunks;
      if (row < kTaskOutputs) {
        const auto* from = static_cast<const std::byte*>(linear.weight) +
                           static_cast<int64_t>(next_task_ * kTaskOutputs + row) * row_bytes;
        CopyBulk(memory_ + at + row * (row_bytes + 2 * kRingPad), from, row_bytes, full);
      }
      places_.Issue(at, bytes);
      if (++next_task_ == end_task_) GoTo(next_index_ + 1);
    }
  }
  // The next task's weights, one task at a time: Await, what needs them, Done; all threads together.
  __device__ __forceinline__ const std::byte* Await(const Linear& linear) {
    if (places_.issued() == places_.used()) Bring();
    const uint32_t at = places_.Next(TaskBytes(linear.type, linear.k));
    AwaitCopies(full_ + places_.used() % kJobs, static_cast<uint32_t>(places_.used() / kJobs) & 1);
    return memory_ + at;
  }
  __device__ __forceinline__ void Done() {
    __syncthreads();
    places_.Use();
  }

 private:
  __device__ __forceinline__ void GoTo(int index) {
#pragma unroll 1
    for (;; ++index) {
      const RowTasks tasks = tasks_at_(index);
      next_index_ = index;
      next_ = tasks.linear;
      next_task_ = tasks.first;
      end_task_ = tasks.first + tasks.count;
      if (next_ == nullptr || tasks.count > 0) return;
    }
  }

  std::byte* memory_;
  uint64_t* full_;
  TasksAt tasks_at_;
  const Linear* next_;
  int next_index_, next_task_, end_task_;
  RingPlaces places_;
};

// A warp's piece of a task's weights. kSteps: of 16.
template <int kSteps, typename E>
struct HeldWeights {
  uint32_t of[kSteps][4];

  __device__ __forceinline__ void Load(const E* weight, int ldw) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const E* w = weight + lane % 16 * ldw + lane / 16 * 8 + warp * kSteps * 16;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) LoadMatrices(of[i], w + 16 * i);
  }
};

// Every step of all tasks before the next one's: each sum waits for its last product.
template <int kTasks, int kSteps, typename E>
__device__ __forceinline__ void Multiply(const HeldWeights<kSteps, E> (&weights)[kTasks], const E* row,
                                         float (&sum)[kTasks][4]) {
  const E* in = row + static_cast<int>(threadIdx.x) / kWarp * kSteps * 16 + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const uint32_t first = Pair(in + 16 * i), second = Pair(in + 16 * i + 8);
#pragma unroll
    for (int task = 0; task < kTasks; ++task) MultiplyAdd<E>(sum[task], weights[task].of[i], first, second);
  }
}

using TaskSums = float[kChunks][kTaskOutputs];

}  // namespace smt::cuda::row_pass
