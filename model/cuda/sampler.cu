// Draws ids where the logits are, bit for bit as model/sampling/sampler.cc does on the host: weights are integers, so
// sums do not depend on their order. What top_k and top_p keep is found without sorting: a histogram over the leading
// bits of the weights, then over the next bits of those in the one bin that matters, until the weight of the last kept
// id is known exactly.
//
// Logits are read once: their weights stay in shared memory. Vocabularies too wide for that, and devices that have
// too little of it, weigh the logits anew in every pass.
#include <cuda_pipeline.h>

#include <algorithm>

#include "model/cuda/kernels.h"
#include "model/cuda/row_blocks.cuh"
#include "model/sampling/exp_weight.h"
#include "model/sampling/philox.h"

namespace smt::cuda {
namespace {

constexpr int kBatch = 4;  // ids that a thread takes at a time

// A weight has 24 significant bits, so that it is a float32 exactly, and its bits tell apart the same weights in the
// same order. In memory it is a uint32; 2^32 - 1, which is no weight, stands for 2^32.
constexpr unsigned kMaxWeight = 0xffffffffu;
__device__ __forceinline__ Sum WeightOf(unsigned held) { return Sum{held} + (held == kMaxWeight); }
__device__ __forceinline__ unsigned FloatBits(unsigned held) { return __float_as_uint(__uint2float_rn(held)); }

// Bins of the first histogram go by the exponent and 5 more bits, those of the next two by 9 more each.
constexpr int kFirstShift = 18, kDigit = 9;
constexpr int kBins = 32 << 5;  // 2^32 has the highest one
// Bits before the shift in the lowest bin; those of 1 are one less, in a bin that then would hold nothing else.
constexpr int kFirstBias = (127 << 5) + 1;

struct Found {
  int bin;
  Sum rest;    // of the target within the bin
  Sum amount;  // of the bin
};

struct Shared {
  unsigned low[kBins], high[kBins];  // 64-bit sums: shared memory adds 32 bits at a time
  Sum scan[kWarps];
  Sum best_of_block[kMaxBlocks], sum_of_block[kMaxBlocks];  // by rank
  Found found;
  Sum before_chunk;
  int chunk, id;
};

// Which weights are kept: those greater, and equal ones up to an id.
struct Cut {
  unsigned weight = 1;
  int last_id = 0x7fffffff;
  Sum dropped = 0;  // the sum of equal ones after that id
};

__device__ __forceinline__ Sum WarpScan(Sum x) {  // inclusive
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const Sum other = __shfl_up_sync(kAll, x, offset);
    if (static_cast<int>(threadIdx.x % kWarp) >= offset) x += other;
  }
  return x;
}

// Sum over the threads of the block before this one; `total` over all.
__device__ Sum BlockScan(Shared& s, Sum x, Sum* total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const Sum inclusive = WarpScan(x);
  if (lane == kWarp - 1) s.scan[warp] = inclusive;
  __syncthreads();
  const Sum warps = WarpScan(s.scan[lane]), before = __shfl_sync(kAll, warps, (warp + kWarp - 1) % kWarp);
  *total = __shfl_sync(kAll, warps, kWarp - 1);
  __syncthreads();
  return (warp == 0 ? 0 : before) + inclusive - x;
}

// logits / temperature as IEEE division rounds it. With the reciprocal at hand that takes five operations: the second
// quotient is at most an ulp off, so that the third is the rounded one (Markstein), while its residual is exact and
// nothing overflows. Beyond that a quotient matters no more: below 2^-60 it changes no weight, above 2^100 - far more
// than the maximum's - its weight is 0 (NaN's too), and Prepare refuses the rest.
struct Scale {
  float temperature, inverse, max_scaled;
  bool quick;

