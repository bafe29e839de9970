// Which of a row's ids are kept, and the memory in which kernels that draw find that (fast_cut.cuh, exact_cut.cuh).
#pragma once

#include "model/cuda/row_weights.cuh"

namespace smt::cuda {

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

struct alignas(16) CutShared : RowShared {  // the held ids follow
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
// Beside half of 50,257 ids twice on a multiprocessor.
static_assert(sizeof(CutShared) <= 14600);

}  // namespace smt::cuda
