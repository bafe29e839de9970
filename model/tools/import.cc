// smt_model import and init.
#include <cstdio>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/config_fields.h"
#include "model/config_json.h"
#include "model/import/importer.h"
#include "model/import/presets.h"
#include "model/tools/commands.h"

namespace smt::tools {
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;

absl::StatusOr<std::optional<SafetensorsDType>> DTypeFlag(const std::string& value, bool keep_allowed) {
  if (value == "float32") return SafetensorsDType::kF32;
  if (value == "bfloat16") return SafetensorsDType::kBF16;
  if (keep_allowed && value == "keep") return std::optional<SafetensorsDType>();
  return absl::InvalidArgumentError(
      fields::Violation("--dtype", StrCat("\"", fields::ShowValue(value), "\""),
                        keep_allowed ? "\"keep\", \"float32\" or \"bfloat16\"" : "\"float32\" or \"bfloat16\""));
}

}  // namespace

absl::StatusOr<std::optional<WindowPolicy>> PolicyFlag(std::string_view flag, const std::string& value) {
  if (value.empty()) return std::optional<WindowPolicy>();
  if (const auto policy = ParseWindowPolicy(value)) return policy;
  return absl::InvalidArgumentError(
      fields::Violation(flag, StrCat("\"", fields::ShowValue(value), "\""), "\"hop\" or \"slide\""));
}

absl::Status RunImport(const ImportCommandOptions& options) {
  ImportOptions import;
  import.gpt2_dir = options.gpt2_dir;
  import.mamba_dir = options.mamba_dir;
  import.out_dir = options.out;
  import.n_ssm_outputs = options.n;
  import.m_input_tokens = options.m;
  import.stride = options.s;
  import.seed = options.seed;
  ASSIGN_OR_RETURN(const auto policy, PolicyFlag("--window_policy", options.window_policy));
  import.window_policy = policy.value_or(WindowPolicy::kHop);
  if (options.pool_scope != "window" && options.pool_scope != "tokens") {
    return absl::InvalidArgumentError(fields::Violation(
        "--pool_scope", StrCat("\"", fields::ShowValue(options.pool_scope), "\""), "\"window\" or \"tokens\""));
  }
  import.pool_scope = options.pool_scope == "tokens" ? PoolScope::kTokens : PoolScope::kWindow;
  ASSIGN_OR_RETURN(import.matrix_dtype, DTypeFlag(options.dtype, /*keep_allowed=*/true));
  ImportReport report;
  const absl::Status status = ImportModel(import, &report);
  if (status.ok() || !report.loaded.empty() || !report.missing.empty()) {
    std::printf("%s", report.ToString().c_str());
  }
  RETURN_IF_ERROR(status);
  std::printf("wrote %s\n", options.out.c_str());
  return absl::OkStatus();
}

absl::Status RunInit(const InitCommandOptions& options) {
  InitOptions init;
  if (!options.config.empty()) {
    ASSIGN_OR_RETURN(const std::string text, fields::ReadSmallFile(options.config, kMaxConfigBytes));
    absl::StatusOr<StrideHybridConfig> config = StrideHybridConfig::FromJson(text);
    if (!config.ok()) {
      return absl::Status(config.status().code(), StrCat(options.config, ": ", config.status().message()));
    }
    init.config = *std::move(config);
  } else {
    const Preset* preset = FindPreset(options.preset);
    if (preset == nullptr) {
      std::string names;
      for (const Preset& known : Presets()) names += StrCat(names.empty() ? "" : ", ", known.name);
      return absl::InvalidArgumentError(fields::Violation(
          "--preset", options.preset.empty() ? "not given" : StrCat("\"", fields::ShowValue(options.preset), "\""),
          StrCat("one of ", names, " (or give --config)")));
    }
    init.config = preset->config;
    init.byte_vocabulary = preset->byte_vocabulary;
  }
  ASSIGN_OR_RETURN(const auto dtype, DTypeFlag(options.dtype, /*keep_allowed=*/false));
  init.matrix_dtype = *dtype;
  init.out_dir = options.out;
  init.seed = options.seed;
  init.tokenizer_dir = options.tokenizer_dir;
  RETURN_IF_ERROR(InitModel(init));
  std::printf("%swrote %s\n", init.config.Summary().c_str(), options.out.c_str());
  if (!init.byte_vocabulary && options.tokenizer_dir.empty()) {
    std::printf("It has no tokenizer files and takes and gives ids only; --tokenizer_dir copies a folder's.\n");
  }
  return absl::OkStatus();
}

}  // namespace smt::tools
