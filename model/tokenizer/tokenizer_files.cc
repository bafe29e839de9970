#include "model/tokenizer/tokenizer_files.h"

#include <utility>

#include "model/base/status_macros.h"
#include "model/io/mapped_file.h"

namespace smt {
namespace {

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  return std::string(file.bytes());
}

absl::Status ReadOptional(const std::string& path, std::optional<std::string>* out) {
  absl::StatusOr<std::string> bytes = ReadFile(path);
  if (absl::IsNotFound(bytes.status())) return absl::OkStatus();
  RETURN_IF_ERROR(bytes.status());
  *out = *std::move(bytes);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerFiles> ReadTokenizerFiles(const std::string& dir) {
  TokenizerFiles files;
  ASSIGN_OR_RETURN(files.vocab_json, ReadFile(dir + "/vocab.json"));
  ASSIGN_OR_RETURN(files.merges_txt, ReadFile(dir + "/merges.txt"));
  RETURN_IF_ERROR(ReadOptional(dir + "/added_tokens.json", &files.added_tokens_json));
  RETURN_IF_ERROR(ReadOptional(dir + "/tokenizer_config.json", &files.tokenizer_config_json));
  RETURN_IF_ERROR(ReadOptional(dir + "/special_tokens_map.json", &files.special_tokens_map_json));
  return files;
}

}  // namespace smt
