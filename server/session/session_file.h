// A session as one file that any safetensors reader opens: what ExportSession streams and ImportSession takes. Names,
// shapes and metadata are in docs/formats.md.
//
// The file is a function of the content, and reading one gives back the content it was made of, bit for bit. SHA-256
// digests cover everything in it, so a change is told; they are no signature, so every value is checked as well.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "server/session/session_manager.h"

namespace smt {

inline constexpr int64_t kSessionFileVersion = 1;

// Of `content.info` the id, position, branch, create time and model fingerprint are written. INTERNAL where the parts
// of `content` contradict each other: a state of another size, at another position or beyond the log.
absl::StatusOr<std::string> EncodeSessionFile(const StrideHybridConfig& config, const SessionContent& content);

// `bytes` is the whole file, and may be hostile; `config` and `fingerprint` are the model's that shall go on with it.
// Fills of `info` what EncodeSessionFile writes. Errors name the tensor or field, its value and what is allowed:
//   DATA_LOSS            cut short, longer than it says, or not what its digests say
//   FAILED_PRECONDITION  of another model, or of a newer format version
//   INVALID_ARGUMENT     no safetensors file, no session file, or one whose values contradict each other or the model
absl::StatusOr<SessionContent> DecodeSessionFile(const StrideHybridConfig& config, std::string_view fingerprint,
                                                 std::string_view bytes);

}  // namespace smt
