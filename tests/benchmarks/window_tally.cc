#include "tests/benchmarks/window_tally.h"

#include <algorithm>
#include <utility>

namespace smt::bench {
namespace {

double Quantile(std::vector<float>& values, double q) {
  if (values.empty()) return 0;
  const auto at = static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[static_cast<size_t>(at)];
}

}  // namespace

void WindowTally::Open(double begin, double end) {
  end_ = end;
  begin_ = begin;
}

void WindowTally::TurnBegins(int stream, double time) {
  Stream& s = streams_[static_cast<size_t>(stream)];
  s.call = time;
  s.last = 0;
}

void WindowTally::Arrives(int stream, int64_t tokens, double time) {
  if (tokens == 0) return;  // the rest of a text
  Stream& s = streams_[static_cast<size_t>(stream)];
  if (!std::exchange(s.began, true)) ++began_;
  const double last = std::exchange(s.last, time);
  if (time < begin_ || time >= end_) return;
  s.tokens += tokens;
  ++s.messages;
  if (last == 0) {
    s.first_tokens.push_back(static_cast<float>(time - s.call));
  } else {
    s.gaps.push_back(static_cast<float>(time - last));
  }
}

WindowTally::Figures WindowTally::Sum() const {
  Figures sum;
  int64_t tokens = 0, messages = 0;
  std::vector<float> gaps, first_tokens;
  for (const Stream& s : streams_) {
    tokens += s.tokens;
    messages += s.messages;
    gaps.insert(gaps.end(), s.gaps.begin(), s.gaps.end());
    first_tokens.insert(first_tokens.end(), s.first_tokens.begin(), s.first_tokens.end());
  }
  sum.tokens_per_s = static_cast<double>(tokens) / (end_ - begin_);
  sum.tokens_a_message = messages == 0 ? 0 : static_cast<double>(tokens) / static_cast<double>(messages);
  sum.gap_p50 = Quantile(gaps, 0.5);
  sum.gap_p99 = Quantile(gaps, 0.99);
  sum.first_token_p50 = Quantile(first_tokens, 0.5);
  sum.first_token_p99 = Quantile(first_tokens, 0.99);
  sum.turns = static_cast<int64_t>(first_tokens.size());
  return sum;
}

}  // namespace smt::bench
