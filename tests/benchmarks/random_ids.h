// A text's worth of ids that every side of a comparison uses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace smt::bench {

inline std::vector<int32_t> Ids(int64_t vocabulary, int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(vocabulary));
  return ids;
}

}  // namespace smt::bench
