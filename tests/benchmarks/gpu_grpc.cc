// grpc_over_engine: what is left of the engine's rate when it comes through a server.
#include "tests/benchmarks/gpu_executor.h"
#include "tests/benchmarks/gpu_lines.h"
#include "tests/benchmarks/server_bench.h"

namespace smt::bench {

using nlohmann::json;

json GrpcOverEngineLine(const GpuBenchOptions& options) {
  const ModelBenchOptions both = {
      .model_dir = options.model_dir, .device = options.device, .dtype = options.dtype, .rounds = options.rounds};
  const StreamLoad load = {
      .streams = options.Scale(256, 8), .tokens = options.Scale(512, 64), .temperature = 0.8f, .top_p = 0.95f};
  return {{std::to_string(load.streams), FiguresOf(load.streams, [&] { return ServerOverEngine(both, load); })}};
}

}  // namespace smt::bench
