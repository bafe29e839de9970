// Writes model folders.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/io/safetensors_writer.h"
#include "model/tensor_names.h"

namespace smt {

struct TokenizerFiles {
  std::string vocab_json, merges_txt;
};
// vocab.json and merges.txt of a folder; nothing if it has neither, NOT_FOUND if it has only one.
absl::StatusOr<std::optional<TokenizerFiles>> ReadTokenizerFiles(const std::string& dir);

struct PlannedTensor {
  TensorSpec spec;
  SafetensorsDType dtype;
  SafetensorsWriter::Producer produce;  // its bytes in `dtype`
};

// OK if `dir` is absent or holds neither a config nor weights: nothing is ever overwritten. ALREADY_EXISTS otherwise.
absl::Status CheckNewModelFolder(const std::string& dir);

// Makes `dir` where needed and writes model.safetensors, the tokenizer files if given, and config.json last: a folder
// with a config.json is complete.
absl::Status WriteModelFolder(const std::string& dir, const StrideHybridConfig& config,
                              const std::vector<PlannedTensor>& tensors,
                              const std::optional<TokenizerFiles>& tokenizer);

}  // namespace smt
