// Every Abseil flag also from a configuration file and from the environment. Precedence: command line, then the
// environment (SMT_MODEL_DIR for --model_dir), then the file (--config, YAML or JSON: a mapping of flag names to
// values), then the default.
//
// For main() only; nothing else reads flags.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/flags/commandlineflag.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace smt {

struct FlagSourcesOptions {
  // Only flags defined in files whose path contains this are ours: others are neither read from file or environment nor
  // listed in --help.
  std::string file_part = "server/";
  std::string environment_prefix = "SMT_";
  std::string config_flag = "config";
  std::string version;  // what --version prints
};

// Sets flags from all sources. INVALID_ARGUMENT names every problem in file and environment (flag, value, what is
// allowed; unknown keys with the nearest known ones). Prints and exits with 1 on a bad command line, with 0 after
// --help or --version. Returns what is left of the command line, without argv[0].
absl::StatusOr<std::vector<std::string>> ParseFlagSources(int argc, char** argv,
                                                          const FlagSourcesOptions& options = {});

// Applies `text` (YAML or JSON) to the flags. `origin` names it in errors. Exposed for tests.
absl::Status ApplyConfigText(std::string_view text, std::string_view origin, const FlagSourcesOptions& options = {});

// Applies variables "NAME=value" to the flags. Exposed for tests.
absl::Status ApplyEnvironment(const std::vector<std::string>& environment, const FlagSourcesOptions& options = {});

// "--max_slots=-1: must be 0 to 65536". For checks of values after parsing.
std::string FlagError(std::string_view flag, std::string_view value, std::string_view allowed);

}  // namespace smt
