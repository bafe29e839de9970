// Log-probabilities and edits of rows of logits, bit for bit as model/sampling/logprobs.cc and adjust_logits.cc give
// them on the host.
//
// The likeliest ids are found without sorting the row. Each thread keeps the greatest of its ids; the k-th greatest of
// those is a bound that k ids reach at least and that few others do: none but those of the k threads whose greatest
// reach it. A second pass, which sums the exponentials too, collects these candidates, and the best k are sorted out of
// them by warps. Where the candidates of a wide vocabulary find no room the k best are looked for one by one.
#include <cuda_pipeline.h>

#include "model/cuda/kernels.h"
#include "model/cuda/logits.h"
#include "model/cuda/row_blocks.cuh"
#include "model/sampling/log_softmax.h"

namespace smt::cuda {
namespace {

constexpr int kCandidates = kThreads;
static_assert(kMaxTopLogprobs <= kWarp && kMaxBlocks <= kWarps);

struct Shared {
  Sum scratch[kWarps];
  Sum lists[kWarps][kWarp];
  Sum top[kWarp];
  Sum candidates[kCandidates];
  int candidate_count;
  Sum best_of_block[kMaxBlocks];  // by rank
  // Of the first block: what the others found.
  Sum sum_of_block[kMaxBlocks], top_of_block[kMaxBlocks][kWarp];
};

// Of the two the one that belongs to `lane`, `stride` lanes from the other, where the greater are to come first.
__device__ __forceinline__ Sum Exchange(Sum key, int lane, int stride, bool greater_first) {
  const Sum other = __shfl_xor_sync(kAll, key, stride);
  return ((lane & stride) == 0) == greater_first ? max(key, other) : min(key, other);
}
// The warp's keys, greatest first (bitonic).
__device__ __forceinline__ Sum SortWarp(Sum key, int lane) {
#pragma unroll
  for (int size = 2; size <= kWarp; size *= 2) {
#pragma unroll
    for (int stride = size / 2; stride > 0; stride /= 2) key = Exchange(key, lane, stride, (lane & size) == 0);
  }
  return key;
}
// The greatest of two sorted lists, sorted; `reversed` is the other list from its end.
__device__ __forceinline__ Sum MergeWarp(Sum key, Sum reversed, int lane) {
  key = max(key, reversed);
#pragma unroll
  for (int stride = kWarp / 2; stride > 0; stride /= 2) key = Exchange(key, lane, stride, true);
  return key;
}

// s.top = the 32 greatest keys of the block's threads, greatest first. Synchronizes the block.
__device__ void FindTop(Shared& s, Sum key) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  key = SortWarp(key, lane);
  for (int half = kWarps / 2; half > 0; half /= 2) {
    if (warp >= half && warp < 2 * half) s.lists[warp][lane] = key;
    __syncthreads();
    if (warp < half) key = MergeWarp(key, s.lists[warp + half][kWarp - 1 - lane], lane);
  }
  if (warp == 0) s.top[lane] = key;
  __syncthreads();
}

__device__ __forceinline__ Sum RankOrLast(float logit, int id) { return Rank(isnan(logit) ? -INFINITY : logit, id); }

// A block's part of a row: `count` ids from `first` on.
template <bool kCluster>
struct Part {
  Shared& s;
  const float* logits;
  int first, count, wanted;  // of the likeliest ids, >= 1
  Blocks<kCluster> blocks;

  // Leaves the block's greatest in s.top. Returns the rank that `wanted` of its ids reach, 0 if it has fewer.
  __device__ Sum FindBound() const {
    float highest = -INFINITY;
    int at = threadIdx.x;
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const float logit = logits[i];
      if (logit > highest) {
        highest = logit;
        at = i;
      }
    }
    FindTop(s, static_cast<int>(threadIdx.x) < count ? Rank(highest, first + at) : 0);
    return s.top[wanted - 1];
  }

  // The row's largest logit.
  __device__ float FindMax() const {
    Sum best = s.top[0];  // 0 where the block has no ids
    if (kCluster) {
      blocks.Wait();  // for the others to run
      if (threadIdx.x < blocks.count()) blocks.SharedOf(s, threadIdx.x).best_of_block[blocks.rank()] = best;
      blocks.Sync();
      for (int i = 0; i < blocks.count(); ++i) best = ::max(best, s.best_of_block[i]);
    }
    return LogitOf(best);
  }

