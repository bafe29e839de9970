#include "model/parameter_statistics.h"

#include <map>

namespace smt {

int64_t ParameterStatistics::total() const {
  int64_t sum = 0;
  for (const auto& [part, count] : by_part) sum += count;
  return sum;
}

int64_t ParameterStatistics::of(ModelPart part) const {
  for (const auto& [known, count] : by_part) {
    if (known == part) return count;
  }
  return 0;
}

ParameterStatistics CountParameters(const StrideHybridConfig& config) {
  std::map<ModelPart, int64_t> counts;
  ParameterStatistics statistics;
  for (const TensorSpec& spec : ExpectedTensors(config)) {
    counts[spec.part] += spec.numel();
    ++statistics.tensors;
  }
  statistics.by_part.assign(counts.begin(), counts.end());
  return statistics;
}

}  // namespace smt
