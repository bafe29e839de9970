// Resource names: "sessions/{id}", "sessions/{id}/checkpoints/{id}" and "models/{id}".
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace smt {

// 1 to 63 characters, the first of [a-z0-9], the others also of [_.-].
bool IsValidSessionId(std::string_view id);

// 1 to 64 characters of [A-Za-z0-9_.:-].
bool IsValidRequestId(std::string_view id);

// The id of "sessions/{id}"; nothing when it is not of that form.
std::optional<std::string> ParseSessionName(std::string_view name);
std::string SessionName(std::string_view id);

struct CheckpointName {
  std::string session, id;
};
// Of "sessions/{id}/checkpoints/{id}"; nothing when it is not of that form.
std::optional<CheckpointName> ParseCheckpointName(std::string_view name);

}  // namespace smt
