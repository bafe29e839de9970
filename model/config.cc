#include "model/config.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/config_fields.h"
#include "model/config_json.h"
#include "model/parameter_statistics.h"
#include "model/state_layout.h"

namespace smt {
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;

template <typename E, size_t kCount>
std::string_view NameOf(E value, const std::pair<E, std::string_view> (&names)[kCount]) {
  for (const auto& [known, name] : names) {
    if (known == value) return name;
  }
  return "unknown";
}

// Ranges of single fields first, then the rules between fields that are good by themselves.
std::vector<std::string> Violations(const StrideHybridConfig& c,
                                    const std::set<std::string, std::less<>>& reported = {}) {
  fields::RangeChecker check(reported);
  fields::VisitFields(c, check);
  const int64_t d = c.d_model, heads = c.transformer.n_head, m = c.m_input_tokens, s = c.stride;
  check.Rule(s <= m, {"stride", "m_input_tokens"}, StrCat(s), StrCat("at most m_input_tokens (", m, ")"));
  check.Rule(c.window_policy != WindowPolicy::kHop || s != m, {"stride", "m_input_tokens", "window_policy"}, StrCat(s),
             StrCat("less than m_input_tokens (", m, ") under window_policy \"hop\""));
  check.Rule(c.window() <= c.transformer.n_positions, {"transformer.n_positions", "n_ssm_outputs", "m_input_tokens"},
             StrCat(c.transformer.n_positions), StrCat("at least n_ssm_outputs + m_input_tokens (", c.window(), ")"));
  check.Rule(heads < 1 || d % heads == 0, {"d_model", "transformer.n_head"}, StrCat(d),
             StrCat("a multiple of transformer.n_head (", heads, ")"));
  for (const auto& [name, id] :
       {std::pair{"bos_token_id", c.bos_token_id}, std::pair{"eos_token_id", c.eos_token_id}}) {
    if (!id) continue;
    check.Rule(*id < c.vocab_size, {name, "vocab_size"}, StrCat(*id),
               StrCat("in [0, vocab_size) (vocab_size is ", c.vocab_size, ")"));
  }
  return check.Take();
}

std::string Count(int64_t value) {
  if (value >= 10'000'000) return absl::StrFormat("%.1fM", static_cast<double>(value) / 1e6);
  if (value >= 1'000'000) return absl::StrFormat("%.2fM", static_cast<double>(value) / 1e6);
  return value >= 10'000 ? absl::StrFormat("%.1fk", static_cast<double>(value) / 1e3) : StrCat(value);
}

}  // namespace

std::string_view Name(WindowPolicy policy) { return NameOf(policy, fields::kWindowPolicyNames); }
std::string_view Name(PoolScope scope) { return NameOf(scope, fields::kPoolScopeNames); }
std::string_view Name(TransformerKind kind) { return NameOf(kind, fields::kTransformerKindNames); }
std::string_view Name(SsmKind kind) { return NameOf(kind, fields::kSsmKindNames); }

std::optional<WindowPolicy> ParseWindowPolicy(std::string_view name) {
  for (const auto& [policy, known] : fields::kWindowPolicyNames) {
    if (known == name) return policy;
  }
  return std::nullopt;
}

std::vector<std::string> StrideHybridConfig::Validate() const { return Violations(*this); }

std::vector<std::string> StrideHybridConfig::Warnings() const {
  std::vector<std::string> warnings;
  if (!Validate().empty()) return warnings;
  const auto warn = [&](bool unwise, auto&&... sentence) {
    if (unwise) warnings.push_back(StrCat(sentence...));
  };
  warn(stride == 1, "stride is 1: every token writes to memory, so each pays for pooling and the SSM");
  const int64_t kept = m_input_tokens - stride;
  warn(window_policy == WindowPolicy::kHop && stride > 1 && kept < std::min<int64_t>(8, stride), "stride is ", stride,
       " of m_input_tokens ", m_input_tokens, ": under hop a window starts with only ", kept,
       kept == 1 ? " token" : " tokens", " after each write");
  warn(n_ssm_outputs == 1, "n_ssm_outputs is 1: the transformer sees only the newest memory vector");
  warn(head_dim() % 2 == 1, "d_model / transformer.n_head is ", head_dim(),
       ", an odd head width: vector instructions are used badly");
  warn(head_dim() > 256, "d_model / transformer.n_head is ", head_dim(), ": heads wider than 256 have no fast path");
  warn(head_dim() < 8, "d_model / transformer.n_head is ", head_dim(), ": heads narrower than 8 attend poorly");
  warn(mlp_width() < d_model, "transformer.n_inner is ", mlp_width(), ", narrower than d_model (", d_model, ")");
  warn(transformer.layer_norm_epsilon > 1e-2, "transformer.layer_norm_epsilon is ",
       fields::ShowReal(transformer.layer_norm_epsilon), ": it drowns the variance of the activations");
  warn(ssm.rms_norm_epsilon > 1e-2, "ssm.rms_norm_epsilon is ", fields::ShowReal(ssm.rms_norm_epsilon),
       ": it drowns the activations");
  warn(ssm.kind == SsmKind::kMamba && dt_rank() > d_model, "ssm.dt_rank is ", dt_rank(), ", more than d_model (",
       d_model, ")");
  const double state_mb = static_cast<double>(StateLayout(*this).bytes()) / 1e6;
  warn(state_mb > 64, "a session's state is ", absl::StrFormat("%.0f", state_mb),
       " MB: saving and restoring sessions will be slow");
  warn(!eos_token_id, "eos_token_id is not set: generation ends only by a limit or a stop condition of the request");
  return warnings;
}

