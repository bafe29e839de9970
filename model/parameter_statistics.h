// How many parameters each part of a model has, from its shapes alone.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "model/config.h"
#include "model/tensor_names.h"

namespace smt {

struct ParameterStatistics {
  std::vector<std::pair<ModelPart, int64_t>> by_part;  // in ModelPart's order, parts without parameters left out
  int64_t tensors = 0;

  int64_t total() const;
  int64_t of(ModelPart part) const;  // 0 if it has none
};

// `config` must be valid.
ParameterStatistics CountParameters(const StrideHybridConfig& config);

}  // namespace smt
