// Another implementation's figures to compare with.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace smt::bench {

// Both {line: {batch: {figure: value}}}. For each figure NAME of the baseline that ends in "tok_s" or "_ms", and that
// `figures` has the like of (tok_s, ms or token_ms in the same place), adds speed_over_NAME: how many times as fast.
void Compare(const nlohmann::json& baseline, nlohmann::json* figures);
// The file's JSON. INVALID_ARGUMENT where there is none.
absl::StatusOr<nlohmann::json> ReadBaseline(const std::string& file);

}  // namespace smt::bench
