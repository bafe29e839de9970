#include "server/base/flag_sources.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage_config.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/time/time.h"
#include "model/base/strings.h"

extern char** environ;

namespace smt {
namespace {

using FlagMap = std::map<std::string, absl::CommandLineFlag*, std::less<>>;

bool Contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

FlagMap OurFlags(const FlagSourcesOptions& options) {
  FlagMap flags;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (!flag->IsRetired() && Contains(flag->Filename(), options.file_part)) flags[std::string(name)] = flag;
  }
  return flags;
}

std::string Allowed(const absl::CommandLineFlag& flag) {
  if (flag.IsOfType<bool>()) return "must be true or false";
  if (flag.IsOfType<int32_t>()) return "must be an integer of 32 bits";
  if (flag.IsOfType<int64_t>()) return "must be an integer of 64 bits";
  if (flag.IsOfType<double>()) return "must be a number";
  if (flag.IsOfType<absl::Duration>()) return "must be a duration such as 500ms, 5s, 1h30m";
  return "cannot be read";
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row.back();
}

// " (did you mean 'a' or 'b'?)", or nothing.
std::string NearMatches(std::string_view name, const FlagMap& flags) {
  std::vector<std::string> near;
  for (const auto& [known, flag] : flags) {
    const bool part = name.size() >= 4 && (Contains(known, name) || Contains(name, known));
    if (part || EditDistance(name, known) <= std::max<size_t>(1, name.size() / 4))
      near.push_back(StrCat("'", known, "'"));
  }
  if (near.empty() || near.size() > 4) return "";
  return StrCat(" (did you mean ", StrJoin(near, " or "), "?)");
}

void SetFlag(absl::CommandLineFlag& flag, const std::string& value, std::string_view where,
             std::vector<std::string>& problems) {
  std::string error;
  if (!flag.ParseFrom(value, &error)) {
    problems.push_back(StrCat(where, ": ", std::string(flag.Name()), " = '", value, "': ", Allowed(flag)));
  }
}

absl::Status ToStatus(const std::vector<std::string>& problems) {
  return problems.empty() ? absl::OkStatus() : absl::InvalidArgumentError(StrJoin(problems, "; "));
}

// Values given to `name` on the command line, without setting anything.
std::string FromCommandLine(int argc, char** argv, std::string_view name) {
  std::string found;
  for (int i = 1; i < argc; ++i) {
    std::string_view arg = argv[i];
    if (arg == "--") break;
    if (!arg.starts_with("-")) continue;
    arg.remove_prefix(arg.starts_with("--") ? 2 : 1);
    if (arg == name && i + 1 < argc) found = argv[i + 1];
    if (arg.starts_with(StrCat(name, "="))) found = std::string(arg.substr(name.size() + 1));
  }
  return found;
}

}  // namespace

std::string FlagError(std::string_view flag, std::string_view value, std::string_view allowed) {
  return StrCat("--", flag, "=", value, ": ", allowed);
}

absl::Status ApplyConfigText(std::string_view text, std::string_view origin, const FlagSourcesOptions& options) {
  const FlagMap flags = OurFlags(options);
  YAML::Node root;
  try {
    root = YAML::Load(std::string(text));
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(StrCat(origin, ": neither YAML nor JSON: ", e.what()));
  }
  if (root.IsNull()) return absl::OkStatus();
  if (!root.IsMap()) {
    return absl::InvalidArgumentError(StrCat(origin, ": must be a mapping of flag names to values"));
  }
  std::vector<std::string> problems;
  for (const auto& entry : root) {
    const std::string key = entry.first.IsScalar() ? entry.first.Scalar() : "(not a name)";
    const std::string where = StrCat(origin, " line ", entry.first.Mark().line + 1);
    const auto it = flags.find(key);
    if (it == flags.end() || key == options.config_flag) {
      problems.push_back(StrCat(where, ": unknown key '", key, "'", NearMatches(key, flags)));
    } else if (!entry.second.IsScalar()) {
      problems.push_back(StrCat(where, ": ", key, " must be a single value"));
    } else {
      SetFlag(*it->second, entry.second.Scalar(), where, problems);
    }
  }
  return ToStatus(problems);
}

absl::Status ApplyEnvironment(const std::vector<std::string>& environment, const FlagSourcesOptions& options) {
  const FlagMap flags = OurFlags(options);
  std::vector<std::string> problems;
  for (const std::string& variable : environment) {
    const size_t equals = variable.find('=');
    if (equals == std::string::npos || !variable.starts_with(options.environment_prefix)) continue;
    const std::string name = variable.substr(0, equals);
    const std::string key = absl::AsciiStrToLower(name.substr(options.environment_prefix.size()));
    const auto it = flags.find(key);
    if (it != flags.end()) SetFlag(*it->second, variable.substr(equals + 1), StrCat("environment ", name), problems);
  }
  return ToStatus(problems);
}

namespace {

// Abseil ends --help with 1; for a shell, help that was asked for is a success.
void EndHelpWithSuccess(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (!argument.starts_with("--help") && !argument.starts_with("-help") && argument != "--version") continue;
    std::atexit([] {
      std::cout.flush();
      std::fflush(nullptr);
      std::_Exit(0);
    });
    return;
  }
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ParseFlagSources(int argc, char** argv, const FlagSourcesOptions& options) {
  absl::FlagsUsageConfig usage;
  const auto ours = [part = options.file_part](absl::string_view file) { return Contains(std::string(file), part); };
  usage.contains_helpshort_flags = ours;
  usage.contains_help_flags = ours;
  usage.contains_helppackage_flags = ours;
  usage.version_string = [version = options.version] { return version + "\n"; };
  // The path from the repository's root, whatever folder it was compiled in.
  usage.normalize_filename = [part = options.file_part](absl::string_view file) {
    const size_t at = std::string(file).find(part);
    return std::string(at == std::string::npos ? file : file.substr(at));
  };
  absl::SetFlagsUsageConfig(usage);
  EndHelpWithSuccess(argc, argv);

  std::vector<std::string> environment;
  for (char** variable = environ; *variable != nullptr; ++variable) environment.push_back(*variable);

  std::string config = FromCommandLine(argc, argv, options.config_flag);
  if (config.empty()) {
    const std::string name = StrCat(options.environment_prefix, absl::AsciiStrToUpper(options.config_flag), "=");
    for (const std::string& variable : environment) {
      if (variable.starts_with(name)) config = variable.substr(name.size());
    }
  }
  if (!config.empty()) {
    std::ifstream file(config);
    std::stringstream text;
    text << file.rdbuf();
    if (!file) {
      return absl::InvalidArgumentError(FlagError(options.config_flag, config, "must be a file that can be read"));
    }
    if (absl::Status status = ApplyConfigText(text.str(), config, options); !status.ok()) return status;
  }
  if (absl::Status status = ApplyEnvironment(environment, options); !status.ok()) return status;

  std::vector<std::string> rest;
  for (char* arg : absl::ParseCommandLine(argc, argv)) rest.emplace_back(arg);
  rest.erase(rest.begin());
  return rest;
}

}  // namespace smt
