#include "tests/benchmarks/baseline.h"

#include <fstream>
#include <string_view>

namespace smt::bench {

using nlohmann::json;

namespace {

json Ratios(const json& theirs, const json& ours) {
  json ratios = json::object();
  for (const auto& [name, value] : theirs.items()) {
    const bool rate = name.ends_with("tok_s");
    if (!value.is_number() || (!rate && !name.ends_with("_ms"))) continue;
    const char* const own = rate ? "tok_s" : ours.contains("ms") ? "ms" : "token_ms";
    if (!ours.contains(own)) continue;
    const double a = ours[own].get<double>(), b = value.get<double>();
    ratios["speed_over_" + name] = rate ? a / b : b / a;
  }
  return ratios;
}

}  // namespace

void Compare(const json& baseline, json* figures) {
  for (auto& [line, batches] : figures->items()) {
    if (!baseline.contains(line)) continue;
    for (auto& [batch, ours] : batches.items()) {
      if (baseline[line].contains(batch)) ours.update(Ratios(baseline[line][batch], ours));
    }
  }
}

absl::StatusOr<json> ReadBaseline(const std::string& file) {
  json baseline = json::parse(std::ifstream(file), nullptr, /*allow_exceptions=*/false);
  if (!baseline.is_object()) return absl::InvalidArgumentError("--baseline: " + file + " is not a JSON object");
  return baseline;
}

}  // namespace smt::bench
