// Where the CPU runner's weights come from: a checkpoint, or a map in tests.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace smt {

// The named tensor as float32, row-major; an error where it is missing or not of `shape`.
using WeightSource =
    std::function<absl::StatusOr<std::vector<float>>(const std::string& name, const std::vector<int64_t>& shape)>;

}  // namespace smt