  // Returns the sum of the block's terms; collects the ids that reach `bound`. Not synchronized.
  __device__ Sum SumAndCollect(float max, Sum bound) const {
    const float bound_logit = LogitOf(bound);  // of 0: NaN
    Sum sum = 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const float logit = logits[i];
      sum += ExpTerm(logit - max);
      if (logit < bound_logit) continue;
      const Sum rank = RankOrLast(logit, first + i);
      if (rank < bound) continue;
      const int at = atomicAdd(&s.candidate_count, 1);
      if (at < kCandidates) s.candidates[at] = rank;
    }
    return sum;
  }

  // s.top = the block's `wanted` likeliest, greatest first; 0 where it has fewer.
  __device__ void PickCandidates() const {
    const int found = s.candidate_count;
    if (found <= kCandidates) {
      FindTop(s, static_cast<int>(threadIdx.x) < found ? s.candidates[threadIdx.x] : 0);
      return;
    }
    Sum last = ~Sum{0};
    for (int k = 0; k < wanted; ++k) {
      Sum next = 0;
      for (int i = threadIdx.x; i < count; i += kThreads) {
        const Sum rank = RankOrLast(logits[i], first + i);
        if (rank < last && rank > next) next = rank;
      }
      last = BlockMax(s.scratch, next);
      if (threadIdx.x == 0) s.top[k] = last;
    }
    __syncthreads();
  }

  // In the first block: s.top = the row's, and returns the sum over the row.
  __device__ Sum Combine(Sum sum) const {
    sum = BlockReduce(s.scratch, sum, [](Sum a, Sum b) { return a + b; });
    if (!kCluster) return sum;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    Shared& leader = blocks.SharedOf(s, 0);
    if (warp == 0) leader.top_of_block[blocks.rank()][lane] = lane < wanted ? s.top[lane] : 0;
    if (threadIdx.x == 0) leader.sum_of_block[blocks.rank()] = sum;
    blocks.Sync();
    if (blocks.rank() != 0) return 0;
    FindTop(s, warp < blocks.count() ? s.top_of_block[warp][lane] : 0);
    sum = 0;
    for (int i = 0; i < blocks.count(); ++i) sum += s.sum_of_block[i];
    return sum;
  }
};

template <bool kHeld, bool kCluster>
__global__ void __launch_bounds__(kThreads)
    LogprobKernel(const float* __restrict__ logits, int64_t ld, const LogprobAsk* __restrict__ asks, int vocab,
                  int ids_a_block, RowLogprobs* __restrict__ out) {
  if constexpr (kCanRun<kCluster>) {
    extern __shared__ __align__(16) unsigned char memory[];
    AwaitPrevious();
    const Blocks<kCluster> blocks;
    const int index = static_cast<int>(blockIdx.x) / blocks.count(), first = blocks.rank() * ids_a_block;
    const LogprobAsk ask = asks[index];
    if (ask.row < 0) return;
    Shared& s = *reinterpret_cast<Shared*>(memory);
    auto* const held = reinterpret_cast<float*>(memory + sizeof(Shared));
    const float* const from = logits + ask.row * ld + first;
    const Part<kCluster> part = {s,
                                 kHeld ? held : from,
                                 first,
                                 max(min(ids_a_block, vocab - first), 0),
                                 max(min(ask.top, kMaxTopLogprobs), 1),
                                 blocks};
    blocks.Arrive();
    if (kHeld) {
#pragma unroll 8
      for (int i = threadIdx.x; i < part.count; i += kThreads)
        __pipeline_memcpy_async(&held[i], &from[i], sizeof(float));
      __pipeline_commit();
      __pipeline_wait_prior(0);  // each thread goes on with what it copied
    }
    if (threadIdx.x == 0) s.candidate_count = 0;
    const Sum bound = part.FindBound();
    const float max = part.FindMax();
    Sum sum = part.SumAndCollect(max, bound);
    __syncthreads();
    part.PickCandidates();
    sum = part.Combine(sum);
    if (blocks.rank() != 0 || threadIdx.x >= kWarp) return;
    const double log_sum = isfinite(max) ? LogOfTerms(sum) : 0.0;
    RowLogprobs& result = out[index];
    if (threadIdx.x == 0) {
      result.max = max;
      result.log_sum = log_sum;
    }
    if (threadIdx.x >= kMaxTopLogprobs) return;
    const Sum rank = static_cast<int>(threadIdx.x) < ask.top ? s.top[threadIdx.x] : 0;
    result.ids[threadIdx.x] = rank > 0 ? IdOf(rank) : -1;
    result.logprobs[threadIdx.x] = rank > 0 ? LogprobOf(LogitOf(rank), max, log_sum) : -INFINITY;
  }
}

