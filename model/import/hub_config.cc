#include "model/import/hub_config.h"

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/config_json.h"

namespace smt {
namespace {

using fields::Field;
using fields::Flag;
using fields::Integer;
using fields::Real;
using fields::Text;

constexpr int64_t kMany = int64_t{1} << 24;

// Reads fields and checks their ranges, one violation a field.
class HubReader {
 public:
  explicit HubReader(const nlohmann::json& root) : root_(root), reader_(root) {}

  template <typename T, typename Allowed>
  void operator()(std::string_view name, T& value, const Allowed& allowed) {
    reader_(Field{name}, value, allowed);
    fields::RangeChecker check(reader_.bad_fields());
    check(Field{name}, value, allowed);
    for (std::string& violation : check.Take()) reader_.violations().push_back(std::move(violation));
  }

  // The same for a field that must be there: a published config without it is of another layout.
  template <typename T, typename Allowed>
  void Needed(std::string_view name, T& value, const Allowed& allowed) {
    if (!root_.contains(std::string(name))) return Add(name, "missing", fields::AllowedText(allowed));
    (*this)(name, value, allowed);
  }

  // A field that must have one of these values where it is there.
  void RequireText(std::string_view name, std::initializer_list<std::string_view> allowed) {
    std::string value(*allowed.begin());
    (*this)(name, value, Text{64});
    std::vector<std::string> quoted;
    for (const std::string_view text : allowed) {
      if (value == text) return;
      quoted.push_back(StrCat("\"", text, "\""));
    }
    Add(name, StrCat("\"", fields::ShowValue(value), "\""), absl::StrJoin(quoted, " or "));
  }

  void RequireFlag(std::string_view name, bool required, std::string_view why) {
    bool value = required;
    (*this)(name, value, Flag{});
    if (value != required) Add(name, value ? "true" : "false", StrCat(required ? "true" : "false", " (", why, ")"));
  }

  void Add(std::string_view name, std::string_view value, std::string_view allowed) {
    reader_.violations().push_back(fields::Violation(name, value, allowed));
  }

  std::vector<std::string>& violations() { return reader_.violations(); }

 private:
  const nlohmann::json& root_;
  fields::JsonFieldReader reader_;
};

}  // namespace

absl::StatusOr<HubGpt2> ReadHubGpt2(std::string_view json) {
  ASSIGN_OR_RETURN(const nlohmann::json root, fields::ParseJsonObject(json));
  HubReader read(root);
  HubGpt2 gpt2;
  read.RequireText("model_type", {"gpt2"});
  read.RequireText("activation_function", {"gelu_new", "gelu_pytorch_tanh"});
  read.RequireFlag("scale_attn_weights", true, "attention is scaled by 1/sqrt(head width)");
  read.RequireFlag("scale_attn_by_inverse_layer_idx", false, "attention is not scaled by layer");
  read.Needed("vocab_size", gpt2.vocab_size, Integer{1, kMany});
  read.Needed("n_embd", gpt2.d_model, Integer{1, kMany});
  read.Needed("n_layer", gpt2.transformer.n_layer, Integer{1, kMany});
  read.Needed("n_head", gpt2.transformer.n_head, Integer{1, kMany});
  if (!root.contains("n_positions")) read("n_ctx", gpt2.transformer.n_positions, Integer{1, kMany});
  read("n_positions", gpt2.transformer.n_positions, Integer{1, kMany});
  read("n_inner", gpt2.transformer.n_inner, Integer{0, kMany, /*zero_is_derived=*/true});
  read("layer_norm_epsilon", gpt2.transformer.layer_norm_epsilon, Real{0, 1, false});
  read("tie_word_embeddings", gpt2.tie_word_embeddings, Flag{});
  read("bos_token_id", gpt2.bos_token_id, Integer{0, kMany});
  read("eos_token_id", gpt2.eos_token_id, Integer{0, kMany});
  RETURN_IF_ERROR(fields::ViolationsError(read.violations()));
  return gpt2;
}

absl::StatusOr<HubMamba> ReadHubMamba(std::string_view json) {
  ASSIGN_OR_RETURN(const nlohmann::json root, fields::ParseJsonObject(json));
  HubReader read(root);
  HubMamba mamba;
  read.RequireText("model_type", {"mamba"});
  read.RequireText("hidden_act", {"silu", "swish"});
  read.RequireFlag("use_bias", false, "in_proj and out_proj have no biases");
  read.RequireFlag("rms_norm", true, "blocks are normed by RMSNorm");
  read("use_conv_bias", mamba.conv_bias, Flag{});
  read.Needed("hidden_size", mamba.d_model, Integer{1, kMany});
  read.Needed("num_hidden_layers", mamba.ssm.n_layer, Integer{1, kMany});
  read.Needed("state_size", mamba.ssm.d_state, Integer{1, kMany});
  read("conv_kernel", mamba.ssm.d_conv, Integer{1, kMany});
  read("expand", mamba.ssm.expand, Integer{1, kMany});
  read("layer_norm_epsilon", mamba.ssm.rms_norm_epsilon, Real{0, 1, false});
  const auto rank = root.find("time_step_rank");
  if (rank == root.end() || *rank != "auto") read("time_step_rank", mamba.ssm.dt_rank, Integer{1, kMany, true});
  if (read.violations().empty()) {
    const int64_t expanded = mamba.ssm.expand * mamba.d_model;
    int64_t inner = expanded;
    read("intermediate_size", inner, Integer{1, kMany});
    if (inner != expanded)
      read.Add("intermediate_size", StrCat(inner), StrCat("expand times hidden_size (", expanded, ")"));
  }
  RETURN_IF_ERROR(fields::ViolationsError(read.violations()));
  return mamba;
}

}  // namespace smt
