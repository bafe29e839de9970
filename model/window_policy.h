// Which tokens a window holds, as integers: positions are 1-based, t is the newest token's.
#pragma once

#include <algorithm>
#include <cstdint>

#include "model/config.h"

namespace smt {

struct TokenRange {
  int64_t first = 1;  // position of the oldest token
  int64_t count = 0;  // tokens; the newest is at first + count - 1
};

inline bool WritesAt(const StrideHybridConfig& c, int64_t t) { return t > 0 && t % c.stride == 0; }
inline int64_t LastWriteAt(const StrideHybridConfig& c, int64_t t) { return t / c.stride * c.stride; }  // 0: none yet

// What a write at t pools over, under both policies; also what slide's window holds at t.
inline TokenRange LastTokens(const StrideHybridConfig& c, int64_t t) {
  const int64_t count = std::min(t, c.m_input_tokens);
  return {t - count + 1, count};
}

// What hop's window holds right after the write at `write`: the columns of a refill. Nothing before the first write.
inline TokenRange RefillTokens(const StrideHybridConfig& c, int64_t write) {
  const int64_t count = std::min(write, c.m_input_tokens - c.stride);
  return {write - count + 1, count};
}

// What the window holds when the logits after t are computed (a write at t included).
inline TokenRange LogitsTokens(const StrideHybridConfig& c, WindowPolicy policy, int64_t t) {
  if (policy == WindowPolicy::kSlide) return LastTokens(c, t);
  const TokenRange refill = RefillTokens(c, LastWriteAt(c, t));
  return {refill.first, t - refill.first + 1};
}

}  // namespace smt
