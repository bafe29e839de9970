// Draws ids where the logits are, bit for bit as model/sampling/sampler.cc does on the host: weights are integers, so
// sums do not depend on their order. What top_k and top_p keep is found without sorting. While the ids are weighed
// their weights, rounded, are added to fine bins, which tell in what bin the last kept id lies. The next pass sums what
// is above that bin, exactly, and lists the few ids in it, among which the last kept one is found - or proved not to
// be. Then, or where the list is too short, or the bins (what ids of tiny weights hardly ever decide is not in them),
// exact histograms find it: over the leading bits of the weights, then over the next bits of those in the one bin that
// matters, until its weight is known.
#include <algorithm>

#include "model/cuda/kernels.h"
#include "model/cuda/row_blocks.cuh"
#include "model/cuda/row_weights.cuh"
#include "model/sampling/philox.h"

namespace smt::cuda {
namespace {

// Fine bins go by the exponent and 6 more bits, from 2^kFineLeast to 2^32. They count, or hold the sum of the weights'
// kFineBits leading bits; where a bin of so many ids that it overflows matters, its ids would find no room in the list.
constexpr int kFineShift = 17, kFineLeast = 23 - kFineShift, kFineAnOctave = 1 << (23 - kFineShift), kFineBits = 20;
constexpr unsigned kFineBias = (127 + kFineLeast) * kFineAnOctave;
constexpr int kFineBins = (32 - kFineLeast) * kFineAnOctave + 4;
constexpr int kListed = 512;  // ids of a bin
static_assert(kListed <= kDrawThreads);

// Bins of the first exact histogram go by the exponent and 5 more bits, those of the next two by 9 more each.
constexpr int kFirstShift = 18, kDigit = 9;
constexpr int kBins = 32 << 5;  // 2^32 has the highest one
// Bits before the shift in the lowest bin; those of 1 are one less, in a bin that then would hold nothing else.
constexpr int kFirstBias = (127 << 5) + 1;

struct Found {
  int bin;     // -1: none
  Sum rest;    // of the target within the bin
  Sum amount;  // of the bin
};

// Which weights are kept: those greater, and equal ones up to an id.
struct Cut {
  unsigned weight = 1;
  int last_id = 0x7fffffff;
  Sum dropped = 0;  // the sum of equal ones after that id

  __device__ __forceinline__ bool Keeps(unsigned held, int id) const {
    return held > weight || (held == weight && id <= last_id);
  }
};

// Ids in the order in which they are kept, the greatest first.
__device__ __forceinline__ Sum KeyOf(unsigned held, int id) { return Sum{held} << 32 | ~static_cast<unsigned>(id); }
__device__ __forceinline__ unsigned HeldOf(Sum key) { return static_cast<unsigned>(key >> 32); }

struct alignas(16) Shared : RowShared {  // the held ids follow
  union {
    struct {
      unsigned low[kBins], high[kBins];  // 64-bit sums: shared memory adds 32 bits at a time
    } exact;
    struct {
      union {
        unsigned bins[kFineBins];
        Sum gathered[kFineBins / 2];  // keys of all blocks' lists
      };
      Sum list[kListed];  // keys
    } fine;
  };
  Sum scan[kDrawWarps];
  Found found;
  Cut cut;
  int listed, id;
  unsigned aside[kWarp];  // for what no fine bin takes
};

// In shared memory; else a compiler asks for the base of the block's over and over.
__device__ __forceinline__ unsigned AddressOf(const void* place) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(place));
  asm volatile("" : "+r"(address));
  return address;
}
__device__ __forceinline__ void AddShared(unsigned address, unsigned amount) {
  asm volatile("red.shared.add.u32 [%0], %1;" : : "r"(address), "r"(amount) : "memory");
}

// Finds what is kept of a row.
template <typename Row>
struct CutFinder {
  Shared& s;
  Row& row;

  __device__ void Clear() const {
    for (int i = threadIdx.x; i < kFineBins; i += kDrawThreads) s.fine.bins[i] = 0;
    if (threadIdx.x == 0) s.listed = 0;
  }
  // Weighs the row's ids and fills the fine bins; returns the thread's sum of weights.
  __device__ Sum WeighAll(bool by_count) const {
    const unsigned one = by_count ? 1 : 1u << (kFineBits - 1), mask = by_count ? 0 : one - 1;
    const unsigned bins = AddressOf(s.fine.bins) - kFineBias * sizeof(unsigned), aside = AddressOf(&s.aside[Lane()]);
    return row.WeighAll([&](unsigned bits) {
      const unsigned bin = bins + ((bits & ~((1u << kFineShift) - 1)) >> (kFineShift - 2));
      AddShared(bits >= kFineBias << kFineShift ? bin : aside, (bits >> (24 - kFineBits) & mask) | one);
    });
  }

