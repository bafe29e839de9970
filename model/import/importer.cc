#include "model/import/importer.h"

#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/config_json.h"
#include "model/import/byte_vocabulary.h"
#include "model/import/hub_config.h"
#include "model/import/hub_tensors.h"
#include "model/import/initializer.h"
#include "model/import/model_folder.h"
#include "model/tensor_names.h"

namespace smt {
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;

template <typename Config>
absl::StatusOr<Config> ReadHubConfig(const std::string& dir, absl::StatusOr<Config> (*read)(std::string_view)) {
  const std::string path = dir + "/config.json";
  ASSIGN_OR_RETURN(const std::string text, fields::ReadSmallFile(path, kMaxConfigBytes));
  absl::StatusOr<Config> config = read(text);
  if (!config.ok()) return absl::Status(config.status().code(), StrCat(path, ": ", config.status().message()));
  return config;
}

absl::StatusOr<StrideHybridConfig> Combine(const ImportOptions& options, const HubGpt2& gpt2, const HubMamba& mamba) {
  if (gpt2.d_model != mamba.d_model) {
    return absl::InvalidArgumentError(StrCat("the widths differ: n_embd of ", options.gpt2_dir, " is ", gpt2.d_model,
                                             ", hidden_size of ", options.mamba_dir, " is ", mamba.d_model,
                                             "; they must be equal"));
  }
  StrideHybridConfig config;
  config.vocab_size = gpt2.vocab_size;
  config.d_model = gpt2.d_model;
  config.n_ssm_outputs = options.n_ssm_outputs;
  config.m_input_tokens = options.m_input_tokens;
  config.stride = options.stride;
  config.window_policy = options.window_policy;
  config.pool_scope = options.pool_scope;
  config.tie_word_embeddings = gpt2.tie_word_embeddings;
  config.bos_token_id = gpt2.bos_token_id;
  config.eos_token_id = gpt2.eos_token_id;
  config.transformer = gpt2.transformer;
  config.ssm = mamba.ssm;
  config.ssm.dt_rank = config.dt_rank();
  RETURN_IF_ERROR(fields::ViolationsError(config.Validate()));
  return config;
}

constexpr char kEmbedding[] = "transformer.wte.weight", kHead[] = "lm_head.weight";

// One of the two folders: which of the model's tensors it gives, and under which names.
struct Source {
  std::string dir;
  HubTensors tensors;
  std::string prefix;    // of ours, e.g. "ssm."; what follows is the hub's name
  std::string optional;  // leading part of the hub's name that some files leave out, e.g. "backbone."
  std::set<std::string, std::less<>> used;

