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
constexpr int kOctaves = 32 - kFineLeast + 1;  // 2^32 has one of its own
constexpr int kFineBins = kOctaves * kFineAnOctave;
static_assert(kFineAnOctave == 2 * kWarp && kOctaves <= kWarp && kFineAnOctave * kMaxBlocks <= kDrawThreads);
// Ids of one fine bin, in equal parts those of each block. They are told apart by 7 bits more.
constexpr int kListed = 832, kListedEach = (kListed + kDrawThreads - 1) / kDrawThreads;
constexpr int kPartShift = 10, kParts = 1 << (kFineShift - kPartShift), kShort = 64;
static_assert(kParts == 4 * kWarp);

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
        Sum list[kListed];  // keys
      };
      union {
        struct {  // of all blocks, by rank
          float octaves[kMaxBlocks][kOctaves];
          unsigned octave[kMaxBlocks][kFineAnOctave];  // bins of one
        };
        struct {
          unsigned low[kParts], high[kParts];  // sums of 16 bits each
          Sum keys[kShort];
          int key_count;
        } part;
      };
    } fine;
  };
  Sum scan[kDrawWarps];
  Found found;
  Cut cut;
  Sum target, dropped;
  uint64_t random;
  float guess;
  int octave, id;
  unsigned listed, listed_of[kMaxBlocks];
  unsigned aside[kWarp];  // for what no fine bin takes
  Box octave_came, list_came;
};

static_assert(sizeof(Shared) <= 14600);
__device__ __forceinline__ void AddShared(unsigned address, unsigned amount) {
  asm volatile("red.shared.add.u32 [%0], %1;" : : "r"(address), "r"(amount) : "memory");
}

