#include "model/tools/ids_json.h"

#include <nlohmann/json.hpp>

#include "model/base/strings.h"
#include "model/config_fields.h"

namespace smt::tools {

std::string IdsToJson(const std::vector<int32_t>& ids) { return nlohmann::json(ids).dump(); }

absl::StatusOr<std::vector<int32_t>> IdsFromJson(std::string_view text) {
  const nlohmann::json array = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!array.is_array()) {
    return absl::InvalidArgumentError(StrCat("\"", fields::ShowValue(text), "\" is not a JSON array of ids"));
  }
  std::vector<int32_t> ids;
  for (const nlohmann::json& value : array) {
    const bool fits = value.is_number_integer() && value >= 0 && value <= INT32_MAX;
    if (!fits) {
      return absl::InvalidArgumentError(StrCat("the id at index ", ids.size(), " is ", fields::ShowValue(value.dump()),
                                               ", must be an integer in [0, vocabulary)"));
    }
    ids.push_back(value.get<int32_t>());
  }
  return ids;
}

}  // namespace smt::tools
