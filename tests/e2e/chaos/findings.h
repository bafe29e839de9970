// What a run has done and what it has found: counters, and failures with their details. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "nlohmann/json.hpp"

namespace smt::testing {

// In the order of the summary.
// clang-format off
#define SMT_CHAOS_COUNTS(X) \
  X(kills) X(crash_points) X(power_cuts) X(terms) X(freezes) X(drops) X(silences) X(delays) \
  X(full_disks) X(streams) X(sessions) X(tokens) X(resumed) X(replayed) X(vanished) X(taken_over) \
  X(rewound) X(cancelled) X(updated) X(deleted) X(branched) X(provisional) X(retries) X(lost) \
  X(doubled) X(diverged) X(errors)
// clang-format on

class Findings {
 public:
#define SMT_CHAOS_COUNT(name) std::atomic<int64_t> name{0};
  SMT_CHAOS_COUNTS(SMT_CHAOS_COUNT)
#undef SMT_CHAOS_COUNT

  // Counts a failure (`count` is lost, doubled, diverged or errors) and prints it at once.
  void Fail(std::atomic<int64_t>& count, const std::string& what, int64_t n = 1);
  // Something worth knowing that is no failure: counted by its text.
  void Note(const std::string& what);
  int64_t failures() const { return lost + doubled + diverged + errors; }
  // Those that this thread has found.
  static int64_t Own() { return own_; }
  absl::Duration elapsed() const { return absl::Now() - begin_; }
  void Say(const std::string& text) const;

  nlohmann::ordered_json Summary() const;

 private:
  static thread_local int64_t own_;
  const absl::Time begin_ = absl::Now();
  mutable absl::Mutex mu_;
  std::map<std::string, int64_t> notes_ ABSL_GUARDED_BY(mu_);
};

}  // namespace smt::testing
