// Benchmarks of the whole server: a real process, gRPC over loopback, a client in this process.
#pragma once

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "tests/benchmarks/model_bench.h"
#include "tests/benchmarks/stream_load.h"

namespace smt::bench {

// Server tokens/s through gRPC over the engine alone under the same load. `options` are of both.
absl::StatusOr<nlohmann::json> ServerOverEngine(const ModelBenchOptions& options, const StreamLoad& load);
// Seconds from the call to the first token for sessions that were parked when the server was killed and started again.
nlohmann::json ContinueAfterRestart(const ModelBenchOptions& options, int sessions, int prompt_tokens);

}  // namespace smt::bench
