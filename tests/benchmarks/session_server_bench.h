// Benchmarks of what sessions cost: a real server process, gRPC over loopback, a client in this process; for `restore`
// a session manager and an executor in this process.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace smt::bench {

struct SessionBenchOptions {
  std::string model_dir = "models/books-6m";
  std::string device = "cpu";
  std::string dtype = "auto";
  std::string dir;                           // of the stores; empty: a temporary one; without an earlier run's
  std::string store_url;                     // of a Redis: instead, for `fork`; besides, for `restore`
  int streams = 64;                          // at once, for `durability`, `recovery` and `drain`
  int tokens = 128;                          // of a turn
  int step_us = -1;                          // >= 0: no model, but steps of so many microseconds, for `durability`
  int64_t state_bytes = 4096;                // of a session of such a server; at least eight
  int rounds = 5;                            // the median counts
  double seconds = 3;                        // that each durability is measured in each round of `durability`
  double warm_up_s = 1;                      // before that
  std::vector<int> lengths = {1000, 30000};  // ids of the sessions that are forked and restored
  bool quick = false;                        // whether it works, not what it gives
};

// Tokens/s of streams that do turn after turn, each on a session of its own, with NONE, TURN and TOKEN one after the
// other in each round, in another order each time. Ratios are medians of the rounds' own, since what else the machine
// does changes more between rounds than within one; `*_range` are the least and the greatest of them. `intervals` are
// what was measured, in the order of time (durability_bench.cc). Each kind has slots of its own, so that no state is
// moved.
absl::StatusOr<nlohmann::json> DurabilityFigures(const SessionBenchOptions& options);
// Milliseconds until a parked session's state is in its slot again, from the host's memory, from RocksDB and, where one
// is named, from a Redis, for sessions of each length.
absl::StatusOr<nlohmann::json> RestoreFigures(const SessionBenchOptions& options);
// Milliseconds of ForkSession and RollbackSession, for sessions of each length.
absl::StatusOr<nlohmann::json> ForkFigures(const SessionBenchOptions& options);
// Seconds from SIGKILL amid `streams` streams to the first token that a resumed one gets, the server's start included.
absl::StatusOr<nlohmann::json> RecoveryFigures(const SessionBenchOptions& options);
// Seconds from SIGTERM amid `streams` streams to the end of the server, all of them parked where they had come.
absl::StatusOr<nlohmann::json> DrainFigures(const SessionBenchOptions& options);

}  // namespace smt::bench
