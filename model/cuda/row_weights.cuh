// The weights of a row's ids, for kernels that draw: a block, or each block of a cluster, has a run of the ids, and
// within it each warp. Sums go over all of them.
//
// Logits are read once: their weights stay in shared memory. Vocabularies too wide for that, and devices that have
// too little of it, weigh the logits anew in every pass.
#pragma once

#include <cuda_pipeline.h>

#include "model/cuda/bulk_copy.cuh"
#include "model/cuda/row_blocks.cuh"
#include "model/cuda/weigh.cuh"

namespace smt::cuda {

// Two blocks of a multiprocessor, each with 64 registers a thread.
inline constexpr int kDrawThreads = 512, kDrawWarps = kDrawThreads / kWarp;
inline constexpr int kBatch = 4;  // ids that a thread takes at a time
inline constexpr int kStep = kBatch * kWarp;
__host__ __device__ constexpr int RoundUp(int ids) { return (ids + kStep - 1) / kStep * kStep; }

inline constexpr int kCopies = 4;  // of a warp's logits
struct RowShared {
  Sum of_warp[2][kMaxBlocks][kDrawWarps];  // by rank; taken in turn
  Box shown[2];
  uint64_t copied[kDrawWarps][kCopies];
  Sum located_of_warp[kDrawWarps], located_rest;  // of Locate
  int located_warp;
};

__device__ __forceinline__ int Lane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int Warp() { return static_cast<int>(threadIdx.x) / kWarp; }

// Inclusive.
template <typename Number>
__device__ __forceinline__ Number WarpScan(Number x) {
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const Number other = __shfl_up_sync(kAll, x, offset);
    if (Lane() >= offset) x += other;
  }
  return x;
}
// Below 2^59.
__device__ __forceinline__ Sum WarpSum(Sum x) {
  const Sum low = __reduce_add_sync(kAll, static_cast<unsigned>(x) & 0x7ffffffu);
  return low + (Sum{__reduce_add_sync(kAll, static_cast<unsigned>(x >> 27))} << 27);
}

// A block's part of a row: `count` ids from `first` on.
template <bool kHeld, bool kCluster>
struct RowWeights {
  RowShared& s;
  unsigned* held;     // kHeld: logits, then weights, -infinity and 0 after them up to a whole step
  const float* from;  // logits
  int vocab, ids_a_block, first, count;
  Blocks<kCluster> blocks;
  int begin, end;  // of the warp's ids, in steps
  Scale scale = {};
  float highest = -INFINITY;  // of the thread's logits
  int most = 0;               // of the thread's ids weigh 2^32
  int turn = -1;              // of Show
  bool in_bulk = false;
  static constexpr bool kBulk = kHeld && kCluster;  // there is a copy engine

  __device__ RowWeights(RowShared& shared, unsigned* held_at, const float* logits, int all, int of_block)
      : s(shared), held(held_at), vocab(all), ids_a_block(of_block) {
    first = blocks.rank() * ids_a_block;
    count = max(min(ids_a_block, vocab - first), 0);
    from = logits + first;
    begin = Warp() * IdsOfWarp(count);
    end = min(begin + IdsOfWarp(count), RoundUp(count));
  }

  __device__ static int IdsOfWarp(int ids) { return RoundUp((ids + kDrawWarps - 1) / kDrawWarps); }
  // Which warp of the block of that rank has the id.
  __device__ int WarpOf(int rank, int id) const {
    const int first_id = rank * ids_a_block;
    return (id - first_id) / IdsOfWarp(min(ids_a_block, vocab - first_id));
  }

  // body(i) for each batch of the thread, from i on.
  template <typename Body>
  __device__ __forceinline__ void ForOwn(Body body) const {
    for (int i = begin + Lane() * kBatch; i < end; i += kStep) body(i);
  }

  // The same, of the batches that come with one copy.
  template <typename Body>
  __device__ __forceinline__ void ForCopy(int copy, Body body) const {
    for (int i = BeginOf(copy) + Lane() * kBatch; i < BeginOf(copy + 1); i += kStep) body(i);
  }
  __device__ int BeginOf(int copy) const {
    return min(begin + copy * RoundUp((end - begin + kCopies - 1) / kCopies), max(begin, end));
  }