  __device__ static Scale Prepare(float temperature, float max_scaled) {
    const bool quick = temperature >= 0x1p-30f && temperature <= 0x1p30f && fabsf(max_scaled) < 0x1p100f;
    return {temperature, 1.0f / temperature, max_scaled, quick};
  }
  __device__ __forceinline__ float QuickQuotient(float x) const {
    float q = x * inverse;
    q = fmaf(fmaf(-q, temperature, x), inverse, q);
    return fmaf(fmaf(-q, temperature, x), inverse, q);
  }
  // ExpWeight, as it is held.
  __device__ __forceinline__ static unsigned Weigh(float x) {
    using C = ExpConstants;
    const float shifted = fmaf(x, C::kLog2E, C::kRound), n = shifted - C::kRound;
    float r = fmaf(n, -C::kLn2Hi, x);
    r = fmaf(n, -C::kLn2Lo, r);
    float p = fmaf(C::kC7, r, C::kC6);
    p = fmaf(p, r, C::kC5);
    p = fmaf(p, r, C::kC4);
    p = fmaf(p, r, C::kC3);
    p = fmaf(p, r, C::kC2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    // The lowest bits of `shifted` are n's: p * 2^(n + 32), whose conversion rounds down and makes 2^32 the greatest.
    const unsigned scaled = __float_as_uint(p) + (__float_as_uint(shifted) << 23) + (32u << 23);
    return x > C::kCutoff ? __float2uint_rz(__uint_as_float(scaled)) : 0;
  }
  __device__ __forceinline__ void Weigh(const float (&logits)[kBatch], unsigned (&weights)[kBatch]) const {
    float q[kBatch];
    if (quick) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j) q[j] = QuickQuotient(logits[j]);
    } else {
#pragma unroll
      for (int j = 0; j < kBatch; ++j) q[j] = logits[j] / temperature;
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) weights[j] = Weigh(q[j] - max_scaled);
  }
};

// A block's part of a row: `count` ids from `first` on.
template <bool kHeld, bool kCluster>
struct Part {
  Shared& s;
  unsigned* held;     // kHeld: logits, then weights
  const float* from;  // logits
  int first, count;
  Blocks<kCluster> blocks;
  Scale scale;

