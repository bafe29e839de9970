// Philox4x32-10: a counter-based random number generator. Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy
// as 1, 2, 3" (SC 2011). A pure function of key and counter; usable from CUDA.
#pragma once

#include "model/sampling/exp_weight.h"

namespace smt {

struct PhiloxBlock {
  uint32_t word[4];
};

SMT_HOST_DEVICE inline PhiloxBlock Philox4x32(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * counter.word[0];
    const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The 64 random bits of the draw at `position` (1-based position that the drawn id takes in its session).
SMT_HOST_DEVICE inline uint64_t DrawBits(uint64_t seed, int64_t position) {
  const uint64_t at = static_cast<uint64_t>(position);
  const PhiloxBlock block = Philox4x32({{static_cast<uint32_t>(at), static_cast<uint32_t>(at >> 32), 0, 0}},
                                       static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return static_cast<uint64_t>(block.word[1]) << 32 | block.word[0];
}

}  // namespace smt
