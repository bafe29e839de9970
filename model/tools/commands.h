// The subcommands of smt_model. Each writes its result to stdout and gives one status; main.cc turns that into a
// sentence on stderr and an exit code.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/config.h"

namespace smt::tools {

struct InfoOptions {
  std::string model_dir;
  bool json = false;
  bool check_values = false;  // look for values that are not finite
};
absl::Status RunInfo(const InfoOptions& options);

struct VerifyOptions {
  std::string model_dir;
  std::string fixture;
  std::string device = "cpu";
  std::string dtype = "float32";
  bool json = false;
};
// ABORTED where a difference is over its tolerance, after printing all of them.
absl::Status RunVerify(const VerifyOptions& options);

struct ForwardCommandOptions {
  std::string model_dir;
  std::string ids;  // safetensors with `input_ids`
  std::string out;
  std::string window_policy;  // empty: the config's
  bool stepwise = false;
  std::string device = "cpu";
  std::string dtype = "float32";
};
absl::Status RunForward(const ForwardCommandOptions& options);

struct GenerateOptions {
  std::string model_dir;
  std::optional<std::string> prompt;      // unset: stdin
  std::optional<std::string> prompt_ids;  // JSON array, instead of a prompt
  int64_t max_tokens = 128;
  double temperature = 1;
  int64_t top_k = 0;
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;
  uint64_t seed = 0;
  bool ignore_eos = false;
  bool print_ids = false;  // a JSON array of ids instead of text
  std::string window_policy;
  std::string device = "cpu";
  std::string dtype = "float32";
};
absl::Status RunGenerate(const GenerateOptions& options);

struct ImportCommandOptions {
  std::string gpt2_dir, mamba_dir, out;
  std::string dtype = "keep";
  std::string window_policy = "hop", pool_scope = "window";
  int64_t n = 15, m = 50, s = 16;
  uint64_t seed = 0;
};
absl::Status RunImport(const ImportCommandOptions& options);

struct InitCommandOptions {
  std::string preset, out, tokenizer_dir;
  std::string config;  // a config.json instead of a preset
  std::string dtype = "float32";
  uint64_t seed = 0;
};
absl::Status RunInit(const InitCommandOptions& options);

struct TokenizeOptions {
  std::string model_dir;
  bool jsonl = false;
  bool parse_special = false;  // special tokens in the text become their ids
};
absl::Status RunTokenize(const TokenizeOptions& options);
absl::Status RunDetokenize(const TokenizeOptions& options);

// INVALID_ARGUMENT naming `flag` unless empty (no override), "hop" or "slide".
absl::StatusOr<std::optional<WindowPolicy>> PolicyFlag(std::string_view flag, const std::string& value);
// All of stdin.
absl::StatusOr<std::string> ReadStdin();

}  // namespace smt::tools
