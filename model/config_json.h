// JSON reading and writing of field lists (model/config_fields.h). For the .cc files of configurations only: it pulls
// in nlohmann/json.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_join.h"
#include "model/base/strings.h"
#include "model/config_fields.h"

namespace smt::fields {

// Reads fields that are there and of the right type; the others keep their value and are reported.
class JsonFieldReader {
 public:
  // `root` must outlive the reader.
  explicit JsonFieldReader(const nlohmann::json& root) : root_(root) {}

  void operator()(const Field& f, int64_t& value, const Integer& allowed);
  void operator()(const Field& f, std::optional<int64_t>& value, const Integer& allowed);  // null: unset
  void operator()(const Field& f, double& value, const Real& allowed);
  void operator()(const Field& f, bool& value, const Flag&);
  void operator()(const Field& f, std::string& value, const Text&);
  template <typename E>
  void operator()(const Field& f, E& value, const Choice<E>& choice) {
    const nlohmann::json* found = Find(f.name);
    if (found == nullptr) return;
    std::vector<std::string> names;
    for (const auto& [known, name] : choice.names) {
      if (found->is_string() && found->get_ref<const std::string&>() == name) {
        value = known;
        return;
      }
      names.push_back(StrCat("\"", name, "\""));
    }
    Bad(f.name, *found, absl::StrJoin(names, " or "));
  }

  std::vector<std::string>& violations() { return violations_; }
  const std::set<std::string, std::less<>>& bad_fields() const { return bad_; }
  // One sentence a key that no field has; `also` are further keys that are fine.
  std::vector<std::string> UnknownKeys(const std::set<std::string, std::less<>>& also) const;

 private:
  const nlohmann::json* Find(std::string_view name);
  std::optional<int64_t> ReadInteger(const Field& f, const nlohmann::json& found, const Integer& allowed);
  void Bad(std::string_view name, const nlohmann::json& found, std::string_view allowed);

  const nlohmann::json& root_;
  std::vector<std::string> violations_;
  std::set<std::string, std::less<>> bad_, known_;
};

class JsonFieldWriter {
 public:
  explicit JsonFieldWriter(nlohmann::ordered_json& root) : root_(root) {}

  void operator()(const Field& f, int64_t value, const Integer& allowed) {
    if (value != 0 || !allowed.zero_is_derived) At(f.name) = value;
  }
  void operator()(const Field& f, const std::optional<int64_t>& value, const Integer&) {
    if (value) At(f.name) = *value;
  }
  void operator()(const Field& f, double value, const Real&) { At(f.name) = value; }
  void operator()(const Field& f, bool value, const Flag&) { At(f.name) = value; }
  void operator()(const Field& f, const std::string& value, const Text&) { At(f.name) = value; }
  template <typename E>
  void operator()(const Field& f, E value, const Choice<E>& choice) {
    for (const auto& [known, name] : choice.names) {
      if (known == value) At(f.name) = std::string(name);
    }
  }

 private:
  nlohmann::ordered_json& At(std::string_view name);
  nlohmann::ordered_json& root_;
};

// The text as one JSON object. INVALID_ARGUMENT: not JSON (saying where), not an object, over 1 MiB, nested too deep.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text);

// Whole small file. NOT_FOUND naming the path; INVALID_ARGUMENT when it is over `max_bytes` or not a plain file.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes);

// INVALID_ARGUMENT with all violations in one message: "3 violations: a; b; c".
absl::Status ViolationsError(const std::vector<std::string>& violations);

}  // namespace smt::fields
