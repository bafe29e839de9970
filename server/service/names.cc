#include "server/service/names.h"

#include <algorithm>

#include "model/base/strings.h"

namespace smt {
namespace {

constexpr std::string_view kSessions = "sessions/";
constexpr std::string_view kCheckpoints = "/checkpoints/";

bool IsLowerAlnum(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }

}  // namespace

bool IsValidSessionId(std::string_view id) {
  if (id.empty() || id.size() > 63 || !IsLowerAlnum(id[0])) return false;
  return std::all_of(id.begin(), id.end(), [](char c) { return IsLowerAlnum(c) || c == '-' || c == '_' || c == '.'; });
}

bool IsValidRequestId(std::string_view id) {
  if (id.empty() || id.size() > 64) return false;
  return std::all_of(id.begin(), id.end(), [](char c) {
    return IsLowerAlnum(c) || (c >= 'A' && c <= 'Z') || c == '-' || c == '_' || c == '.' || c == ':';
  });
}

std::optional<std::string> ParseSessionName(std::string_view name) {
  if (!name.starts_with(kSessions)) return std::nullopt;
  name.remove_prefix(kSessions.size());
  if (!IsValidSessionId(name)) return std::nullopt;
  return std::string(name);
}

std::optional<CheckpointName> ParseCheckpointName(std::string_view name) {
  const size_t at = name.find(kCheckpoints);
  if (at == std::string_view::npos) return std::nullopt;
  const std::optional<std::string> session = ParseSessionName(name.substr(0, at));
  const std::string_view id = name.substr(at + kCheckpoints.size());
  if (!session || !IsValidSessionId(id)) return std::nullopt;
  return CheckpointName{*session, std::string(id)};
}

std::string SessionName(std::string_view id) { return StrCat(kSessions, id); }

}  // namespace smt