  __device__ void Start() {
    blocks.Arrive();
    if (kHeld) {
#pragma unroll 8
      for (int i = threadIdx.x; i < count; i += kThreads) __pipeline_memcpy_async(&held[i], &from[i], sizeof(float));
      __pipeline_commit();
    }
    for (int i = threadIdx.x; i < kBins; i += kThreads) s.low[i] = s.high[i] = 0;
    if (kHeld) __pipeline_wait_prior(0);  // each thread goes on with what it copied
  }
  __device__ __forceinline__ void LoadLogits(int i, int stride, int end, float (&logits)[kBatch]) const {
#pragma unroll
    for (int j = 0; j < kBatch; ++j, i += stride) {
      logits[j] = i >= end ? -INFINITY : kHeld ? __uint_as_float(held[i]) : from[i];
    }
  }
  // Weights of i, i + stride, ...; 0 from `end` on.
  __device__ __forceinline__ void Load(int i, int stride, int end, unsigned (&weights)[kBatch]) const {
    if (kHeld) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j, i += stride) weights[j] = i < end ? held[i] : 0;
    } else {
      float logits[kBatch];
      LoadLogits(i, stride, end, logits);
      scale.Weigh(logits, weights);
    }
  }
  // The row's greatest Rank.
  __device__ Sum Best() const {
    float highest = -INFINITY;
    int at = 0;
    for (int i = threadIdx.x; i < count; i += kBatch * kThreads) {
      float logits[kBatch];
      LoadLogits(i, kThreads, count, logits);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (logits[j] > highest) {
          highest = logits[j];
          at = i + j * kThreads;
        }
      }
    }
    Sum best = BlockMax(s.scan, Rank(highest, first + at));
    if (kCluster) {
      blocks.Wait();  // for the others to run
      if (threadIdx.x < blocks.count()) blocks.SharedOf(s, threadIdx.x).best_of_block[blocks.rank()] = best;
      blocks.Sync();
      for (int i = 0; i < blocks.count(); ++i) best = max(best, s.best_of_block[i]);
    }
    return best;
  }
  __device__ void Weigh() const {
    if constexpr (kHeld) {
      for (int i = threadIdx.x; i < count; i += kBatch * kThreads) {
        float logits[kBatch];
        unsigned weights[kBatch];
        LoadLogits(i, kThreads, count, logits);
        scale.Weigh(logits, weights);
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          if (i + j * kThreads < count) held[i + j * kThreads] = weights[j];
        }
      }
      __syncthreads();
    }
  }

  struct Scan {
    Sum before, before_block, block, total;
  };
  // Over the threads of all blocks, in order.
  __device__ Scan ScanAll(Sum own) const {
    Scan scan = {};
    scan.before = BlockScan(s, own, &scan.block);
    if (!kCluster) {
      scan.total = scan.block;
      return scan;
    }
    if (threadIdx.x < blocks.count()) blocks.SharedOf(s, threadIdx.x).sum_of_block[blocks.rank()] = scan.block;
    blocks.Sync();
    for (int i = 0; i < blocks.count(); ++i) {
      if (i < blocks.rank()) scan.before_block += s.sum_of_block[i];
      scan.total += s.sum_of_block[i];
    }
    scan.before += scan.before_block;
    return scan;
  }

  // Adds the ids that weigh `least` to `greatest`, or those weights, to the bins.
  __device__ void FillBins(bool by_count, unsigned least, unsigned greatest, int shift, int bias) const {
    for (int i = threadIdx.x; i < count; i += kBatch * kThreads) {
      unsigned weights[kBatch], before[kBatch], amount[kBatch];
      int bin[kBatch];
      bool counts[kBatch];
      Load(i, kThreads, count, weights);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        counts[j] = weights[j] - least <= greatest - least;
        amount[j] = by_count ? 1 : weights[j] == kMaxWeight ? 0 : weights[j];
        bin[j] = max(static_cast<int>(FloatBits(weights[j]) >> shift) - bias, 0);
        if (counts[j]) before[j] = atomicAdd(&s.low[bin[j]], amount[j]);
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (counts[j] && (amount[j] == 0 || before[j] > ~amount[j])) atomicAdd(&s.high[bin[j]], 1u);
      }
    }
  }

  // Finds, from the highest bin of all blocks down, where the amounts reach target_of(their sum), which is at least 1;
  // a bin of -1: nowhere. Empties the bins.
  template <typename TargetOf>
  __device__ Found FindBin(TargetOf target_of) const {
    blocks.Sync();
    const int slice = kBins / blocks.count(), bin = kBins - 1 - (blocks.rank() * slice + static_cast<int>(threadIdx.x));
    Sum own = 0;
    if (threadIdx.x < slice) {
      for (int i = 0; i < blocks.count(); ++i) {
        const Shared& other = blocks.SharedOf(s, i);
        own += Sum{other.high[bin]} << 32 | other.low[bin];
      }
    }
    const Scan scan = ScanAll(own);
    for (int i = threadIdx.x; i < kBins; i += kThreads) s.low[i] = s.high[i] = 0;
    const Sum target = target_of(scan.total);
    if (scan.before < target && target <= scan.before + own) {
      for (int i = 0; i < blocks.count(); ++i) blocks.SharedOf(s, i).found = {bin, target - scan.before, own};
    }
    blocks.Sync();
    Found found = s.found;
    if (scan.total < target) found.bin = -1;
    return found;
  }

  // In id order, calls take(id) in the one thread that has the id with which the sum of amount(id, weight) exceeds
  // pick(sum over the row).
  template <typename Amount, typename Pick, typename Take>
  __device__ void Locate(Amount amount, Pick pick, Take take) const {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, chunk = (count + kWarps - 1) / kWarps;
    unsigned weights[kBatch];
    Sum own = 0;
    const int chunk_end = min((warp + 1) * chunk, count);
    for (int i = warp * chunk + lane; i < chunk_end; i += kBatch * kWarp) {
      Load(i, kWarp, chunk_end, weights);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) own += amount(first + i + j * kWarp, weights[j]);
    }
    const Scan scan = ScanAll(own);
    const Sum picked = pick(scan.total);
    if (picked < scan.before_block || picked - scan.before_block >= scan.block) return;
    // The warp's ids are in order, its lanes' are not.
    const Sum before_warp = __shfl_sync(kAll, scan.before, 0);
    const Sum after_warp = __shfl_sync(kAll, scan.before + own, kWarp - 1);
    if (lane == 0 && before_warp <= picked && picked < after_warp) {
      s.chunk = warp;
      s.before_chunk = before_warp;
    }
    __syncthreads();
    const int piece = (chunk + kThreads - 1) / kThreads,
              begin = s.chunk * chunk + static_cast<int>(threadIdx.x) * piece;
    const int end = min(begin + piece, min((s.chunk + 1) * chunk, count));
    own = 0;
    for (int i = begin; i < end; i += kBatch) {
      Load(i, 1, end, weights);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) own += amount(first + i + j, weights[j]);
    }
    Sum rest = picked - s.before_chunk, total = 0;
    const Sum before = BlockScan(s, own, &total);
    if (rest < before || rest >= before + own) return;
    rest -= before;
    for (int i = begin; i < end; i += kBatch) {
      Load(i, 1, end, weights);
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

  // The cut that keeps the `top_k` heaviest ids, or, if that is 0, the fewest whose weights reach `top_p` of what
  // `outer` keeps.
  __device__ Cut FindCut(int top_k, float top_p, const Cut& outer) const {
    const bool by_count = top_k > 0;
    unsigned least = outer.weight, greatest = kMaxWeight;
    Found found = {};
    for (int shift = kFirstShift, bias = kFirstBias; shift >= 0; shift -= kDigit) {
      FillBins(by_count, least, greatest, shift, bias);
      found = FindBin([&](Sum total) {
        if (shift < kFirstShift) return found.rest;
        return by_count ? Sum(top_k) : max(Sum{TopPThreshold(top_p, total - outer.dropped)}, Sum{1});
      });
      if (found.bin < 0) return outer;  // fewer ids have a weight at all
      const unsigned bits = static_cast<unsigned>(bias + found.bin) << shift;
      greatest = __float2uint_rz(__uint_as_float(bits + (1u << shift) - 1));
      least = min(__float2uint_ru(__uint_as_float(bits)), greatest);  // 1 is below its bin's bits
      if (least == greatest) break;
      bias = static_cast<int>(bits >> (shift - kDigit));
    }
    Cut cut;
    cut.weight = least;
    // Of the ids that weigh exactly this, the lowest so many.
    const Sum weight = WeightOf(least), equal = by_count ? found.amount : found.amount / weight;
    const Sum kept = by_count ? found.rest : (found.rest + weight - 1) / weight;
    if (kept >= equal) return cut;
    cut.dropped = (equal - kept) * weight;
    Locate([&](int, unsigned held_weight) -> Sum { return held_weight == least; }, [&](Sum) { return kept - 1; },
           [&](int id) {
             for (int i = 0; i < blocks.count(); ++i) blocks.SharedOf(s, i).id = id;
           });
    blocks.Sync();
    cut.last_id = s.id;
    return cut;
  }
};

