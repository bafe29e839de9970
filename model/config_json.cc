#include "model/config_json.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

namespace smt::fields {
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;
constexpr int kMaxDepth = 16;

// What JSON shows of a stranger's value.
std::string Show(const nlohmann::json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (text.size() > 64) text = text.substr(0, 64) + "...";
  return text;
}

absl::Status TooDeep() {
  return absl::InvalidArgumentError(StrCat("the JSON text is nested deeper than ", kMaxDepth, " levels"));
}

}  // namespace

const nlohmann::json* JsonFieldReader::Find(std::string_view name) {
  known_.emplace(name);
  const nlohmann::json* at = &root_;
  for (size_t begin = 0;;) {
    const size_t dot = name.find('.', begin);
    const std::string key(name.substr(begin, dot == std::string_view::npos ? dot : dot - begin));
    const auto found = at->find(key);
    if (found == at->end()) return nullptr;
    if (dot == std::string_view::npos) return &*found;
    const std::string section(name.substr(0, dot));
    known_.insert(section);
    if (!found->is_object()) {
      if (bad_.insert(section).second) violations_.push_back(Violation(section, Show(*found), "an object"));
      return nullptr;
    }
    at = &*found;
    begin = dot + 1;
  }
}

void JsonFieldReader::Bad(std::string_view name, const nlohmann::json& found, std::string_view allowed) {
  violations_.push_back(Violation(name, Show(found), allowed));
  bad_.emplace(name);
}

std::optional<int64_t> JsonFieldReader::ReadInteger(const Field& f, const nlohmann::json& found,
                                                    const Integer& allowed) {
  const bool fits = found.is_number_integer() &&
                    (!found.is_number_unsigned() || found.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX));
  if (!fits) {
    Bad(f.name, found, AllowedText(allowed));
    return std::nullopt;
  }
  return found.get<int64_t>();
}

void JsonFieldReader::operator()(const Field& f, int64_t& value, const Integer& allowed) {
  const nlohmann::json* found = Find(f.name);
  if (found == nullptr) return;
  if (found->is_null() && allowed.zero_is_derived) {
    value = 0;
  } else if (const auto read = ReadInteger(f, *found, allowed)) {
    value = *read;
  }
}

void JsonFieldReader::operator()(const Field& f, std::optional<int64_t>& value, const Integer& allowed) {
  const nlohmann::json* found = Find(f.name);
  if (found == nullptr) return;
  if (found->is_null()) {
    value.reset();
  } else if (const auto read = ReadInteger(f, *found, allowed)) {
    value = read;
  }
}

void JsonFieldReader::operator()(const Field& f, double& value, const Real& allowed) {
  const nlohmann::json* found = Find(f.name);
  if (found == nullptr) return;
  if (!found->is_number()) return Bad(f.name, *found, AllowedText(allowed));
  value = found->get<double>();
}

void JsonFieldReader::operator()(const Field& f, bool& value, const Flag&) {
  const nlohmann::json* found = Find(f.name);
  if (found == nullptr) return;
  if (!found->is_boolean()) return Bad(f.name, *found, "true or false");
  value = found->get<bool>();
}

void JsonFieldReader::operator()(const Field& f, std::string& value, const Text& allowed) {
  const nlohmann::json* found = Find(f.name);
  if (found == nullptr) return;
  if (!found->is_string()) return Bad(f.name, *found, StrCat("a string of at most ", allowed.max_bytes, " bytes"));
  value = found->get<std::string>();
}

std::vector<std::string> JsonFieldReader::UnknownKeys(const std::set<std::string, std::less<>>& also) const {
  std::vector<std::string> unknown;
  const auto scan = [&](const auto& self, const nlohmann::json& object, const std::string& prefix) -> void {
    for (const auto& [key, value] : object.items()) {
      const std::string name = prefix + key;
      if (!known_.contains(name) && !also.contains(name)) {
        unknown.push_back(StrCat(ShowValue(name), " is not a known field and is ignored"));
      } else if (value.is_object()) {
        self(self, value, name + ".");
      }
    }
  };
  scan(scan, root_, "");
  return unknown;
}

nlohmann::ordered_json& JsonFieldWriter::At(std::string_view name) {
  nlohmann::ordered_json* at = &root_;
  for (size_t begin = 0;;) {
    const size_t dot = name.find('.', begin);
    at = &(*at)[std::string(name.substr(begin, dot == std::string_view::npos ? dot : dot - begin))];
    if (dot == std::string_view::npos) return *at;
    begin = dot + 1;
  }
}

absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text) {
  if (text.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(
        StrCat("the JSON text is ", text.size(), " bytes long, must be at most ", kMaxConfigBytes));
  }
  bool too_deep = false;
  const auto limit_depth = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    too_deep |= depth > kMaxDepth;
    return depth <= kMaxDepth;
  };
  try {
    nlohmann::json root = nlohmann::json::parse(text, limit_depth);
    if (too_deep) return TooDeep();
    if (!root.is_object()) {
      return absl::InvalidArgumentError(StrCat("the JSON text is ", Show(root), ", must be an object"));
    }
    return root;
  } catch (const nlohmann::json::exception& e) {
    if (too_deep) return TooDeep();
    // "[json.exception.parse_error.101] parse error at ...": the tag is no use to people.
    std::string_view what = e.what();
    what.remove_prefix(std::min(what.size(), what.find("] ") + 2));
    return absl::InvalidArgumentError(StrCat("the text is not JSON: ", ShowValue(what, 200)));
  }
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    return errno == ENOENT || errno == ENOTDIR
               ? absl::NotFoundError(StrCat(path, " does not exist"))
               : absl::FailedPreconditionError(StrCat("cannot read ", path, ": ", std::strerror(errno)));
  }
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(StrCat(path, " is not a plain file"));
  if (static_cast<uint64_t>(info.st_size) > max_bytes) {
    return absl::InvalidArgumentError(StrCat(path, " is ", info.st_size, " bytes long, must be at most ", max_bytes));
  }
  std::ifstream file(path, std::ios::binary);
  std::string text(static_cast<size_t>(info.st_size), '\0');
  if (!file || (!text.empty() && !file.read(text.data(), static_cast<std::streamsize>(text.size())))) {
    return absl::FailedPreconditionError(StrCat("cannot read ", path, ": ", std::strerror(errno)));
  }
  return text;
}

absl::Status ViolationsError(const std::vector<std::string>& violations) {
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat(
      violations.size(), violations.size() == 1 ? " violation: " : " violations: ", absl::StrJoin(violations, "; ")));
}

}  // namespace smt::fields
