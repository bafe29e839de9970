// Builds a model folder from a GPT-2 folder (the window transformer, its vocabulary and tokenizer) and a Mamba folder
// (the memory) as the Hugging Face hub lays them out. The pooling, which neither has, starts near the identity.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "model/config.h"
#include "model/io/safetensors_dtype.h"

namespace smt {

struct ImportOptions {
  std::string gpt2_dir;   // config.json, model.safetensors (or shards and their index); vocab.json, merges.txt if there
  std::string mamba_dir;  // config.json, model.safetensors (or shards and their index)
  std::string out_dir;    // new
  int64_t n_ssm_outputs = 15;
  int64_t m_input_tokens = 50;
  int64_t stride = 16;
  WindowPolicy window_policy = WindowPolicy::kHop;
  PoolScope pool_scope = PoolScope::kWindow;
  std::optional<SafetensorsDType> matrix_dtype = std::nullopt;  // kF32 or kBF16; unset: each tensor keeps its own
  uint64_t seed = 0;                                            // of the pooling
};

// Sentences, one a tensor.
struct ImportReport {
  std::vector<std::string> loaded;       // "transformer.wte.weight [50257, 768] F32 from wte.weight"
  std::vector<std::string> initialized;  // in neither folder, and need not be
  std::vector<std::string> missing;      // the model needs it
  std::vector<std::string> wrong_shape;  // or of a dtype that is not supported
  std::vector<std::string> unexpected;   // no such tensor in such a model; not copied
  std::vector<std::string> ignored;      // known and not needed: causal masks, Mamba's embedding
  std::vector<std::string> warnings;

  std::string ToString() const;
};

// Fills `report` as far as it comes, also when it fails. INVALID_ARGUMENT: configs that do not fit together (all
// violations), tensors missing or of a wrong shape; NOT_FOUND: files; ALREADY_EXISTS: out_dir has a model. After an
// error out_dir has no config.json.
absl::Status ImportModel(const ImportOptions& options, ImportReport* report);

struct InitOptions {
  StrideHybridConfig config = {};
  std::string out_dir = {};                                // new
  SafetensorsDType matrix_dtype = SafetensorsDType::kF32;  // or kBF16
  uint64_t seed = 0;
  std::string tokenizer_dir = {};  // its vocab.json and merges.txt are copied; empty: none
  bool byte_vocabulary = false;    // without tokenizer_dir, write one; V must be 257
};
// A model of random weights (model/import/initializer.h).
absl::Status InitModel(const InitOptions& options);

}  // namespace smt
