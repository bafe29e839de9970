#include "tests/benchmarks/stream_load.h"

#include <algorithm>
#include <limits>

#include "tests/benchmarks/random_ids.h"

namespace smt::bench {

std::vector<int32_t> PromptOf(int vocabulary, int index) {
  return Ids(vocabulary, 64 + index % 64, static_cast<uint32_t>(index));
}

void StreamTally::Add(int stream, int64_t tokens, double time) {
  arrivals_[static_cast<size_t>(stream)].push_back({time, tokens});
}

// What came at `begin` belongs to the time before it.
double StreamTally::RateWithin(double begin, double end) const {
  int64_t tokens = 0;
  for (const auto& stream : arrivals_) {
    for (const Arrival& arrival : stream) {
      if (arrival.time > begin && arrival.time <= end) tokens += arrival.tokens;
    }
  }
  return static_cast<double>(tokens) / (end - begin);
}

double StreamTally::Rate() const {
  double first = std::numeric_limits<double>::infinity(), last = 0;  // of all tokens
  double all_began = 0, one_ended = std::numeric_limits<double>::infinity();
  for (const auto& stream : arrivals_) {
    if (stream.empty()) return 0;
    first = std::min(first, stream.front().time);
    last = std::max(last, stream.back().time);
    all_began = std::max(all_began, stream.front().time);
    one_ended = std::min(one_ended, stream.back().time);
  }
  const bool together = one_ended - all_began > 0.25 * (last - first);
  return together ? RateWithin(all_began, one_ended) : RateWithin(first, last);
}

}  // namespace smt::bench