std::string StrideHybridConfig::Summary() const {
  const ParameterStatistics parameters = CountParameters(*this);
  const StateLayout layout(*this);
  std::string text = absl::StrFormat(
      "Stride Memory Transformer: %s + %s, %s parameters\n"
      "  vocabulary V %d, width D %d, head %s\n"
      "  window W %d: n %d memory vectors + m %d tokens, a write every s %d tokens\n"
      "  policy %s, pooling over %s\n"
      "  transformer: %d layers, %d heads of %d, MLP %d, %d positions\n",
      Name(transformer.kind), Name(ssm.kind), Count(parameters.total()), vocab_size, d_model,
      tie_word_embeddings ? "tied to the embedding" : "untied", window(), n_ssm_outputs, m_input_tokens, stride,
      Name(window_policy), Name(pool_scope), transformer.n_layer, transformer.n_head, head_dim(), mlp_width(),
      transformer.n_positions);
  if (ssm.kind == SsmKind::kMamba) {
    absl::StrAppendFormat(&text, "  ssm: %d layers, inner width %d, state %d, convolution %d, time step rank %d\n",
                          ssm.n_layer, d_inner(), ssm.d_state, ssm.d_conv, dt_rank());
  } else {
    absl::StrAppendFormat(&text, "  ssm: %d layers, diagonal, state %d\n", ssm.n_layer, d_model);
  }
  absl::StrAppend(&text, "  parameters:");
  const char* separator = " ";
  for (const auto& [part, count] : parameters.by_part) {
    text += StrCat(separator, Name(part), " ", Count(count));
    separator = ", ";
  }
  absl::StrAppendFormat(
      &text, "\n  state: %d bytes a session (memory %d, SSM %d), whatever its length; 4 bytes a token of log\n",
      layout.bytes(), 4 * n_ssm_outputs * d_model, 4 * (layout.conv_numel() + layout.state_numel()));
  return text;
}

absl::StatusOr<StrideHybridConfig> StrideHybridConfig::FromJson(std::string_view text,
                                                                std::vector<std::string>* warnings) {
  ASSIGN_OR_RETURN(const nlohmann::json root, fields::ParseJsonObject(text));
  StrideHybridConfig config;
  fields::JsonFieldReader reader(root);
  fields::VisitFields(config, reader);
  std::vector<std::string> violations = std::move(reader.violations());
  if (const auto type = root.find("model_type"); type != root.end() && *type != "stride_hybrid") {
    violations.push_back(fields::Violation(
        "model_type",
        type->is_string() ? StrCat("\"", fields::ShowValue(type->get<std::string>()), "\"") : "not a string",
        "\"stride_hybrid\" (a folder of another model is made into one by `smt_model import`)"));
  }
  std::vector<std::string> rest = Violations(config, reader.bad_fields());
  violations.insert(violations.end(), rest.begin(), rest.end());
  RETURN_IF_ERROR(fields::ViolationsError(violations));
  if (warnings != nullptr) {
    *warnings = reader.UnknownKeys({"model_type"});
    const std::vector<std::string> unwise = config.Warnings();
    warnings->insert(warnings->end(), unwise.begin(), unwise.end());
  }
  return config;
}

absl::StatusOr<StrideHybridConfig> StrideHybridConfig::Load(const std::string& model_dir,
                                                            std::vector<std::string>* warnings) {
  const std::string path = model_dir + "/config.json";
  ASSIGN_OR_RETURN(const std::string text, fields::ReadSmallFile(path, kMaxConfigBytes));
  absl::StatusOr<StrideHybridConfig> config = FromJson(text, warnings);
  if (!config.ok()) return absl::Status(config.status().code(), StrCat(path, ": ", config.status().message()));
  return config;
}

std::string StrideHybridConfig::ToJson() const {
  nlohmann::ordered_json root;
  root["model_type"] = "stride_hybrid";
  fields::JsonFieldWriter writer(root);
  fields::VisitFields(*this, writer);
  return root.dump(1) + "\n";
}

}  // namespace smt