  const HubTensors::Entry* Find(const std::string& ours, std::string* theirs) {
    const std::string full = ours.substr(prefix.size());
    for (const std::string& name : {full, std::string(absl::StripPrefix(full, optional))}) {
      const auto found = tensors.entries().find(name);
      if (found == tensors.entries().end()) continue;
      used.insert(name);
      *theirs = name;
      return &found->second;
    }
    return nullptr;
  }
};

bool IsSupported(SafetensorsDType dtype) {
  return dtype == SafetensorsDType::kF32 || dtype == SafetensorsDType::kF16 || dtype == SafetensorsDType::kBF16;
}

PlannedTensor Initialized(const TensorSpec& spec, const StrideHybridConfig& config, SafetensorsDType dtype,
                          uint64_t seed) {
  return {spec, dtype, [spec, config, dtype, seed] { return EncodeFloats(dtype, InitialValues(spec, config, seed)); }};
}

PlannedTensor Copied(const TensorSpec& spec, const HubTensors& tensors, const HubTensors::Entry& entry,
                     SafetensorsDType dtype) {
  return {spec, dtype, [&tensors, entry, dtype]() -> absl::StatusOr<std::string> {
            if (dtype == entry.info->dtype) return std::string(tensors.Bytes(entry));
            ASSIGN_OR_RETURN(const std::vector<float> values, tensors.Float32(entry));
            return EncodeFloats(dtype, values);
          }};
}

SafetensorsDType StoredDType(const TensorSpec& spec, SafetensorsDType matrices) {
  return StoredInModelDtype(spec.role) ? matrices : SafetensorsDType::kF32;
}

// What the model has of `source`'s tensors, added to `planned`; all that does not fit, to `report`.
void PlanTensor(const TensorSpec& spec, bool tied, const ImportOptions& options, Source& source, ImportReport& report,
                std::vector<PlannedTensor>& planned) {
  std::string theirs;
  const HubTensors::Entry* entry = source.Find(spec.name, &theirs);
  // Of two tied tensors some writers keep only the head.
  if (entry == nullptr && tied && spec.name == kEmbedding) entry = source.Find(kHead, &theirs);
  if (entry == nullptr) {
    report.missing.push_back(StrCat(spec.name, " ", ShapeToString(spec.shape), " is not in ", source.dir));
    return;
  }
  const TensorInfo& info = *entry->info;
  if (info.shape != spec.shape) {
    report.wrong_shape.push_back(StrCat(spec.name, " is ", ShapeToString(info.shape), " in ", source.dir, ", must be ",
                                        ShapeToString(spec.shape)));
    return;
  }
  if (!IsSupported(info.dtype)) {
    report.wrong_shape.push_back(
        StrCat(spec.name, " is ", Name(info.dtype), " in ", source.dir, ", must be F32, F16 or BF16"));
    return;
  }
  const SafetensorsDType dtype = options.matrix_dtype ? StoredDType(spec, *options.matrix_dtype) : info.dtype;
  report.loaded.push_back(
      StrCat(spec.name, " ", ShapeToString(spec.shape), " ", Name(dtype), " from ", theirs, " ", Name(info.dtype)));
  planned.push_back(Copied(spec, source.tensors, *entry, dtype));
}

// Sorts what `source` has and the model does not use.
void SortLeftovers(const Source& source, bool is_gpt2, const StrideHybridConfig& config, ImportReport& report) {
  for (const auto& [name, entry] : source.tensors.entries()) {
    if (source.used.contains(name)) continue;
    const std::string full = absl::StartsWith(name, source.optional) ? name : source.optional + name;
    const bool known = is_gpt2 ? IsIgnorableTensor(name == "lm_head.weight" ? name : full, config)
                               : name == "lm_head.weight" || full == "backbone.embeddings.weight" ||
                                     full == "backbone.embedding.weight";
    (known ? report.ignored : report.unexpected)
        .push_back(StrCat(name, " ", ShapeToString(entry.info->shape), " in ", source.dir));
  }
}

// Whether a tied model's file has a head of its own that the tie would drop.
bool DropsAHead(Source& gpt2) {
  std::string name;
  const auto head = gpt2.tensors.entries().find(kHead);
  if (head == gpt2.tensors.entries().end()) return false;
  const HubTensors::Entry* embedding = gpt2.Find(kEmbedding, &name);
  return embedding != nullptr && gpt2.tensors.Bytes(head->second) != gpt2.tensors.Bytes(*embedding);
}

}  // namespace

std::string ImportReport::ToString() const {
  std::string text;
  const auto section = [&](const char* title, const std::vector<std::string>& lines) {
    text += StrCat(title, ": ", lines.size(), "\n");
    for (const std::string& line : lines) text += StrCat("  ", line, "\n");
  };
  section("loaded", loaded);
  section("initialized", initialized);
  section("missing", missing);
  section("wrong shape", wrong_shape);
  section("unexpected", unexpected);
  section("ignored", ignored);
  if (!warnings.empty()) section("warnings", warnings);
  return text;
}

