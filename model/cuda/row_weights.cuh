// The weights of a row's ids, for kernels that draw: a block, or each block of a cluster, has a run of the ids, and
// within it each warp. Sums go over all of them.
//
// Logits are read once: their weights stay in shared memory. Vocabularies too wide for that, and devices that have
// too little of it, weigh the logits anew in every pass.
#pragma once

#include <cuda_pipeline.h>

#include "model/cuda/row_blocks.cuh"
#include "model/cuda/weigh.cuh"

namespace smt::cuda {

// Two blocks of a multiprocessor, each with 64 registers a thread.
inline constexpr int kDrawThreads = 512, kDrawWarps = kDrawThreads / kWarp;
inline constexpr int kBatch = 4;  // ids that a thread takes at a time
inline constexpr int kStep = kBatch * kWarp;
__host__ __device__ constexpr int RoundUp(int ids) { return (ids + kStep - 1) / kStep * kStep; }

struct RowShared {
  Sum of_warp[2][kMaxBlocks][kDrawWarps];  // by rank; taken in turn
  Box shown[2];
};

__device__ __forceinline__ int Lane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int Warp() { return static_cast<int>(threadIdx.x) / kWarp; }

// Inclusive.
__device__ __forceinline__ Sum WarpScan(Sum x) {
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const Sum other = __shfl_up_sync(kAll, x, offset);
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
  int turn = -1;  // of Show

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

  // The same, of a part of the batches: logits come in parts.
  static constexpr int kParts = 4;
  template <typename Body>
  __device__ __forceinline__ void ForOwnOfPart(int part, Body body) const {
    const int of_part = RoundUp((end - begin + kParts - 1) / kParts), last = min(begin + (part + 1) * of_part, end);
    for (int i = begin + part * of_part + Lane() * kBatch; i < last; i += kStep) body(i);
  }

  // Loads the logits, while `meanwhile` does other work. Synchronizes the block.
  template <typename Meanwhile>
  __device__ void Start(Box* boxes, int box_count, Meanwhile meanwhile) {
    if (threadIdx.x == 0) {
      blocks.Open(s.shown, 2);
      blocks.Open(boxes, box_count);
    }
    blocks.Arrive();
    if (kHeld) {
      const bool aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0;
      for (int part = 0; part < kParts; ++part) {
        ForOwnOfPart(part, [&](int i) {
          if (aligned && i + kBatch <= count) {
            __pipeline_memcpy_async(&held[i], &from[i], kBatch * sizeof(float));
            return;
          }
          for (int j = i; j < i + kBatch; ++j) {
            if (j < count) {
              __pipeline_memcpy_async(&held[j], &from[j], sizeof(float));
            } else {
              held[j] = __float_as_uint(-INFINITY);
            }
          }
        });
        __pipeline_commit();
      }
    }
    meanwhile();
    __syncthreads();
  }
  // Each thread goes on with what it copied.
  __device__ __forceinline__ static void AwaitPart(int part) {
    switch (part) {
      case 0:
        return __pipeline_wait_prior(3);
      case 1:
        return __pipeline_wait_prior(2);
      case 2:
        return __pipeline_wait_prior(1);
      default:
        return __pipeline_wait_prior(0);
    }
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
  __device__ Box* ShowBox() const { return &s.shown[turn & 1]; }
  // What all have shown, by rank, and `more` bytes of each block that were sent to the same box.
  __device__ Shown& SeeShown(unsigned more = 0) const {
    blocks.Await(ShowBox(), blocks.count() * (kDrawWarps * sizeof(Sum) + more), turn >> 1 & 1);
    return s.of_warp[turn & 1];
  }
  // The greatest x of the row.
  __device__ unsigned MaxOfAll(unsigned x) {
    Show(__reduce_max_sync(kAll, x));
    const auto& shown = SeeShown();
    x = 0;
    for (int i = Lane(); i < blocks.count() * kDrawWarps; i += kWarp) {
      x = max(x, static_cast<unsigned>(shown[i / kDrawWarps][i % kDrawWarps]));
    }
    return __reduce_max_sync(kAll, x);
  }
  struct Sums {
    Sum before, own, total;  // of the warps before, of this one, of all
  };
  __device__ Sums SumsOf(const Shown& shown) const {
    Sums sums = {0, shown[blocks.rank()][Warp()], 0};
    for (int i = Lane(); i < blocks.count() * kDrawWarps; i += kWarp) {
      const Sum other = shown[i / kDrawWarps][i % kDrawWarps];
      if (i < blocks.rank() * kDrawWarps + Warp()) sums.before += other;
      sums.total += other;
    }
    return {WarpSum(sums.before), sums.own, WarpSum(sums.total)};
  }
  __device__ Sum TotalOf(const Shown& shown) const {
    Sum total = 0;
    for (int i = Lane(); i < blocks.count() * kDrawWarps; i += kWarp) total += shown[i / kDrawWarps][i % kDrawWarps];
    return WarpSum(total);
  }
  __device__ Sums SumAll(Sum x) {
    Show(WarpSum(x));
    return SumsOf(SeeShown());
  }

  // The row's largest logit.
  __device__ float Max() {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if (kHeld) AwaitPart(part);
      ForOwnOfPart(part, [&](int i) {
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
  // In id order, calls take(id) in the one thread that has the id with which the sum of amount(id, weight) exceeds
  // `picked`. `sums`: of the amounts.
  template <typename Amount, typename Take>
  __device__ void Locate(const Sums& sums, Sum picked, Amount amount, Take take) const {
    if (picked < sums.before || picked - sums.before >= sums.own) return;
    Sum rest = picked - sums.before;
    for (int i = begin + Lane() * kBatch; i < end; i += kStep) {
      unsigned weights[kBatch];
      Load(i, weights);
      Sum own = 0;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) own += amount(first + i + j, weights[j]);
      const Sum through = WarpScan(own), step = __shfl_sync(kAll, through, kWarp - 1);
      if (rest >= step) {
        rest -= step;
        continue;
      }
      if (rest < through - own || rest >= through) return;
      rest -= through - own;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const Sum here = amount(first + i + j, weights[j]);
        if (rest < here) {
          take(first + i + j);
          return;
        }
        rest -= here;
      }
    }
  }
};

}  // namespace smt::cuda
