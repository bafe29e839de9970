// What top_k and top_p keep, by exact histograms: over the leading bits of the weights, then over the next bits of
// those in the one bin that matters, until the weight of the last kept id is known.
#pragma once

#include "model/cuda/cut.cuh"

namespace smt::cuda {

template <typename Row>
struct ExactCut {
  CutShared& s;
  Row& row;

  // Finds, from the highest bin down, where the amounts reach target_of(their sum), which is at least 1. `amount_of` a
  // block's bin. The blocks are synchronized before, the block afterwards.
  template <int kCount, typename AmountOf, typename TargetOf>
  __device__ Found FindBin(AmountOf amount_of, TargetOf target_of) {
    constexpr int kOwn = (kCount + kDrawThreads - 1) / kDrawThreads;
    const int highest_bin = kCount - 1 - static_cast<int>(threadIdx.x) * kOwn;
    Sum amounts[kOwn] = {}, own = 0;
    if (threadIdx.x == 0) s.found.bin = -1;
    for (int i = 0; i < row.blocks.count(); ++i) {
      const CutShared& other = row.blocks.SharedOf(s, i);
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
  __device__ Cut Find(int top_k, float top_p, const Cut& outer) {
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
          FindBin<kBins>([](const CutShared& of, int bin) { return Sum{of.exact.high[bin]} << 32 | of.exact.low[bin]; },
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

}  // namespace smt::cuda
