// Streams that an engine and a server are loaded with alike, and the rate that came of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/benchmarks/bench_util.h"

namespace smt::bench {

struct StreamLoad {
  int streams = 1;   // at once
  int tokens = 100;  // drawn by each
  float temperature = 0;
  float top_p = 1;
  std::string session_prefix = {};  // of each stream's session, made when it is not there; empty: none
  std::string request_id = {};      // of each, with a session
  int durability = 0;               // v1::Durability, with a session
};

// Of stream `index`: lengths differ, so phases are spread over any stride up to 64.
std::vector<int32_t> PromptOf(int vocabulary, int index);

// When tokens came. Different streams may be added to by different threads at the same time.
class StreamTally {
 public:
  explicit StreamTally(int streams) : arrivals_(static_cast<size_t>(streams)) {}
  void Add(int stream, int64_t tokens, double time = Seconds());

  // tokens/s from the moment that all streams had begun until the first one's end; where streams were too short for
  // that, from the first token to the last. Call when no one adds any more.
  double Rate() const;

 private:
  struct Arrival {
    double time = 0;  // seconds
    int64_t tokens = 0;
  };
  double RateWithin(double begin, double end) const;
  std::vector<std::vector<Arrival>> arrivals_;  // by stream, in order
};

}  // namespace smt::bench
