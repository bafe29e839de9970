// A server's sustained load: streams that do turn after turn on a session each, out of phase with each other.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "smt/v1/generation_service.grpc.pb.h"
#include "tests/benchmarks/window_tally.h"

namespace smt::bench {

struct TurnLoad {
  int streams = 1;   // at once, each on a session of its own
  int tokens = 128;  // that a turn draws; its prompt has 8 to 23
  int vocabulary = 0;
  float temperature = 0;
  float top_p = 1;
  std::string session_prefix;  // of each stream's session, made when it is not there
  std::string request_prefix;  // of each turn's request_id: no two intervals of a server may have the same
  int durability = 0;          // v1::Durability
  double warm_up_s = 1;        // before the window, and at least until every stream has had a token
  double seconds = 3;          // of the window
};

struct TurnInterval {
  WindowTally::Figures figures;
  double client_cores = 0, server_cores = 0;  // CPU seconds a second of the window, this process's and the server's
};

// Runs the load over `stubs` (streams are dealt out to them) and ends it with each stream's turn. Each stream's first
// turn is shorter, by a part that is its own, and so streams end their turns one after the other from the beginning.
// `server_pid`: whose CPU time is told. UNAVAILABLE with what a turn that failed was told.
absl::StatusOr<TurnInterval> RunTurns(const std::vector<std::unique_ptr<v1::GenerationService::Stub>>& stubs,
                                      const TurnLoad& load, int server_pid);

}  // namespace smt::bench
