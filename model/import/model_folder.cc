#include "model/import/model_folder.h"

#include <filesystem>

#include "absl/strings/str_format.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/io/atomic_file.h"
#include "model/tokenizer/tokenizer.h"

namespace smt {
namespace {

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

// Said before hours of work, not after. Each tensor's bytes fit an int64; their sum need not.
absl::Status CheckSpace(const std::string& dir, const std::vector<PlannedTensor>& tensors) {
  double needed = 0;
  for (const PlannedTensor& tensor : tensors) {
    needed += static_cast<double>(tensor.spec.numel()) * (tensor.dtype == SafetensorsDType::kF32 ? 4 : 2);
  }
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(dir, error);
  if (error || needed <= static_cast<double>(space.available)) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrFormat("the model takes %.1f GB, but %s has only %.1f GB free",
                                                      needed / 1e9, dir, static_cast<double>(space.available) / 1e9));
}

}  // namespace

absl::StatusOr<std::optional<TokenizerFiles>> FindTokenizerFiles(const std::string& dir, int64_t vocab_size) {
  if (!Exists(dir + "/vocab.json") && !Exists(dir + "/merges.txt")) return std::optional<TokenizerFiles>();
  ASSIGN_OR_RETURN(TokenizerFiles files, ReadTokenizerFiles(dir));
  const absl::StatusOr<Tokenizer> tokenizer = Tokenizer::FromFiles(files);
  if (!tokenizer.ok()) {
    return absl::Status(tokenizer.status().code(), StrCat(dir, "/", std::string(tokenizer.status().message())));
  }
  if (tokenizer->vocab_size() > vocab_size) {
    return absl::InvalidArgumentError(StrCat(dir, "/vocab.json has ", tokenizer->vocab_size(),
                                             " tokens, must have at most vocab_size (", vocab_size, ")"));
  }
  return files;
}

absl::Status CheckNewModelFolder(const std::string& dir) {
  for (const char* name : {"config.json", "model.safetensors"}) {
    if (Exists(StrCat(dir, "/", name))) {
      return absl::AlreadyExistsError(
          StrCat(dir, " has a ", name, " already; give a new folder, nothing is overwritten"));
    }
  }
  return absl::OkStatus();
}

absl::Status WriteModelFolder(const std::string& dir, const StrideHybridConfig& config,
                              const std::vector<PlannedTensor>& tensors,
                              const std::optional<TokenizerFiles>& tokenizer) {
  RETURN_IF_ERROR(CheckNewModelFolder(dir));
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) return absl::FailedPreconditionError(StrCat("cannot make the folder ", dir, ": ", error.message()));
  RETURN_IF_ERROR(CheckSpace(dir, tensors));
  SafetensorsWriter writer;
  RETURN_IF_ERROR(writer.SetMetadata("format", "pt"));
  for (const PlannedTensor& tensor : tensors) {
    RETURN_IF_ERROR(writer.AddProduced(tensor.spec.name, tensor.dtype, tensor.spec.shape, tensor.produce));
  }
  RETURN_IF_ERROR(writer.WriteFile(dir + "/model.safetensors"));
  if (tokenizer) {
    RETURN_IF_ERROR(WriteFileAtomically(dir + "/vocab.json", tokenizer->vocab_json));
    RETURN_IF_ERROR(WriteFileAtomically(dir + "/merges.txt", tokenizer->merges_txt));
    for (const auto& [name, text] : {std::pair{"/added_tokens.json", &tokenizer->added_tokens_json},
                                     std::pair{"/tokenizer_config.json", &tokenizer->tokenizer_config_json},
                                     std::pair{"/special_tokens_map.json", &tokenizer->special_tokens_map_json}}) {
      if (*text) RETURN_IF_ERROR(WriteFileAtomically(dir + name, **text));
    }
  }
  return WriteFileAtomically(dir + "/config.json", config.ToJson());
}

}  // namespace smt