// In shared memory; else a compiler asks for the base of the block's over and over.
__device__ __forceinline__ unsigned AddressOf(const void* place) {
  unsigned address = SharedAddress(place);
  asm volatile("" : "+r"(address));
  return address;
}
// To a sum that starts below it with its lower half.
__device__ __forceinline__ void AddSharedSum(Sum* sum, Sum amount) {
  auto* const half = reinterpret_cast<unsigned*>(sum);
  const auto low = static_cast<unsigned>(amount);
  const unsigned high = static_cast<unsigned>(amount >> 32) + (atomicAdd(half, low) > ~low);
  if (high != 0) atomicAdd(half + 1, high);
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

  // What a fine bin, or several of an octave, stand for: ids or their weights, which lost their lower bits.
  __device__ __forceinline__ static float AmountOf(Sum bin, int octave, bool by_count) {
    const auto scale = static_cast<unsigned>(127 + octave + kFineLeast + 1 - kFineBits) << 23;
    return static_cast<float>(bin) * (by_count ? 1.0f : __uint_as_float(scale));
  }
  // Of the lanes' amounts, the first lane with which they reach the target, from which the part before it is taken; -1.
  template <typename Number>
  __device__ static int FindLane(Number amount, Number* target) {
    const Number through = WarpScan(amount);
    const int lane = __ffs(static_cast<int>(__ballot_sync(kAll, through >= *target))) - 1;
    if (lane >= 0) *target -= __shfl_sync(kAll, through - amount, lane);
    return lane;
  }
  // Finds the fine bin, from the highest down, where the amounts reach the target: s.found. Synchronizes the block.
  __device__ void FindFineBin(bool by_count, int top_k, float top_p) const {
    if (Warp() == 0) {
      const Sum all = row.TotalOf(row.SeeShown(kOctaves * sizeof(float)));
      // Less what the weights lose with their lower bits.
      const float part = top_p * (1.0f - 0x1p-19f);
      float target = by_count ? static_cast<float>(top_k) : fmaxf(static_cast<float>(all) * part, 1.0f), amount = 0;
      for (int i = 0; Lane() < kOctaves && i < row.blocks.count(); ++i) {
        amount += s.fine.octaves[i][kOctaves - 1 - Lane()];
      }
      const int lane = FindLane(amount, &target);
      if (Lane() == 0) s.octave = lane < 0 ? -1 : kOctaves - 1 - lane, s.guess = target;
    } else if (Warp() == 1) {
      const Sum all = row.TotalOf(row.SeeShown(kOctaves * sizeof(float)));
      if (Lane() == 0) s.target = by_count ? Sum(top_k) : ::max(Sum{TopPThreshold(top_p, all)}, Sum{1});
    }
    __syncthreads();
    const int octave = s.octave;
    if (octave < 0) return;
    if (static_cast<int>(threadIdx.x) < row.blocks.count() * kFineAnOctave) {
      const int bin = static_cast<int>(threadIdx.x) % kFineAnOctave;
      row.blocks.Send(&s.fine.octave[row.blocks.rank()][bin], s.fine.bins[octave * kFineAnOctave + bin],
                      static_cast<int>(threadIdx.x) / kFineAnOctave, &s.octave_came);
    }
    row.blocks.SyncAlone();
    if (Warp() == 0) {
      row.blocks.Await(&s.octave_came, row.blocks.count() * kFineAnOctave * sizeof(unsigned), 0);
      Sum sums[2] = {};  // of the lane's bins, the higher first
      const int pair = kWarp - 1 - Lane();
      for (int i = 0; i < row.blocks.count(); ++i) {
        const uint2 two = reinterpret_cast<const uint2*>(s.fine.octave[i])[pair];
        sums[0] += two.y, sums[1] += two.x;
      }
      const float high = AmountOf(sums[0], octave, by_count), low = AmountOf(sums[1], octave, by_count);
      float target = s.guess;
      int lane = FindLane(high + low, &target);
      if (lane < 0) lane = kWarp - 1;  // rounding
      if (Lane() == lane) {
        const bool upper = target <= high;
        s.found = {octave * kFineAnOctave + 2 * pair + upper, static_cast<Sum>(upper ? target : target - high), 0};
      }
    }
    __syncthreads();
  }

  // Weighs the ids and finds the cut that keeps the `top_k` heaviest of them, or, if that is 0, the fewest whose weights
  // reach `top_p` of all, by the fine bins; `kept` are the sums of what it keeps. False: not so.
  __device__ bool FindCutFast(int top_k, float top_p, Cut* cut, typename Row::Shown** kept) {
    const bool by_count = top_k > 0;
    row.Show(WarpSum(WeighAll(by_count)));
    __syncthreads();
    for (int octave = Warp(); octave < kOctaves; octave += kDrawWarps) {
      const uint2 two = reinterpret_cast<const uint2*>(&s.fine.bins[octave * kFineAnOctave])[Lane()];
      const Sum sum = WarpSum(Sum{two.x} + two.y);
      if (Lane() >= row.blocks.count()) continue;
      row.blocks.Send(&s.fine.octaves[row.blocks.rank()][octave], AmountOf(sum, octave, by_count), Lane(),
                      row.ShowBox());
    }
    row.blocks.SyncAlone();
    FindFineBin(by_count, top_k, top_p);
    if (s.octave < 0) return false;
    const Found found = s.found;
    const unsigned bits = (kFineBias + static_cast<unsigned>(found.bin)) << kFineShift;
    const unsigned least = Scale::Held(bits), greatest = Scale::Held(bits + (1u << kFineShift) - 1);
    const unsigned room = kListed / row.blocks.count();  // of a block
    Sum above = greatest < kMaxWeight ? row.most : 0;
    row.ForOwn([&](int i) {
      unsigned weights[kBatch];
      row.Load(i, weights);
      bool any = false;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) any |= weights[j] - least <= greatest - least;
      above += Sum{weights[0] > greatest ? weights[0] : 0} + (weights[1] > greatest ? weights[1] : 0);
      above += Sum{weights[2] > greatest ? weights[2] : 0} + (weights[3] > greatest ? weights[3] : 0);
      if (!any) return;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (weights[j] - least > greatest - least) continue;
        const unsigned at = atomicAdd(&s.listed, 1);
        for (int to = 0; at < room && to < row.blocks.count(); ++to) {
          row.blocks.Send(&s.fine.list[row.blocks.rank() * room + at], KeyOf(weights[j], row.first + i + j), to,
                          &s.list_came);
        }
      }
    });
    row.Show(WarpSum(above));
    *kept = &row.ShownNow();
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < row.blocks.count()) {
      row.blocks.Send(&s.listed_of[row.blocks.rank()], s.listed, static_cast<int>(threadIdx.x), row.ShowBox());
    }
    row.blocks.SyncAlone();
    const bool counts = by_count || least == kMaxWeight;  // of equal weights the sum is one, too
    if (Warp() == 0) {
      const Sum above_all = row.TotalOf(row.SeeShown(sizeof(unsigned)));
      const unsigned listed = Lane() < row.blocks.count() ? s.listed_of[Lane()] : 0;
      row.blocks.Await(&s.list_came, __reduce_add_sync(kAll, min(listed, room)) * sizeof(Sum), 0);
      const bool fits = __all_sync(kAll, listed <= room) && (by_count || s.target > above_all);
      Sum rest = by_count ? found.rest : s.target - above_all;
      if (counts && !by_count) rest = (rest + kMaxWeight) >> 32;
      if (Lane() == 0) s.id = fits, s.found.rest = rest;
    } else {
      for (int i = threadIdx.x - kWarp; i < 2 * kParts; i += kDrawThreads - kWarp) s.fine.part.low[i] = 0;
      if (threadIdx.x == kWarp) s.fine.part.key_count = 0, s.dropped = 0, s.cut.weight = 0;
    }
    __syncthreads();
    if (s.id == 0) return false;
    Sum keys[kListedEach];