constexpr int kEditThreads = 512;

__global__ void __launch_bounds__(kEditThreads)
    EditKernel(float* __restrict__ logits, int64_t ld, const RowEdits* __restrict__ rows,
               const LogitEdit* __restrict__ edits, const int32_t* __restrict__ drawn, int vocab,
               EditedFrom* __restrict__ from) {
  const RowEdits row = rows[blockIdx.x];
  if (row.row < 0 || row.count == 0) return;
  logits += row.row * ld;
  const int32_t last_drawn = row.drawn >= 0 ? drawn[row.drawn] : -1;
  const auto apply = [&](int i, int32_t id, int more) {
    const float logit = logits[id];
    logits[id] = EditedLogit(logit, edits[i], more, row.penalties);
    if (from != nullptr) from[i] = {id, logit};
  };
  int found = 0;
  for (int i = row.first + static_cast<int>(threadIdx.x); i < row.first + row.count; i += kEditThreads) {
    const int32_t id = edits[i].id;
    if (id < 0) continue;
    const int more = id == last_drawn;
    found |= more;
    apply(i, id, more);
  }
  if (row.drawn < 0) return;
  found = __syncthreads_or(found);
  if (threadIdx.x != 0) return;
  const int last = row.first + row.count - 1;
  if (!found && last_drawn >= 0 && last_drawn < vocab) {
    apply(last, last_drawn, 1);
  } else if (from != nullptr) {
    from[last] = {-1, 0.0f};
  }
}

constexpr int kGatherThreads = 128;

__global__ void __launch_bounds__(kGatherThreads)
    GatherKernel(const float* __restrict__ logits, int64_t ld, const LogprobAsk* __restrict__ asks,
                 const RowEdits* __restrict__ rows, const EditedFrom* __restrict__ from,
                 const int32_t* __restrict__ ids, RowLogprobs* __restrict__ out) {
  __shared__ float own;  // the model's own logit
  const LogprobAsk ask = asks[blockIdx.x];
  if (ask.row < 0) return;
  const int32_t id = ids[ask.row];
  if (threadIdx.x == 0) own = id >= 0 ? logits[ask.row * ld + id] : -INFINITY;
  __syncthreads();
  if (id >= 0 && ask.edits >= 0) {
    const int first = rows[ask.edits].first, end = first + rows[ask.edits].count;
    for (int i = first + static_cast<int>(threadIdx.x); i < end; i += kGatherThreads) {
      if (from[i].id == id) own = from[i].logit;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x].logprob = LogprobOf(own, out[blockIdx.x].max, out[blockIdx.x].log_sum);
}

}  // namespace

void ReadLogprobs(const float* logits, int64_t ld, const LogprobAsk* asks, int count, int vocab, RowLogprobs* out,
                  cudaStream_t stream) {
  if (count == 0) return;
  static const bool raised = (RaiseSharedMemory(LogprobKernel<true, true>, LogprobKernel<true, false>), true);
  static_cast<void>(raised);
  const RowLaunch launch = LaunchOf(count, vocab, sizeof(Shared), 2 * TheRowDevice().processors);
  const auto kernel = launch.blocks > 1 ? (launch.held ? LogprobKernel<true, true> : LogprobKernel<false, true>)
                                        : (launch.held ? LogprobKernel<true, false> : LogprobKernel<false, false>);
  LaunchRows(launch, stream, "launching log-probabilities", kernel, logits, ld, asks, vocab, launch.ids_a_block, out);
}

void EditLogits(float* logits, int64_t ld, const RowEdits* rows, int count, const LogitEdit* edits,
                const int32_t* drawn, int vocab, EditedFrom* from, cudaStream_t stream) {
  if (count == 0) return;
  EditKernel<<<static_cast<unsigned>(count), kEditThreads, 0, stream>>>(logits, ld, rows, edits, drawn, vocab, from);
  CheckCuda(cudaGetLastError(), "launching edits");
}

void GatherLogprobs(const float* logits, int64_t ld, const LogprobAsk* asks, int count, const RowEdits* rows,
                    const EditedFrom* from, const int32_t* ids, RowLogprobs* out, cudaStream_t stream) {
  if (count == 0) return;
  GatherKernel<<<static_cast<unsigned>(count), kGatherThreads, 0, stream>>>(logits, ld, asks, rows, from, ids, out);
  CheckCuda(cudaGetLastError(), "launching log-probabilities of drawn ids");
}

}  // namespace smt::cuda