  // Finds, from the highest bin down, where the amounts reach target_of(their sum), which is at least 1. `amount_of` a
  // block's bin. The blocks are synchronized before, the block afterwards.
  template <int kCount, typename AmountOf, typename TargetOf>
  __device__ Found FindBin(AmountOf amount_of, TargetOf target_of) {
    constexpr int kOwn = (kCount + kDrawThreads - 1) / kDrawThreads;
    const int highest_bin = kCount - 1 - static_cast<int>(threadIdx.x) * kOwn;
    Sum amounts[kOwn] = {}, own = 0;
    if (threadIdx.x == 0) s.found.bin = -1;
    for (int i = 0; i < row.blocks.count(); ++i) {
      const Shared& other = row.blocks.SharedOf(s, i);
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        if (highest_bin >= j) amounts[j] += amount_of(other, highest_bin - j);
      }
    }
#pragma unroll
    for (int j = 0; j < kOwn; ++j) own += amounts[j];
    const Sum through = WarpScan(own);
    if (Lane() == kWarp - 1) s.scan[Warp()] = through;
    __syncthreads();
    const Sum of_warp = Lane() < kDrawWarps ? s.scan[Lane()] : 0;
    const Sum target = target_of(WarpSum(of_warp));
    Sum before = WarpSum(Lane() < Warp() ? of_warp : 0) + through - own;
    if (before < target && target <= before + own) {
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        if (before < target && target <= before + amounts[j]) {
          s.found = {highest_bin - j, target - before, amounts[j]};
        }
        before += amounts[j];
      }
    }
    __syncthreads();
    return s.found;
  }

  // Finds the cut that keeps the heaviest ids, so many or so much of them, by the fine bins; also sums what it keeps.
  // False: not so.
  __device__ bool FindCutFast(bool by_count, Sum target, Cut* cut, typename Row::Sums* kept) {
    const Found found = FindBin<kFineBins>(
        [&](const Shared& of, int bin) {
          const Sum sum = of.fine.bins[bin];
          return by_count ? sum : sum << (bin / kFineAnOctave) >> (kFineBits - 1 - kFineLeast);
        },
        // Less what the weights lose with their lower bits.
        [&](Sum) { return by_count ? target : target - (target >> (kFineBits + 1)) - (target >> (kFineBits + 2)); });
    if (found.bin < 0) return false;
    const unsigned bits = (kFineBias + static_cast<unsigned>(found.bin)) << kFineShift;
    const unsigned least = Scale::Held(bits), greatest = Scale::Held(bits + (1u << kFineShift) - 1);
    Sum above = greatest < kMaxWeight ? row.most : 0;
    row.ForOwn([&](int i) {
      unsigned weights[kBatch];
      row.Load(i, weights);
      bool any = false;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) any |= weights[j] >= least && weights[j] <= greatest;
      above += Sum{weights[0] > greatest ? weights[0] : 0} + (weights[1] > greatest ? weights[1] : 0);
      above += Sum{weights[2] > greatest ? weights[2] : 0} + (weights[3] > greatest ? weights[3] : 0);
      if (!any) return;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (weights[j] < least || weights[j] > greatest) continue;
        const int at = atomicAdd(&s.listed, 1);
        if (at < kListed) s.fine.list[at] = KeyOf(weights[j], row.first + i + j);
      }
    });
    *kept = row.SumAll(above);
    if (!by_count && target <= kept->total) return false;
    Sum rest = by_count ? found.rest : target - kept->total;
    if (least == kMaxWeight && !by_count) {
      by_count = true;
      rest = (rest + kMaxWeight) >> 32;
    }
    const int candidates = Gather();
    if (candidates < 0 || !FindLast(by_count, rest, candidates)) return false;
    *cut = s.cut;
    Sum before = 0, own = 0, all = 0, dropped = 0;
    for (int i = Lane(); i < candidates; i += kWarp) {
      const Sum key = s.fine.gathered[i], weight = WeightOf(HeldOf(key));
      const int id = IdOf(key);
      if (cut->Keeps(HeldOf(key), id)) {
        all += weight;
        if (id < row.first + row.begin) before += weight;
        if (id >= row.first + row.begin && id < row.first + row.end) own += weight;
      } else if (HeldOf(key) == cut->weight) {
        dropped += weight;
      }
    }
    cut->dropped = WarpSum(dropped);
    *kept = {kept->before + WarpSum(before), kept->own + WarpSum(own), kept->total + WarpSum(all)};
    return true;
  }
  // Brings the blocks' lists together. Returns how many ids they have, -1 if too many. Synchronizes the blocks.
  __device__ int Gather() const {
    const int listed = Lane() < row.blocks.count() ? row.blocks.SharedOf(s, Lane()).listed : 0;
    const int all = __reduce_add_sync(kAll, listed);
    const bool fits = __all_sync(kAll, listed <= kListed) && all <= kFineBins / 2;
    int at = threadIdx.x;
    for (int i = 0; fits && i < row.blocks.count(); ++i) {
      const int here = __shfl_sync(kAll, listed, i);
      if (threadIdx.x < here) s.fine.gathered[at] = row.blocks.SharedOf(s, i).fine.list[threadIdx.x];
      at += here;
    }
    if (threadIdx.x == 0) s.id = 0;
    row.blocks.Sync();
    return fits ? all : -1;
  }
  // s.cut = the gathered id with which the sum, or the count, of the greatest reaches `rest`. Returns whether there is
  // one. Synchronizes the block.
  __device__ bool FindLast(bool by_count, Sum rest, int candidates) const {
    const unsigned mask = by_count ? 0 : kAll, one = by_count ? 1 : 0;
    const auto amount = [&](Sum key) { return Sum{(HeldOf(key) & mask) | one}; };
    int sharers = 1;  // threads of a candidate
    while (sharers < kWarp && 2 * sharers * candidates <= kDrawThreads) sharers *= 2;
    for (int i = static_cast<int>(threadIdx.x) / sharers; i < (candidates + kWarp - 1) / kWarp * kWarp;
         i += kDrawThreads / sharers) {
      const Sum key = i < candidates ? s.fine.gathered[i] : ~Sum{0};
      Sum through = 0;
      for (int j = static_cast<int>(threadIdx.x) % sharers; j < candidates; j += sharers) {
        const Sum other = s.fine.gathered[j];
        if (other >= key) through += amount(other);
      }
      for (int offset = 1; offset < sharers; offset *= 2) through += __shfl_xor_sync(kAll, through, offset);
      if (i < candidates && rest <= through && through - amount(key) < rest) {
        s.cut = {HeldOf(key), IdOf(key), 0};
        s.id = 1;
      }
    }
    __syncthreads();
    return s.id != 0;
  }

  // Adds the ids that weigh `least` to `greatest`, or those weights, to the exact bins.
  __device__ void FillBins(bool by_count, unsigned least, unsigned greatest, int shift, int bias) const {
    row.ForOwn([&](int i) {
      unsigned weights[kBatch], before[kBatch], amount[kBatch];
      int bin[kBatch];
      bool counts[kBatch];
      row.Load(i, weights);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        counts[j] = weights[j] - least <= greatest - least;
        amount[j] = by_count ? 1 : weights[j] == kMaxWeight ? 0 : weights[j];
        bin[j] = max(static_cast<int>(FloatBits(weights[j]) >> shift) - bias, 0);
        if (counts[j]) before[j] = atomicAdd(&s.exact.low[bin[j]], amount[j]);
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (counts[j] && (amount[j] == 0 || before[j] > ~amount[j])) atomicAdd(&s.exact.high[bin[j]], 1u);
      }
    });
  }
  // The cut that keeps the `top_k` heaviest ids, or, if that is 0, the fewest whose weights reach `top_p` of what
  // `outer` keeps.
  __device__ Cut FindCut(int top_k, float top_p, const Cut& outer) {
    const bool by_count = top_k > 0;
    unsigned least = outer.weight, greatest = kMaxWeight;
    Found found = {};
    for (int shift = kFirstShift, bias = kFirstBias; shift >= 0; shift -= kDigit) {
      row.blocks.Sync();  // the other blocks have read the bins
      for (int i = threadIdx.x; i < kBins; i += kDrawThreads) s.exact.low[i] = s.exact.high[i] = 0;
      __syncthreads();
      FillBins(by_count, least, greatest, shift, bias);
      row.blocks.Sync();
      found =
          FindBin<kBins>([](const Shared& of, int bin) { return Sum{of.exact.high[bin]} << 32 | of.exact.low[bin]; },
                         [&](Sum total) {
                           if (shift < kFirstShift) return found.rest;
                           return by_count ? Sum(top_k) : max(Sum{TopPThreshold(top_p, total - outer.dropped)}, Sum{1});
                         });
      if (found.bin < 0) return outer;  // fewer ids have a weight at all
      const unsigned bits = static_cast<unsigned>(bias + found.bin) << shift;
      greatest = Scale::Held(bits + (1u << shift) - 1);
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
    const auto is_equal = [&](int, unsigned held_weight) -> Sum { return held_weight == least; };
    row.Locate(row.SumAll(row.SumOwn(is_equal)), kept - 1, is_equal, [&](int id) {
      for (int i = 0; i < row.blocks.count(); ++i) row.blocks.SharedOf(s, i).id = id;
    });
    row.blocks.Sync();
    cut.last_id = s.id;
    return cut;
  }
};

