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

struct CheckpointKey {
  std::string session_id, checkpoint_id;
};
// The ids of "sessions/{id}/checkpoints/{id}", both formed as session ids; nothing when it is not of that form.
std::optional<CheckpointKey> ParseCheckpointName(std::string_view name);
std::string CheckpointName(std::string_view session_id, std::string_view checkpoint_id);

// Whether the id is of the form that the server keeps for its own checkpoints: "turn-{branch}-{position}".
bool IsAutomaticCheckpointId(std::string_view id);

}  // namespace smt
