// machine: what the figures were measured on.
#include "tests/benchmarks/gpu_executor.h"
#include "tests/benchmarks/gpu_lines.h"

namespace smt::bench {

using nlohmann::json;

json MachineLine(const GpuBenchOptions& options) {
  return OverBatches(
      GpuRunner(options, 1), {1}, [](int) { return 1; },
      [&](Executor& executor, int) -> absl::StatusOr<json> {
        const ExecutorInfo& info = executor.info();
        return json{{"device", info.device},
                    {"dtype", info.dtype},
                    {"numerics_id", info.numerics_id},
                    {"deterministic", info.deterministic},
                    {"max_in_flight", info.max_in_flight},
                    {"total_bytes", info.capacity.total_bytes},
                    {"free_bytes", info.capacity.free_bytes},
                    {"work_bytes", info.capacity.work_bytes},
                    {"state_bytes", info.state_bytes},
                    {"slot_bytes", info.slot_bytes},
                    {"capacity_slots", info.capacity.fits()}};
      });
}

}  // namespace smt::bench
