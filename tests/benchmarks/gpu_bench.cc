#include "tests/benchmarks/gpu_bench.h"

#include <algorithm>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/base/status_macros.h"
#include "tests/benchmarks/baseline.h"
#include "tests/benchmarks/bench_util.h"
#include "tests/benchmarks/gpu_lines.h"

namespace smt::bench {

using nlohmann::json;

namespace {

struct Line {
  const char* name;
  json (*measure)(const GpuBenchOptions&);
};

constexpr Line kLines[] = {
    {"machine", &MachineLine},
    {"hop_whole", &HopWholeLine},
    {"random_phases", &RandomPhasesLine},
    {"slide", &SlideLine},
    {"mamba_step", &MambaStepLine},
    {"ingest", &IngestLine},
    {"ingest_tokens", &IngestTokensLine},
    {"save_restore", &SaveRestoreLine},
    {"resident", &ResidentLine},
    {"late_over_early", &LateOverEarlyLine},
    {"equality", &EqualityLine},
    {"determinism_price", &DeterminismPriceLine},
    {"grpc_over_engine", &GrpcOverEngineLine},
};

}  // namespace

std::vector<std::string> GpuLineNames() {
  std::vector<std::string> names;
  for (const Line& line : kLines) names.emplace_back(line.name);
  return names;
}

absl::StatusOr<json> GpuFigures(const GpuBenchOptions& options) {
  const std::vector<std::string> names = GpuLineNames();
  for (const std::string& line : options.lines) {
    if (std::find(names.begin(), names.end(), line) != names.end()) continue;
    return absl::InvalidArgumentError(absl::StrCat("--lines is \"", line, "\"; allowed: ", absl::StrJoin(names, ", ")));
  }
  json baseline = json::object();
  if (!options.baseline.empty()) {
    ASSIGN_OR_RETURN(baseline, ReadBaseline(options.baseline));
  }
  json figures = json::object();
  for (const Line& line : kLines) {
    const auto& asked = options.lines;
    if (!asked.empty() && std::find(asked.begin(), asked.end(), line.name) == asked.end()) continue;
    std::cerr << line.name << " …\n";
    const double start = Seconds();
    json batches = line.measure(options);
    std::cerr << "  (" << std::fixed << std::setprecision(1) << Seconds() - start << " s)\n";
    if (batches.is_null()) continue;
    figures[line.name] = std::move(batches);
    Compare(baseline, &figures);
    if (!options.out.empty()) std::ofstream(options.out) << figures.dump(1) << "\n";
  }
  return figures;
}

}  // namespace smt::bench
