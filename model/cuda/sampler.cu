// Draws ids where the logits are, bit for bit as model/sampling/sampler.cc does on the host: weights are integers, so
// sums do not depend on their order. A block draws for one row. What top_k and top_p keep is found without sorting: a
// histogram over the leading bits of the weights, then over the next bits of those in the one bin that matters, until
// the weight of the last kept id is known exactly.
#include "model/cuda/kernels.h"
#include "model/sampling/exp_weight.h"
#include "model/sampling/philox.h"

namespace smt::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kThreads = 1024, kWarps = kThreads / kWarp;
constexpr int kFirstBits = 5;                 // after a weight's leading one
constexpr int kFirstBins = 34 << kFirstBits;  // by width (1 to 33) and those bits
constexpr int kDigit = 9;                     // bits of each later level
constexpr int kBinsOfLane = kFirstBins / kWarp;

struct Shared {
  unsigned long long sum[kFirstBins];
  unsigned int count[kFirstBins];
  unsigned long long scan[kWarps];
  float warp_max[kWarps];
  // What the bin search found.
  int bin;
  unsigned long long rest, sum_above, bin_count;
  int id;
};

// Which weights are kept: those greater, and equal ones up to an id.
struct Cut {
  unsigned long long weight = 1;
  int last_id = 0x7fffffff;
};

struct Weights {
  const float* logits;
  float temperature, max_scaled;
  int vocab;
  __device__ __forceinline__ unsigned long long At(int id) const {
    return ExpWeight(logits[id] / temperature - max_scaled);
  }
};

__device__ __forceinline__ int Width(unsigned long long weight) { return 64 - __clzll(weight); }
__device__ __forceinline__ int LowBits(int width) { return width > kFirstBits ? width - 1 - kFirstBits : 0; }
__device__ __forceinline__ int FirstBin(unsigned long long weight) {
  const int width = Width(weight);
  const unsigned long long fraction =
      width > kFirstBits ? weight >> (width - 1 - kFirstBits) : weight << (kFirstBits + 1 - width);
  return width << kFirstBits | static_cast<int>(fraction & ((1u << kFirstBits) - 1));
}

__device__ float BlockMax(Shared& s, float x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(kAll, x, offset);
    x = other > x ? other : x;
  }
  if (threadIdx.x % kWarp == 0) s.warp_max[threadIdx.x / kWarp] = x;
  __syncthreads();
  float max = s.warp_max[0];
  for (int i = 1; i < kWarps; ++i) max = s.warp_max[i] > max ? s.warp_max[i] : max;
  __syncthreads();
  return max;
}

// Sum over the threads before this one; `total` over all.
__device__ unsigned long long ExclusiveScan(Shared& s, unsigned long long x, unsigned long long* total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  unsigned long long inclusive = x;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const unsigned long long other = __shfl_up_sync(kAll, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  if (lane == kWarp - 1) s.scan[warp] = inclusive;
  __syncthreads();
  unsigned long long before = 0, all = 0;
  for (int i = 0; i < kWarps; ++i) {
    if (i < warp) before += s.scan[i];
    all += s.scan[i];
  }
  __syncthreads();
  *total = all;
  return before + inclusive - x;
}

// Finds, from the highest bin down, where the count or sum reaches `target` (>= 1): s.bin (-1: nowhere), s.rest of the
// target within it, s.sum_above plus what the bins above hold.
__device__ void FindBin(Shared& s, unsigned long long target, bool by_count) {
  if (threadIdx.x < kWarp) {
    const int lane = threadIdx.x, highest = kFirstBins - 1 - lane * kBinsOfLane;
    unsigned long long own = 0, own_sum = 0;
    for (int i = 0; i < kBinsOfLane; ++i) {
      own += by_count ? s.count[highest - i] : s.sum[highest - i];
      own_sum += s.sum[highest - i];
    }
    unsigned long long reached = own, reached_sum = own_sum;
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const unsigned long long other = __shfl_up_sync(kAll, reached, offset);
      const unsigned long long other_sum = __shfl_up_sync(kAll, reached_sum, offset);
      if (lane >= offset) {
        reached += other;
        reached_sum += other_sum;
      }
    }
    const unsigned crossing = __ballot_sync(kAll, reached >= target);
    if (crossing == 0) {
      if (lane == 0) s.bin = -1;
    } else if (lane == __ffs(crossing) - 1) {
      unsigned long long rest = target - (reached - own), above = reached_sum - own_sum;
      int bin = highest;
      while (true) {
        const unsigned long long here = by_count ? s.count[bin] : s.sum[bin];
        if (here >= rest) break;
        rest -= here;
        above += s.sum[bin];
        --bin;
      }
      s.bin = bin;
      s.rest = rest;
      s.sum_above += above;
      s.bin_count = s.count[bin];
    }
  }
  __syncthreads();
}

__device__ void ClearBins(Shared& s) {
  for (int i = threadIdx.x; i < kFirstBins; i += kThreads) {
    s.count[i] = 0;
    s.sum[i] = 0;
  }
  __syncthreads();
}

