// The files a tokenizer is made of, as bytes.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace smt {

struct TokenizerFiles {
  std::string vocab_json;  // {"token in the byte alphabet": id, …}
  std::string merges_txt;  // "LEFT RIGHT" a line, first merge first; a first line "#version…" is skipped
  // Special tokens, in the forms of Hugging Face folders; each may be absent.
  std::optional<std::string> added_tokens_json;        // {"text": id, …}
  std::optional<std::string> tokenizer_config_json;    // added_tokens_decoder, bos_token, eos_token, …
  std::optional<std::string> special_tokens_map_json;  // bos_token, eos_token, …, additional_special_tokens
};

// Reads `dir`/vocab.json and so on. NOT_FOUND names vocab.json or merges.txt if one is missing.
absl::StatusOr<TokenizerFiles> ReadTokenizerFiles(const std::string& dir);

}  // namespace smt
