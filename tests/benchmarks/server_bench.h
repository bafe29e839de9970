// Benchmarks of the whole server: a real process, gRPC over loopback, a client in this process.
#pragma once

#include "nlohmann/json.hpp"
#include "tests/benchmarks/model_bench.h"

namespace smt::bench {

// Server tokens/s through gRPC over the engine alone, `streams` at once.
nlohmann::json ServerOverEngine(const ModelBenchOptions& options, int streams, int tokens);
// Seconds from the call to the first token for sessions that were parked when the server was killed and started again.
nlohmann::json ContinueAfterRestart(const ModelBenchOptions& options, int sessions, int prompt_tokens);

}  // namespace smt::bench