// The cut that keeps the `target` heaviest ids (by_count), or the fewest whose weights reach `target`.
__device__ Cut FindCut(Shared& s, const Weights& weights, unsigned long long target, bool by_count,
                       unsigned long long sum, unsigned long long* sum_kept) {
  ClearBins(s);
  if (threadIdx.x == 0) s.sum_above = 0;
  for (int id = threadIdx.x; id < weights.vocab; id += kThreads) {
    const unsigned long long weight = weights.At(id);
    if (weight == 0) continue;
    const int bin = FirstBin(weight);
    atomicAdd(&s.count[bin], 1u);
    atomicAdd(&s.sum[bin], weight);
  }
  __syncthreads();
  FindBin(s, target, by_count);
  if (s.bin < 0) {  // fewer ids have a weight at all
    *sum_kept = sum;
    return {};
  }
  const int width = s.bin >> kFirstBits;
  int low = LowBits(width);
  // Everything in the bin shares these bits above the `low` ones.
  unsigned long long prefix =
      width > kFirstBits ? (1ull << kFirstBits) | (s.bin & ((1 << kFirstBits) - 1))
                         : ((1ull << kFirstBits) | (s.bin & ((1 << kFirstBits) - 1))) >> (kFirstBits + 1 - width);
  while (low > 0) {
    const int digit = low < kDigit ? low : kDigit, shift = low - digit;
    const unsigned long long rest = s.rest;
    __syncthreads();
    ClearBins(s);
    for (int id = threadIdx.x; id < weights.vocab; id += kThreads) {
      const unsigned long long weight = weights.At(id);
      if (weight >> low != prefix) continue;
      const int bin = static_cast<int>(weight >> shift & ((1ull << digit) - 1));
      atomicAdd(&s.count[bin], 1u);
      atomicAdd(&s.sum[bin], weight);
    }
    __syncthreads();
    FindBin(s, rest, by_count);
    prefix = prefix << digit | static_cast<unsigned long long>(s.bin);
    low = shift;
  }
  const unsigned long long rest = s.rest, equal = s.bin_count, above = s.sum_above;
  __syncthreads();
  Cut cut;
  cut.weight = prefix;
  // Of the ids that weigh exactly this, the lowest so many.
  const unsigned long long kept = by_count ? rest : (rest + prefix - 1) / prefix;
  *sum_kept = above + kept * prefix;
  if (kept >= equal) return cut;
  const int piece = (weights.vocab + kThreads - 1) / kThreads, first = threadIdx.x * piece;
  const int end = min(first + piece, weights.vocab);
  unsigned long long own = 0, total = 0;
  for (int id = first; id < end; ++id) own += weights.At(id) == prefix;
  unsigned long long before = ExclusiveScan(s, own, &total);
  if (before < kept && before + own >= kept) {
    for (int id = first; id < end; ++id) {
      if (weights.At(id) == prefix && ++before == kept) s.id = id;
    }
  }
  __syncthreads();
  cut.last_id = s.id;
  __syncthreads();
  return cut;
}

__global__ void __launch_bounds__(kThreads)
    DrawKernel(const float* __restrict__ logits, int64_t ld, const Draw* __restrict__ draws, int vocab,
               int32_t* __restrict__ ids) {
  __shared__ Shared s;
  const float* row = logits + blockIdx.x * ld;
  const Draw draw = draws[blockIdx.x];
  float max = -INFINITY;
  for (int id = threadIdx.x; id < vocab; id += kThreads) max = row[id] > max ? row[id] : max;
  max = BlockMax(s, max);
  if (max == -INFINITY) {
    if (threadIdx.x == 0) ids[blockIdx.x] = -1;
    return;
  }
  const float max_scaled = draw.temperature > 0 ? max / draw.temperature : 0.0f;
  if (!(draw.temperature > 0) || !isfinite(max_scaled)) {
    if (threadIdx.x == 0) s.id = vocab;
    __syncthreads();
    for (int id = threadIdx.x; id < vocab; id += kThreads) {
      if (row[id] == max) {
        atomicMin(&s.id, id);
        break;
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) ids[blockIdx.x] = s.id;
    return;
  }
  const Weights weights = {row, draw.temperature, max_scaled, vocab};
  Cut cut;
  const bool top_k = draw.top_k > 0 && draw.top_k < vocab;
  unsigned long long sum = 0;
  if (top_k || draw.top_p < 1.0f) {
    unsigned long long own = 0;
    for (int id = threadIdx.x; id < vocab; id += kThreads) own += weights.At(id);
    ExclusiveScan(s, own, &sum);
  }
  if (top_k) cut = FindCut(s, weights, static_cast<unsigned long long>(draw.top_k), true, sum, &sum);
  if (draw.top_p < 1.0f) cut = FindCut(s, weights, TopPThreshold(draw.top_p, sum), false, sum, &sum);
  const unsigned long long least = MinPThreshold(draw.min_p);
  if (least > cut.weight) {
    cut = Cut();
    cut.weight = least;
  }
  // In id order: each thread a run of neighbours.
  const int piece = (vocab + kThreads - 1) / kThreads, first = threadIdx.x * piece, end = min(first + piece, vocab);
  const auto kept = [&](int id) -> unsigned long long {
    const unsigned long long weight = weights.At(id);
    return weight > cut.weight || (weight == cut.weight && id <= cut.last_id) ? weight : 0;
  };
  unsigned long long own = 0, total = 0;
  for (int id = first; id < end; ++id) own += kept(id);
  const unsigned long long before = ExclusiveScan(s, own, &total);
  const unsigned long long r = ScaleRandom(DrawBits(draw.seed, draw.position), total);
  if (before <= r && r < before + own) {
    unsigned long long rest = r - before;
    for (int id = first; id < end; ++id) {
      const unsigned long long weight = kept(id);
      if (rest < weight) {
        ids[blockIdx.x] = id;
        break;
      }
      rest -= weight;
    }
  }
}

}  // namespace

void DrawIds(const float* logits, int64_t ld, const Draw* draws, int rows, int vocab, int32_t* ids,
             cudaStream_t stream) {
  if (rows == 0) return;
  DrawKernel<<<rows, kThreads, 0, stream>>>(logits, ld, draws, vocab, ids);
  CheckCuda(cudaGetLastError(), "launching the sampler");
}

}  // namespace smt::cuda
