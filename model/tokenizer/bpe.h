// Byte-pair merging of one piece.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace smt {

struct MergeRule {
  int32_t left = 0;
  int32_t right = 0;
  int32_t result = 0;  // the token whose bytes are left's, then right's
};

// Immutable; const use is thread-safe.
class BpeMerges {
 public:
  // Earlier rules come first. No two rules may have the same left and right.
  explicit BpeMerges(std::vector<MergeRule> rules);

  // Replaces `ids`, one token a byte, by the piece's tokens: over and over, the earliest rule that applies anywhere is
  // applied to all its pairs, left to right. O(n log n). At most 2^32 - 2 ids.
  void Merge(std::vector<int32_t>* ids) const;

  // The two ways of Merge, with the same result: O(n²) with little overhead, and O(n log n).
  void MergeShort(std::vector<int32_t>* ids) const;
  void MergeLong(std::vector<int32_t>* ids) const;

 private:
  static constexpr uint32_t kNoRule = UINT32_MAX;

  uint32_t RuleFor(int32_t left, int32_t right) const;  // index, or kNoRule

  std::vector<MergeRule> rules_;
  absl::flat_hash_map<uint64_t, uint32_t> rule_of_pair_;  // left << 32 | right
};

}  // namespace smt
