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
  int first, count;
  Blocks<kCluster> blocks;
  int begin, end;  // of the warp's ids, in steps
  Scale scale = {};
  float highest = -INFINITY;  // of the thread's logits
  int most = 0;               // of the thread's ids weigh 2^32
  int turn = 0;

  __device__ RowWeights(RowShared& shared, unsigned* held_at, const float* logits, int first_id, int ids)
      : s(shared), held(held_at), from(logits), first(first_id), count(ids) {
    const int of_warp = RoundUp((count + kDrawWarps - 1) / kDrawWarps);
    begin = Warp() * of_warp;
    end = min(begin + of_warp, RoundUp(count));
  }

  // body(i) for each batch of the thread, from i on.
  template <typename Body>
  __device__ __forceinline__ void ForOwn(Body body) const {
    for (int i = begin + Lane() * kBatch; i < end; i += kStep) body(i);
  }

  // Loads the logits, while `meanwhile` does other work.
  template <typename Meanwhile>
  __device__ void Start(Meanwhile meanwhile) {
    blocks.Arrive();
    if (kHeld) {
      const bool aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0;
      ForOwn([&](int i) {
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
    meanwhile();
    if (kHeld) __pipeline_wait_prior(0);  // each thread goes on with what it copied
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

  // Every warp of the row shows its x; returns what all show, by rank. Synchronizes the blocks.
  __device__ const Sum (&Show(Sum x))[kMaxBlocks][kDrawWarps] {
    turn ^= 1;
    if (Lane() < blocks.count()) blocks.SharedOf(s, Lane()).of_warp[turn][blocks.rank()][Warp()] = x;
    blocks.Sync();
    return s.of_warp[turn];
  }
  // The greatest x of the row.
  __device__ unsigned MaxOfAll(unsigned x) {
    const auto& shown = Show(__reduce_max_sync(kAll, x));
    x = 0;
    for (int i = Lane(); i < blocks.count() * kDrawWarps; i += kWarp) {
      x = max(x, static_cast<unsigned>(shown[i / kDrawWarps][i % kDrawWarps]));
    }
    return __reduce_max_sync(kAll, x);
  }
  struct Sums {
    Sum before, own, total;  // of the warps before, of this one, of all
  };
  __device__ Sums SumAll(Sum x) {
    Sums sums = {0, WarpSum(x), 0};
    const auto& shown = Show(sums.own);
    for (int i = Lane(); i < blocks.count() * kDrawWarps; i += kWarp) {
      const Sum other = shown[i / kDrawWarps][i % kDrawWarps];
      if (i < blocks.rank() * kDrawWarps + Warp()) sums.before += other;
      sums.total += other;
    }
    return {WarpSum(sums.before), sums.own, WarpSum(sums.total)};
  }

  // The row's largest logit.
  __device__ float Max() {
    ForOwn([&](int i) {
      float logits[kBatch];
      LoadLogits(i, logits);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) highest = fmaxf(highest, logits[j]);
    });
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
