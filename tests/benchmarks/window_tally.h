// What streams of turns gave within a window of time, as their reader sees it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace smt::bench {

// Times are Seconds(). A stream is added to by one thread at a time, different ones at the same time; `Open` and
// `all_began` may be called meanwhile, `Sum` when no one adds any more.
class WindowTally {
 public:
  struct Figures {
    double tokens_per_s = 0;
    double tokens_a_message = 0;
    // Seconds between a turn's successive messages with tokens, the second of them within the window; 0: there were
    // none.
    double gap_p50 = 0, gap_p99 = 0;
    // Seconds from a turn's call to its first token, where that came within the window.
    double first_token_p50 = 0, first_token_p99 = 0;
    int64_t turns = 0;  // whose first token came within the window
  };

  explicit WindowTally(int streams) : streams_(static_cast<size_t>(streams)) {}

  // What comes from `begin` on and before `end` counts, before this call nothing does. Once.
  void Open(double begin, double end);
  void TurnBegins(int stream, double time);
  void Arrives(int stream, int64_t tokens, double time);
  bool all_began() const { return began_.load() == static_cast<int>(streams_.size()); }  // each has had a token
  Figures Sum() const;

 private:
  struct Stream {
    bool began = false;         // ever
    double call = 0, last = 0;  // of the present turn; last: 0 before its first token
    int64_t tokens = 0, messages = 0;
    std::vector<float> gaps, first_tokens;
  };

  std::atomic<double> begin_{std::numeric_limits<double>::infinity()};
  std::atomic<double> end_{-std::numeric_limits<double>::infinity()};
  std::atomic<int> began_{0};
  std::vector<Stream> streams_;
};

}  // namespace smt::bench
