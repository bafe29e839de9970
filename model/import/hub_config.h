// The config.json of published GPT-2 and Mamba models, as the Hugging Face hub lays them out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config.h"

namespace smt {

struct HubGpt2 {
  int64_t vocab_size = 50257;
  int64_t d_model = 768;
  bool tie_word_embeddings = true;
  std::optional<int64_t> bos_token_id, eos_token_id;
  TransformerConfig transformer;
};

struct HubMamba {
  int64_t d_model = 768;
  bool conv_bias = true;  // false: checkpoints have no conv1d.bias, which is the same as zeros
  SsmConfig ssm;
};

// INVALID_ARGUMENT with all violations: wrong types, another model_type, variants that compute something else (another
// activation, scaling by layer index, projections with biases), missing shapes. Other absent fields have the published
// defaults.
absl::StatusOr<HubGpt2> ReadHubGpt2(std::string_view json);
absl::StatusOr<HubMamba> ReadHubMamba(std::string_view json);

}  // namespace smt
