// What top_k or top_p keeps, in two passes. While the ids are weighed their weights, rounded, are added to fine bins,
// which tell in what bin the last kept id lies. The next pass sums what is above that bin, exactly, and lists the few
// ids in it, among which the last kept one is found - or proved not to be, or the list is too short, or the bins (what
// ids of tiny weights hardly ever decide is not in them): then the cut is left to exact_cut.cuh.
//
// Blocks wait for each other's numbers three times. One warp looks at them, the others wait for it: there are two
// blocks a multiprocessor, and the other has work for it.
#pragma once

#include "model/cuda/cut.cuh"

namespace smt::cuda {

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

template <typename Row>
struct FastCut {
  CutShared& s;
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

  // Weighs the ids and finds the cut that keeps the `top_k` heaviest of them, or, if that is 0, the fewest whose
  // weights reach `top_p` of all, by the fine bins; `kept` are the sums of what it keeps. False: not so.
  __device__ bool Find(int top_k, float top_p, Cut* cut, typename Row::Shown** kept) {
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
      __syncwarp();  // s.found has been read
      if (lane < 0 && Lane() == 0) s.found.bin = -1;
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
};

}  // namespace smt::cuda
