// Token ids as a JSON array.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace smt::tools {

std::string IdsToJson(const std::vector<int32_t>& ids);  // "[1,2,3]"
// INVALID_ARGUMENT naming the index of what is not an id, or saying that it is not an array.
absl::StatusOr<std::vector<int32_t>> IdsFromJson(std::string_view text);

}  // namespace smt::tools