#pragma unroll
    for (int j = 0; j < kListedEach; ++j) {
      const unsigned at = threadIdx.x + j * kDrawThreads, from = at / room;
      keys[j] = at < kListed && at - from * room < s.listed_of[from] ? s.fine.list[at] : 0;
    }
    if (!FindLast(counts, bits, keys)) return false;
    *cut = s.cut;
    const Sum last = KeyOf(cut->weight, cut->last_id);
#pragma unroll
    for (int j = 0; j < kListedEach; ++j) {
      if (keys[j] >= last) {
        const unsigned from = (threadIdx.x + j * kDrawThreads) / room;
        AddSharedSum(&(**kept)[from][row.WarpOf(from, IdOf(keys[j]))], WeightOf(HeldOf(keys[j])));
      } else if (HeldOf(keys[j]) == cut->weight) {
        AddSharedSum(&s.dropped, WeightOf(cut->weight));
      }
    }
    __syncthreads();
    cut->dropped = s.dropped;
    return true;
  }
  // s.cut = the listed id with which the sum, or the count, of the greatest reaches s.found.rest. The thread's are
  // `keys`, of weights whose bits are `first` or more. Returns whether there is one. Synchronizes the block.
  __device__ bool FindLast(bool by_count, unsigned first, const Sum (&keys)[kListedEach]) const {
    auto& part = s.fine.part;
    const auto part_of = [&](Sum key) {
      return key == 0 ? -1 : static_cast<int>((FloatBits(HeldOf(key)) - first) >> kPartShift);
    };
    const auto amount_of = [&](Sum key) { return by_count ? 1 : HeldOf(key); };
#pragma unroll
    for (int j = 0; j < kListedEach; ++j) {
      if (keys[j] == 0) continue;
      const unsigned amount = amount_of(keys[j]);
      atomicAdd(&part.low[part_of(keys[j])], amount & 0xffffu);
      if (!by_count) atomicAdd(&part.high[part_of(keys[j])], amount >> 16);
    }
    __syncthreads();
    if (Warp() == 0) {
      const uint4 low = reinterpret_cast<const uint4*>(part.low)[kWarp - 1 - Lane()];
      const uint4 high = reinterpret_cast<const uint4*>(part.high)[kWarp - 1 - Lane()];
      const auto sum_of = [](unsigned low_sum, unsigned high_sum) { return (Sum{high_sum} << 16) + low_sum; };
      const Sum sums[] = {sum_of(low.w, high.w), sum_of(low.z, high.z), sum_of(low.y, high.y), sum_of(low.x, high.x)};
      Sum rest = s.found.rest;
      const int lane = FindLane(sums[0] + sums[1] + sums[2] + sums[3], &rest);
      if (lane < 0 && Lane() == 0) s.found.bin = -2;
      if (Lane() == lane) {
        int at = kParts - 1 - 4 * lane;
#pragma unroll
        for (int j = 0; j < 3; ++j) {
          if (at == kParts - 1 - 4 * lane - j && rest > sums[j]) rest -= sums[j], --at;
        }
        s.found = {at, rest, 0};
      }
    }
    __syncthreads();
    const Found wanted = s.found;
    if (wanted.bin < 0) return false;
#pragma unroll
    for (int j = 0; j < kListedEach; ++j) {
      if (part_of(keys[j]) != wanted.bin) continue;
      const int place = atomicAdd(&part.key_count, 1);
      if (place < kShort) part.keys[place] = keys[j];
    }
    __syncthreads();
    const int count = part.key_count;
    if (count > kShort) return false;
#pragma unroll
    for (int j = 0; j < kListedEach; ++j) {
      if (part_of(keys[j]) != wanted.bin) continue;
      Sum through = 0;
      for (int i = 0; i < count; ++i) {
        const Sum other = part.keys[i];
        if (other >= keys[j]) through += amount_of(other);
      }
      if (wanted.rest <= through && through - amount_of(keys[j]) < wanted.rest) {
        s.cut = {HeldOf(keys[j]), IdOf(keys[j]), 0};
      }
    }
    __syncthreads();
    return s.cut.weight != 0;
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
    const auto& shown = row.SumAll(row.SumOwn(is_equal));
    row.Locate(
        shown, [&](Sum) { return kept - 1; }, is_equal,
        [&](int id) {
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
    Shared& s = *reinterpret_cast<Shared*>(memory);
    using Row = RowWeights<kHeld, kCluster>;
    const Blocks<kCluster> blocks;
    const int index = static_cast<int>(blockIdx.x) / blocks.count();
    Row row(s, reinterpret_cast<unsigned*>(memory + sizeof(Shared)), logits + index * ld, vocab, ids_a_block);
    CutFinder<Row> finder = {s, row};
    row.Prepare(&s.octave_came, 2);
    finder.Clear();
    AwaitPrevious();
    row.Start();
    const Draw draw = draws[index];
    if (Warp() == kDrawWarps - 1) s.random = DrawBits(draw.seed, draw.position);
    __syncthreads();
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
    typename Row::Shown* kept = nullptr;
    if (top_k || top_p) {
      const bool found = finder.FindCutFast(top_k ? draw.top_k : 0, draw.top_p, &cut, &kept);
      if (!found) cut = finder.FindCut(top_k ? draw.top_k : 0, draw.top_p, cut);
      if (top_k && top_p) cut = finder.FindCut(0, draw.top_p, cut);
      if (!found || (top_k && top_p)) kept = nullptr;
    } else {
      kept = &row.SumAll(row.WeighAll([](unsigned) {}));
    }
    const unsigned least = static_cast<unsigned>(::min(MinPThreshold(draw.min_p), uint64_t{kMaxWeight}));
    if (least > cut.weight) {
      cut = Cut();
      cut.weight = least;
      kept = nullptr;
    }
    const auto amount = [&](int id, unsigned weight) { return cut.Keeps(weight, id) ? WeightOf(weight) : 0; };
    if (kept == nullptr) kept = &row.SumAll(row.SumOwn(amount));
    row.Locate(
        *kept, [&](Sum all) { return ScaleRandom(s.random, all); }, amount,
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
