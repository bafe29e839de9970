// What one request's penalties and min_tokens depend on: how often it drew each id, and which ids came shortly before
// it. A function of the log, so it is never stored. Not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "model/sampling/sampling_params.h"

namespace smt {

class PenaltyState {
 public:
  struct Entry {
    int32_t id = 0;
    int32_t generated = 0;  // times drawn by this request; 0: only in `prior`
  };

  // Begins a request: `prior` are the last <= m ids before generation, `generated` those already drawn by it. Without a
  // penalty in `params` ids are not tracked, only counted.
  void Bind(const SamplingParams& params, std::span<const int32_t> prior, std::span<const int32_t> generated);
  // An id was drawn.
  void Add(int32_t id);

  int64_t generated_total() const { return generated_total_; }
  std::span<const Entry> entries() const { return entries_; }  // each id once; empty without penalties

 private:
  Entry& Find(int32_t id);

  bool tracking_ = false;
  int64_t generated_total_ = 0;
  std::vector<Entry> entries_;
  absl::flat_hash_map<int32_t, int32_t> index_;  // id -> entries_
};

}  // namespace smt
