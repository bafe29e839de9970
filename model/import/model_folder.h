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
#include "model/tokenizer/tokenizer_files.h"

namespace smt {

// The tokenizer files of a folder; nothing if it has neither vocab.json nor merges.txt. NOT_FOUND if it has only one,
// INVALID_ARGUMENT if they do not fit together or hold more tokens than `vocab_size`, the model's.
absl::StatusOr<std::optional<TokenizerFiles>> FindTokenizerFiles(const std::string& dir, int64_t vocab_size);

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