absl::Status ImportModel(const ImportOptions& options, ImportReport* report) {
  RETURN_IF_ERROR(CheckNewModelFolder(options.out_dir));
  ASSIGN_OR_RETURN(const HubGpt2 gpt2_config, ReadHubConfig(options.gpt2_dir, &ReadHubGpt2));
  ASSIGN_OR_RETURN(const HubMamba mamba_config, ReadHubConfig(options.mamba_dir, &ReadHubMamba));
  ASSIGN_OR_RETURN(const StrideHybridConfig config, Combine(options, gpt2_config, mamba_config));
  ASSIGN_OR_RETURN(HubTensors gpt2_tensors, HubTensors::Open(options.gpt2_dir));
  ASSIGN_OR_RETURN(HubTensors mamba_tensors, HubTensors::Open(options.mamba_dir));
  ASSIGN_OR_RETURN(const auto tokenizer, FindTokenizerFiles(options.gpt2_dir, config.vocab_size));
  Source gpt2{options.gpt2_dir, std::move(gpt2_tensors), "", "transformer.", {}};
  Source mamba{options.mamba_dir, std::move(mamba_tensors), "ssm.", "backbone.", {}};

  std::vector<PlannedTensor> planned;
  for (const TensorSpec& spec : ExpectedTensors(config)) {
    const bool no_conv_bias = !mamba_config.conv_bias && absl::EndsWith(spec.name, ".conv1d.bias");
    if (spec.part == ModelPart::kPooling || no_conv_bias) {
      TensorSpec initialized = spec;
      if (no_conv_bias) initialized.role = TensorRole::kBias;
      report->initialized.push_back(
          StrCat(spec.name, " ", ShapeToString(spec.shape), no_conv_bias ? " to 0" : " near the identity"));
      planned.push_back(Initialized(
          initialized, config, StoredDType(spec, options.matrix_dtype.value_or(SafetensorsDType::kF32)), options.seed));
    } else {
      PlanTensor(spec, config.tie_word_embeddings, options, spec.part == ModelPart::kSsm ? mamba : gpt2, *report,
                 planned);
    }
  }
  SortLeftovers(gpt2, /*is_gpt2=*/true, config, *report);
  SortLeftovers(mamba, /*is_gpt2=*/false, config, *report);
  report->warnings = config.Warnings();
  if (config.tie_word_embeddings && DropsAHead(gpt2)) {
    report->warnings.push_back(StrCat("lm_head.weight in ", options.gpt2_dir,
                                      " differs from wte.weight but tie_word_embeddings is true: it is not copied"));
  }
  if (!tokenizer) {
    report->warnings.push_back(
        StrCat(options.gpt2_dir, " has no vocab.json and merges.txt: the model will take and give ids only"));
  }
  if (!report->missing.empty() || !report->wrong_shape.empty()) {
    return absl::InvalidArgumentError(
        StrCat("nothing was written: ", report->missing.size(), " tensors are missing and ", report->wrong_shape.size(),
               " have a wrong shape or dtype, ", report->missing.empty() ? report->wrong_shape[0] : report->missing[0],
               report->missing.size() + report->wrong_shape.size() > 1 ? " among them" : ""));
  }
  return WriteModelFolder(options.out_dir, config, planned, tokenizer);
}

absl::Status InitModel(const InitOptions& options) {
  RETURN_IF_ERROR(fields::ViolationsError(options.config.Validate()));
  std::optional<TokenizerFiles> tokenizer;
  if (!options.tokenizer_dir.empty()) {
    ASSIGN_OR_RETURN(tokenizer, FindTokenizerFiles(options.tokenizer_dir, options.config.vocab_size));
    if (!tokenizer) {
      return absl::NotFoundError(StrCat("tokenizer_dir ", options.tokenizer_dir, " has no vocab.json and merges.txt"));
    }
  } else if (options.byte_vocabulary) {
    tokenizer = TokenizerFiles{ByteVocabularyJson(), EmptyMerges(), {}, {}, {}};
  }
  std::vector<PlannedTensor> planned;
  for (const TensorSpec& spec : ExpectedTensors(options.config)) {
    planned.push_back(Initialized(spec, options.config, StoredDType(spec, options.matrix_dtype), options.seed));
  }
  return WriteModelFolder(options.out_dir, options.config, planned, tokenizer);
}

}  // namespace smt
