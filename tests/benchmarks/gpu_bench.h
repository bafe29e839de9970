// `smt_bench gpu`: what one GPU does with a model, used as the server uses it.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "tests/benchmarks/gpu_options.h"

namespace smt::bench {

// Names of the lines, in the order of their measuring.
std::vector<std::string> GpuLineNames();
// {line: {batch: {figure: value}}} of the lines asked for (gpu_lines.h says what they are); with a baseline also the
// ratios of baseline.h. What cannot be measured is in there as skipped, with the reason. INVALID_ARGUMENT for an
// unknown line or a baseline that is not one. Progress goes to stderr.
absl::StatusOr<nlohmann::json> GpuFigures(const GpuBenchOptions& options);

}  // namespace smt::bench