template <bool kHeld, bool kCluster>
__global__ void __launch_bounds__(kThreads)
    DrawKernel(const float* __restrict__ logits, int64_t ld, const Draw* __restrict__ draws, int vocab, int ids_a_block,
               int32_t* __restrict__ ids, int32_t* __restrict__ last) {
  if constexpr (kCanRun<kCluster>) {
    extern __shared__ __align__(16) unsigned char memory[];
    const Blocks<kCluster> blocks;
    const int row = static_cast<int>(blockIdx.x) / blocks.count(), first = blocks.rank() * ids_a_block;
    Part<kHeld, kCluster> part = {*reinterpret_cast<Shared*>(memory),
                                  reinterpret_cast<unsigned*>(memory + sizeof(Shared)),
                                  logits + row * ld + first,
                                  first,
                                  max(min(ids_a_block, vocab - first), 0),
                                  blocks,
                                  {}};
    const Draw draw = draws[row];
    part.Start();
    const Sum best = part.Best();
    const float max = LogitOf(best);
    const float max_scaled = draw.temperature > 0 ? max / draw.temperature : 0.0f;
    if (max == -INFINITY || !(draw.temperature > 0) || !isfinite(max_scaled)) {
      if (blocks.rank() == 0 && threadIdx.x == 0) {
        ids[row] = last[draw.slot] = max == -INFINITY ? -1 : IdOf(best);
      }
      return;
    }
    part.scale = Scale::Prepare(draw.temperature, max_scaled);
    part.Weigh();
    Cut cut;
    if (draw.top_k > 0 && draw.top_k < vocab) cut = part.FindCut(draw.top_k, 1.0f, cut);
    if (draw.top_p < 1.0f) cut = part.FindCut(0, draw.top_p, cut);
    const unsigned least = static_cast<unsigned>(::min(MinPThreshold(draw.min_p), uint64_t{kMaxWeight}));
    if (least > cut.weight) {
      cut = Cut();
      cut.weight = least;
    }
    part.Locate(
        [&](int id, unsigned weight) -> Sum {
          return weight > cut.weight || (weight == cut.weight && id <= cut.last_id) ? WeightOf(weight) : 0;
        },
        [&](Sum total) { return ScaleRandom(DrawBits(draw.seed, draw.position), total); },
        [&](int id) { ids[row] = last[draw.slot] = id; });
  }
}

}  // namespace

void DrawIds(const float* logits, int64_t ld, const Draw* draws, int rows, int vocab, int32_t* ids, int32_t* last,
             cudaStream_t stream) {
  if (rows == 0) return;
  static const bool raised = (RaiseSharedMemory(DrawKernel<true, true>, DrawKernel<true, false>), true);
  static_cast<void>(raised);
  const RowLaunch launch = LaunchOf(rows, vocab, sizeof(Shared));
  const auto kernel = launch.blocks > 1 ? (launch.held ? DrawKernel<true, true> : DrawKernel<false, true>)
                                        : (launch.held ? DrawKernel<true, false> : DrawKernel<false, false>);
  LaunchRows(launch, stream, "launching the sampler", kernel, logits, ld, draws, vocab, launch.ids_a_block, ids, last);
}

}  // namespace smt::cuda