  // Before the row's logits are there. By all threads.
  __device__ void Prepare(Box* boxes, int box_count) {
    if (threadIdx.x == 0) {
      blocks.Open(s.shown, 2);
      blocks.Open(boxes, box_count);
    }
    blocks.Arrive();
    if constexpr (kBulk) {
      if (Lane() == 0) {
        for (int i = 0; i < kCopies; ++i) InitCopyBarrier(&s.copied[Warp()][i]);
        asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
      }
    }
  }
  // Begins to load the logits.
  __device__ void Start() {
    if constexpr (kBulk) {
      in_bulk = reinterpret_cast<uintptr_t>(from) % 16 == 0;
      for (int i = 0; in_bulk && Lane() == 0 && i < kCopies; ++i) {
        const int at = BeginOf(i), ids = max(min(BeginOf(i + 1), count / kBatch * kBatch) - at, 0);
        ExpectCopies(&s.copied[Warp()][i], ids * sizeof(float));
        if (ids > 0) CopyBulk(&held[at], &from[at], ids * sizeof(float), &s.copied[Warp()][i]);
      }
    }
    // In bulk come all batches but the last.
    for (int i = in_bulk ? end - kStep + Lane() * kBatch : begin + Lane() * kBatch; kHeld && begin < end && i < end;
         i += kStep) {
      if (in_bulk && i + kBatch <= count) break;
      for (int j = i; j < i + kBatch; ++j) {
        if (j < count) {
          __pipeline_memcpy_async(&held[j], &from[j], sizeof(float));
        } else {
          held[j] = __float_as_uint(-INFINITY);
        }
      }
    }
    __pipeline_commit();
  }
  __device__ __forceinline__ void LoadHeld(int i, unsigned (&values)[kBatch]) const {
    const uint4 four = *reinterpret_cast<const uint4*>(&held[i]);
    values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
  }
  __device__ __forceinline__ void StoreHeld(int i, const unsigned (&values)[kBatch]) const {
    *reinterpret_cast<uint4*>(&held[i]) = make_uint4(values[0], values[1], values[2], values[3]);
  }
  __device__ __forceinline__ void LoadLogits(int i, float (&logits)[kBatch]) const {
    unsigned bits[kBatch];
    if (kHeld) LoadHeld(i, bits);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      logits[j] = kHeld ? __uint_as_float(bits[j]) : i + j < count ? from[i + j] : -INFINITY;
    }
  }
  __device__ __forceinline__ void Weigh(const float (&logits)[kBatch], unsigned (&scaled_bits)[kBatch]) const {
    float q[kBatch];
    if (kHeld || scale.quick) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j) q[j] = scale.QuickQuotient(logits[j]);
    } else {
#pragma unroll
      for (int j = 0; j < kBatch; ++j) q[j] = logits[j] / scale.temperature;
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) scaled_bits[j] = scale.ScaledBits(q[j]);
  }
  // Weights from i on; 0 after the last id.
  __device__ __forceinline__ void Load(int i, unsigned (&weights)[kBatch]) const {
    if (kHeld) {
      LoadHeld(i, weights);
    } else {
      float logits[kBatch];
      LoadLogits(i, logits);
      Weigh(logits, weights);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) weights[j] = Scale::Held(weights[j]);
    }
  }

  // Every warp of the row shows its x.
  using Shown = Sum[kMaxBlocks][kDrawWarps];
  __device__ void Show(Sum x) {
    ++turn;
    if (Lane() < blocks.count()) blocks.Send(&s.of_warp[turn & 1][blocks.rank()][Warp()], x, Lane(), ShowBox());
  }
  __device__ Shown& ShownNow() const { return s.of_warp[turn & 1]; }
  __device__ Box* ShowBox() const { return &s.shown[turn & 1]; }
  // What all have shown, by rank, and `more` bytes of each block that were sent to the same box.
  __device__ Shown& SeeShown(unsigned more = 0) const {
    blocks.Await(ShowBox(), blocks.count() * (kDrawWarps * sizeof(Sum) + more), turn >> 1 & 1);
    return ShownNow();
  }
  // The greatest x of the row.
  __device__ unsigned MaxOfAll(unsigned x) {
    Show(__reduce_max_sync(kAll, x));
    blocks.SyncAlone();
    const auto& shown = SeeShown();
    x = 0;
    for (int i = Lane(); i < blocks.count() * kDrawWarps; i += kWarp) {
      x = max(x, static_cast<unsigned>(shown[i / kDrawWarps][i % kDrawWarps]));
    }
    return __reduce_max_sync(kAll, x);
  }
  __device__ Sum TotalOf(const Shown& shown) const {
    Sum total = 0;
    for (int i = Lane(); i < blocks.count() * kDrawWarps; i += kWarp) total += shown[i / kDrawWarps][i % kDrawWarps];
    return WarpSum(total);
  }
  // By rank and warp. Synchronizes the blocks.
  __device__ Shown& SumAll(Sum x) {
    Show(WarpSum(x));
    blocks.SyncAlone();
    return SeeShown();
  }

  // The row's largest logit.
  __device__ float Max() {
    if (kHeld) __pipeline_wait_prior(0);  // each thread goes on with what it copied
#pragma unroll
    for (int copy = 0; copy < kCopies; ++copy) {
      if constexpr (kBulk) {
        if (in_bulk) AwaitCopies(&s.copied[Warp()][copy], 0);
      }
      ForCopy(copy, [&](int i) {
        float logits[kBatch];
        LoadLogits(i, logits);
#pragma unroll
        for (int j = 0; j < kBatch; ++j) highest = fmaxf(highest, logits[j]);
      });
    }
    blocks.Wait();  // for the others to run
    return LogitOf(Sum{MaxOfAll(static_cast<unsigned>(Rank(highest, 0) >> 32))} << 32);
  }
  // The lowest id of that logit.
  __device__ int IdOfLogit(float logit) {
    unsigned least = kMaxWeight;
    ForOwn([&](int i) {
      float logits[kBatch];
      LoadLogits(i, logits);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (logits[j] == logit) least = min(least, static_cast<unsigned>(first + i + j));
      }
    });
    return static_cast<int>(~MaxOfAll(~least));
  }

  // Prepares what weighs the logits, whose largest divided by the temperature is max_scaled.
  __device__ void SetScale(float temperature, float max_scaled) {
    scale = Scale::Prepare(temperature, max_scaled);
    if (!kHeld || scale.quick) return;
    ForOwn([&](int i) {
      unsigned bits[kBatch];
      LoadHeld(i, bits);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) bits[j] = __float_as_uint(__uint_as_float(bits[j]) / temperature);
      StoreHeld(i, bits);
    });
    highest /= temperature;
    scale = Scale::Divided(max_scaled);
  }

  // Weighs all ids, calls each(ScaledBits) for every one, and sums the weights.
  template <typename Each>
  __device__ Sum WeighAll(Each each) {
    Sum sum = 0;
    ForOwn([&](int i) {
      float logits[kBatch];
      unsigned bits[kBatch], weights[kBatch];
      LoadLogits(i, logits);
      Weigh(logits, bits);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) weights[j] = Scale::Held(bits[j]);
      if (kHeld) StoreHeld(i, weights);
      sum += Sum{weights[0]} + weights[1];
      sum += Sum{weights[2]} + weights[3];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) each(bits[j]);
    });
    const float best[kBatch] = {highest, -INFINITY, -INFINITY, -INFINITY};
    unsigned bits[kBatch];
    Weigh(best, bits);
    if (Scale::Held(bits[0]) == kMaxWeight) {
      ForOwn([&](int i) {
        unsigned weights[kBatch];
        Load(i, weights);
#pragma unroll
        for (int j = 0; j < kBatch; ++j) most += weights[j] == kMaxWeight;
      });
    }
    return sum + most;
  }

  template <typename Amount>
  __device__ Sum SumOwn(Amount amount) const {
    Sum sum = 0;
    ForOwn([&](int i) {
      unsigned weights[kBatch];
      Load(i, weights);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) sum += amount(first + i + j, weights[j]);
    });
    return sum;
  }
  // In id order, calls take(id) in the one thread of the row that finds the id with which the sum of amount(id, weight)
  // exceeds a number, picked(the sum of all). `shown`: of the amounts. Synchronizes the block.
  template <typename Picked, typename Amount, typename Take>
  __device__ void Locate(const Shown& shown, Picked picked, Amount amount, Take take) const {
    if (Warp() == 0) FindWarp(shown, picked);
    __syncthreads();
    const int warp = s.located_warp;
    if (warp < 0) return;
    // All warps share that one's ids.
    const int from_id = warp * IdsOfWarp(count), to_id = min(from_id + IdsOfWarp(count), RoundUp(count));
    const int of_warp = RoundUp((to_id - from_id + kDrawWarps - 1) / kDrawWarps), own_id = from_id + Warp() * of_warp;
    const auto for_own = [&](auto body) {
      for (int i = own_id; i < min(own_id + of_warp, to_id); i += kStep) {
        unsigned weights[kBatch];
        Sum amounts[kBatch], sum = 0;
        Load(i + Lane() * kBatch, weights);
#pragma unroll
        for (int j = 0; j < kBatch; ++j) sum += amounts[j] = amount(first + i + Lane() * kBatch + j, weights[j]);
        if (body(first + i + Lane() * kBatch, amounts, sum)) return;
      }
    };
    Sum own = 0;
    for_own([&](int, const Sum(&)[kBatch], Sum sum) {
      own += sum;
      return false;
    });
    own = WarpSum(own);
    if (Lane() == 0) s.located_of_warp[Warp()] = own;
    __syncthreads();
    Sum rest = s.located_rest;
    own = Lane() < kDrawWarps ? s.located_of_warp[Lane()] : 0;
    if (FindLane(WarpScan(own), own, &rest) != Warp()) return;
    for_own([&](int id, const Sum(&amounts)[kBatch], Sum sum) {
      const Sum through = WarpScan(sum), all = __shfl_sync(kAll, through, kWarp - 1);
      if (rest >= all) {
        rest -= all;
        return false;
      }
      if (FindLane(through, sum, &rest) != Lane()) return true;
      int at = 0;
#pragma unroll
      for (int j = 0; j < kBatch - 1; ++j) {
        if (at == j && rest >= amounts[j]) rest -= amounts[j], ++at;
      }
      take(id + at);
      return true;
    });
  }
  // s.located_... = the warp of the block that has what Locate looks for, and how much before it is the warp's; -1: it
  // is another block's. By one warp.
  template <typename Picked>
  __device__ void FindWarp(const Shown& shown, Picked picked) const {
    constexpr int kOwn = kMaxBlocks * kDrawWarps / kWarp;  // warps of a lane
    const Sum* const of_warp = &shown[0][0];
    Sum sums[kOwn], own = 0;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const int warp = Lane() * kOwn + j;
      own += sums[j] = warp < blocks.count() * kDrawWarps ? of_warp[warp] : 0;
    }
    const Sum through = WarpScan(own);
    Sum rest = picked(__shfl_sync(kAll, through, kWarp - 1));
    const int lane = FindLane(through, own, &rest);
    if (Lane() != max(lane, 0)) return;
    int at = 0;
#pragma unroll
    for (int j = 0; j < kOwn - 1; ++j) {
      if (at == j && rest >= sums[j]) rest -= sums[j], ++at;
    }
    const int warp = Lane() * kOwn + at - blocks.rank() * kDrawWarps;
    s.located_warp = lane >= 0 && warp >= 0 && warp < kDrawWarps ? warp : -1;
    s.located_rest = rest;
  }
  // The first lane where the sum of the lanes' amounts, `through` it, exceeds `rest`, from which what is before it is
  // taken; -1: none.
  __device__ static int FindLane(Sum through, Sum amount, Sum* rest) {
    const int lane = __ffs(static_cast<int>(__ballot_sync(kAll, through > *rest))) - 1;
    if (lane >= 0) *rest -= __shfl_sync(kAll, through - amount, lane);
    return lane;
  }
};

}  // namespace smt::cuda
