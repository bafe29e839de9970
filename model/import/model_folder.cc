#include "model/import/model_folder.h"

#include <filesystem>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/io/atomic_file.h"

namespace smt {
namespace {

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

}  // namespace

absl::StatusOr<std::optional<TokenizerFiles>> FindTokenizerFiles(const std::string& dir) {
  if (!Exists(dir + "/vocab.json") && !Exists(dir + "/merges.txt")) return std::optional<TokenizerFiles>();
  ASSIGN_OR_RETURN(TokenizerFiles files, ReadTokenizerFiles(dir));
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
