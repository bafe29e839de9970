// StrideHybridConfig: every hyperparameter of a Stride Memory Transformer, read from and written to config.json.
// Plain values, no LibTorch. Symbols: D model width, V vocabulary, n memory slots, m input tokens, s stride, W = n + m.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace smt {

// Which tokens the window holds between writes; both policies share one memory stream and one set of weights.
enum class WindowPolicy {
  kHop,    // after a write keep the last m - s tokens, grow until the next; keys and values are cached
  kSlide,  // always the last min(t, m) tokens; every step recomputes the window
};
// What a write pools over.
enum class PoolScope {
  kWindow,  // memory vectors and tokens
  kTokens,  // tokens only: writes do not depend on each other's outputs, a prompt is one parallel scan
};
enum class TransformerKind { kGpt2, kSimple };
enum class SsmKind { kMamba, kSimple };

std::string_view Name(WindowPolicy policy);   // "hop" | "slide"
std::string_view Name(PoolScope scope);       // "window" | "tokens"
std::string_view Name(TransformerKind kind);  // "gpt2" | "simple"
std::string_view Name(SsmKind kind);          // "mamba" | "simple"
std::optional<WindowPolicy> ParseWindowPolicy(std::string_view name);

struct TransformerConfig {
  TransformerKind kind = TransformerKind::kGpt2;
  int64_t n_layer = 12;
  int64_t n_head = 12;
  int64_t n_positions = 1024;  // >= W
  int64_t n_inner = 0;         // MLP width; 0 means 4 D
  double layer_norm_epsilon = 1e-5;
};

struct SsmConfig {
  SsmKind kind = SsmKind::kMamba;
  int64_t n_layer = 24;
  int64_t d_state = 16;
  int64_t d_conv = 4;
  int64_t expand = 2;   // d_inner = expand * D
  int64_t dt_rank = 0;  // 0 means ceil(D / 16)
  double rms_norm_epsilon = 1e-5;
};

struct StrideHybridConfig {
  int64_t vocab_size = 50257;
  int64_t d_model = 768;
  int64_t n_ssm_outputs = 15;   // n: memory slots
  int64_t m_input_tokens = 50;  // m: token slots
  int64_t stride = 16;          // s: tokens between writes
  WindowPolicy window_policy = WindowPolicy::kHop;
  PoolScope pool_scope = PoolScope::kWindow;
  bool tie_word_embeddings = true;
  std::optional<int64_t> bos_token_id;
  std::optional<int64_t> eos_token_id;
  TransformerConfig transformer;
  SsmConfig ssm;

  int64_t window() const { return n_ssm_outputs + m_input_tokens; }  // W
  int64_t head_dim() const { return d_model / transformer.n_head; }
  int64_t mlp_width() const { return transformer.n_inner > 0 ? transformer.n_inner : 4 * d_model; }
  int64_t d_inner() const { return ssm.expand * d_model; }
  int64_t dt_rank() const { return ssm.dt_rank > 0 ? ssm.dt_rank : (d_model + 15) / 16; }

  // Every violation, one sentence each naming the field, its value and what is allowed; empty when the config is valid.
  std::vector<std::string> Validate() const;
  // Legal but unwise values, one sentence each.
  std::vector<std::string> Warnings() const;
  // For people: shapes, parameter counts by part, state bytes a session.
  std::string Summary() const;

  // INVALID_ARGUMENT listing every problem: not JSON, wrong types, unknown enum values, all of Validate(). Absent
  // fields have their defaults. Unknown keys are ignored; `warnings`, if given, gets a sentence for each and all of
  // Warnings().
  static absl::StatusOr<StrideHybridConfig> FromJson(std::string_view text,
                                                     std::vector<std::string>* warnings = nullptr);
  // FromJson of `model_dir`/config.json; NOT_FOUND names the path, other errors begin with it.
  static absl::StatusOr<StrideHybridConfig> Load(const std::string& model_dir,
                                                 std::vector<std::string>* warnings = nullptr);
  // What FromJson reads back equal, fields in the order of model/config_fields.h; derived values stay derived.
  std::string ToJson() const;
};

}  // namespace smt