template <bool kHeld, bool kCluster>
__global__ void __launch_bounds__(kDrawThreads, 2)
    DrawKernel(const float* __restrict__ logits, int64_t ld, const Draw* __restrict__ draws, int vocab, int ids_a_block,
               int32_t* __restrict__ ids, int32_t* __restrict__ last) {
  if constexpr (kCanRun<kCluster>) {
    extern __shared__ __align__(16) unsigned char memory[];
    AwaitPrevious();
    const Blocks<kCluster> blocks;
    const int index = static_cast<int>(blockIdx.x) / blocks.count(), first = blocks.rank() * ids_a_block;
    Shared& s = *reinterpret_cast<Shared*>(memory);
    using Row = RowWeights<kHeld, kCluster>;
    Row row(s, reinterpret_cast<unsigned*>(memory + sizeof(Shared)), logits + index * ld + first, first,
            max(min(ids_a_block, vocab - first), 0));
    CutFinder<Row> finder = {s, row};
    const Draw draw = draws[index];
    row.Start([&] { finder.Clear(); });
    const float max = row.Max();
    const float max_scaled = draw.temperature > 0 ? max / draw.temperature : 0.0f;
    if (max == -INFINITY || !(draw.temperature > 0) || !isfinite(max_scaled)) {
      const int id = max == -INFINITY ? -1 : row.IdOfLogit(max);
      if (blocks.rank() == 0 && threadIdx.x == 0) ids[index] = last[draw.slot] = id;
      return;
    }
    row.SetScale(draw.temperature, max_scaled);
    const bool top_k = draw.top_k > 0 && draw.top_k < vocab, top_p = draw.top_p < 1.0f;
    Cut cut;
    const auto amount = [&](int id, unsigned weight) { return cut.Keeps(weight, id) ? WeightOf(weight) : 0; };
    typename Row::Sums kept;
    bool summed = true;
    if (top_k || top_p) {
      kept = row.SumAll(finder.WeighAll(top_k));
      const Sum target = top_k ? Sum(draw.top_k) : ::max(Sum{TopPThreshold(draw.top_p, kept.total)}, Sum{1});
      summed = finder.FindCutFast(top_k, target, &cut, &kept);
      if (!summed) cut = finder.FindCut(top_k ? draw.top_k : 0, draw.top_p, cut);
      if (top_k && top_p) {
        cut = finder.FindCut(0, draw.top_p, cut);
        summed = false;
      }
    } else {
      kept = row.SumAll(row.WeighAll([](unsigned) {}));
    }
    const unsigned least = static_cast<unsigned>(::min(MinPThreshold(draw.min_p), uint64_t{kMaxWeight}));
    if (least > cut.weight) {
      cut = Cut();
      cut.weight = least;
      summed = false;
    }
    if (!summed) kept = row.SumAll(row.SumOwn(amount));
    row.Locate(kept, ScaleRandom(DrawBits(draw.seed, draw.position), kept.total), amount,
               [&](int id) { ids[index] = last[draw.slot] = id; });
  }
}

}  // namespace

void DrawIds(const float* logits, int64_t ld, const Draw* draws, int rows, int vocab, int32_t* ids, int32_t* last,
             cudaStream_t stream) {
  if (rows == 0) return;
  static const bool raised = (RaiseSharedMemory(DrawKernel<true, true>, DrawKernel<true, false>), true);
  static_cast<void>(raised);
  RowLaunch launch = LaunchOf(rows, vocab, sizeof(Shared) + kStep * sizeof(float));
  launch.ids_a_block = RoundUp(launch.ids_a_block);
  launch.threads = kDrawThreads;
  const auto kernel = launch.blocks > 1 ? (launch.held ? DrawKernel<true, true> : DrawKernel<false, true>)
                                        : (launch.held ? DrawKernel<true, false> : DrawKernel<false, false>);
  LaunchRows(launch, stream, "launching the sampler", kernel, logits, ld, draws, vocab, launch.ids_a_block, ids, last);
}

}  // namespace smt::cuda
