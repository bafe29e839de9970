#include "model/import/model_folder.h"

#include <filesystem>

#include "model/base/cat.h"
#include "model/base/status_macros.h"
#include "model/config_json.h"
#include "model/io/atomic_file.h"

namespace smt {
namespace {
constexpr size_t kMaxTokenizerFileBytes = 1 << 28;
}

absl::StatusOr<std::optional<TokenizerFiles>> ReadTokenizerFiles(const std::string& dir) {
  absl::StatusOr<std::string> vocab = fields::ReadSmallFile(dir + "/vocab.json", kMaxTokenizerFileBytes);
  absl::StatusOr<std::string> merges = fields::ReadSmallFile(dir + "/merges.txt", kMaxTokenizerFileBytes);
  if (absl::IsNotFound(vocab.status()) && absl::IsNotFound(merges.status())) return std::optional<TokenizerFiles>();
  RETURN_IF_ERROR(vocab.status());
  RETURN_IF_ERROR(merges.status());
  return TokenizerFiles{*std::move(vocab), *std::move(merges)};
}

absl::Status CheckNewModelFolder(const std::string& dir) {
  for (const char* name : {"config.json", "model.safetensors"}) {
    std::error_code error;
    if (std::filesystem::exists(dir + "/" + name, error)) {
      return absl::AlreadyExistsError(Cat(dir, " has a ", name, " already; give a new folder, nothing is overwritten"));
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
  if (error) return absl::FailedPreconditionError(Cat("cannot make the folder ", dir, ": ", error.message()));
  SafetensorsWriter writer;
  RETURN_IF_ERROR(writer.SetMetadata("format", "pt"));
  for (const PlannedTensor& tensor : tensors) {
    RETURN_IF_ERROR(writer.AddProduced(tensor.spec.name, tensor.dtype, tensor.spec.shape, tensor.produce));
  }
  RETURN_IF_ERROR(writer.WriteFile(dir + "/model.safetensors"));
  if (tokenizer) {
    RETURN_IF_ERROR(WriteFileAtomically(dir + "/vocab.json", tokenizer->vocab_json));
    RETURN_IF_ERROR(WriteFileAtomically(dir + "/merges.txt", tokenizer->merges_txt));
  }
  return WriteFileAtomically(dir + "/config.json", config.ToJson());
}

}  // namespace smt
