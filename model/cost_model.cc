#include "model/cost_model.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "model/parameter_statistics.h"
#include "model/state_layout.h"

namespace smt {
namespace {

constexpr double kFloatBytes = 4;  // caches and states are float32

TokenCost Sum(const TokenCost& a, const TokenCost& b, double b_share) {
  return {a.multiply_adds + b_share * b.multiply_adds, a.weight_bytes + b_share * b.weight_bytes,
          a.session_bytes + b_share * b.session_bytes};
}

std::string Engineering(double value) {
  if (value >= 1e9) return absl::StrFormat("%.1fG", value / 1e9);
  if (value >= 1e5) return absl::StrFormat("%.2fM", value / 1e6);
  if (value >= 1e4) return absl::StrFormat("%.1fk", value / 1e3);
  return absl::StrFormat("%.0f", value);
}

// As the published table has them: millions below a billion, 1.00M and more with two decimals.
std::string Millions(double value) {
  if (value >= 1e9) return absl::StrFormat("%.1fG", value / 1e9);
  if (value >= 1e6) return absl::StrFormat("%.2fM", value / 1e6);
  return absl::StrFormat("%.3fM", value / 1e6);
}

std::string TwoDigits(double value) {
  const double unit = std::pow(10, std::max(0.0, std::floor(std::log10(value)) - 1));
  return absl::StrFormat("%.0f", std::round(value / unit) * unit);
}

std::string Grouped(double value) {
  std::string digits = absl::StrFormat("%.0f", value);
  for (size_t i = digits.size(); i > 3; i -= 3) digits.insert(i - 3, 1, ',');
  return digits;
}

}  // namespace

CostModel::CostModel(const StrideHybridConfig& config, double bytes_per_weight)
    : config_(config), bytes_per_weight_(bytes_per_weight) {}

double CostModel::BlockWeights() const {
  return static_cast<double>(CountParameters(config_).of(ModelPart::kTransformer));
}

double CostModel::Column(double keys) const {
  const double d = static_cast<double>(config_.d_model), mlp = static_cast<double>(config_.mlp_width());
  // Query, key, value and output projections; scores and weighted sum; the MLP's two matrices.
  return static_cast<double>(config_.transformer.n_layer) * (4 * d * d + 2 * keys * d + 2 * d * mlp);
}

double CostModel::Rows(int64_t rows) const {
  const double count = static_cast<double>(rows);
  return count * Column((count + 1) / 2);
}

TokenCost CostModel::Write() const {
  const double d = static_cast<double>(config_.d_model), inner = static_cast<double>(config_.d_inner());
  const double rows =
      static_cast<double>(config_.pool_scope == PoolScope::kWindow ? config_.window() : config_.m_input_tokens);
  const double state = static_cast<double>(config_.ssm.d_state), rank = static_cast<double>(config_.dt_rank());
  const double layers = static_cast<double>(config_.ssm.n_layer);
  const ParameterStatistics parameters = CountParameters(config_);
  TokenCost cost;
  cost.multiply_adds = rows * d * d + d * d + 2 * rows * d;  // keys, query, scores and weighted sum
  cost.multiply_adds += layers * (config_.ssm.kind == SsmKind::kMamba
                                      ? 3 * d * inner  // in_proj (two halves), out_proj
                                            + inner * static_cast<double>(config_.ssm.d_conv)  // convolution
                                            + inner * (2 * rank + 2 * state)                   // time step, B, C
                                            + 4 * inner * state  // the recurrence and its reading
                                      : 2 * d * d + 2 * d);
  cost.weight_bytes =
      bytes_per_weight_ * static_cast<double>(parameters.of(ModelPart::kPooling) + parameters.of(ModelPart::kSsm));
  const StateLayout layout(config_);
  cost.session_bytes = kFloatBytes * (rows * d + 2 * static_cast<double>(layout.conv_numel() + layout.state_numel()));
  return cost;
}

TokenCost CostModel::Ingest() const { return Sum({}, Write(), 1.0 / static_cast<double>(config_.stride)); }

TokenCost CostModel::Hop() const {
  const double s = static_cast<double>(config_.stride), d = static_cast<double>(config_.d_model);
  const int64_t refill_rows = config_.window() - config_.stride;
  // The s - 1 tokens after a write see the refill's rows and the columns so far; the refill's last row is the logits of
  // the writing token itself.
  const double columns = s - 1, mean_keys = static_cast<double>(refill_rows) + (columns + 1) / 2;
  const double kv = 2 * static_cast<double>(config_.transformer.n_layer) * d * kFloatBytes;  // of one row
  TokenCost cost;
  cost.multiply_adds = (Rows(refill_rows) + columns * Column(mean_keys)) / s + HeadWeights();
  cost.weight_bytes = bytes_per_weight_ * (BlockWeights() + HeadWeights());
  cost.session_bytes = kv * (static_cast<double>(refill_rows) + columns * (mean_keys + 1)) / s;
  return Sum(cost, Write(), 1 / s);
}

TokenCost CostModel::Slide() const {
  TokenCost cost;
  cost.multiply_adds = Rows(config_.window()) + HeadWeights();
  cost.weight_bytes = bytes_per_weight_ * (BlockWeights() + HeadWeights());
  cost.session_bytes = kFloatBytes * static_cast<double>(config_.window() * config_.d_model);
  return Sum(cost, Write(), 1.0 / static_cast<double>(config_.stride));
}

TokenCost CostModel::CachedGpt2(int64_t context) const {
  const double keys = static_cast<double>(context) + 1;
  TokenCost cost;
  cost.multiply_adds = Column(keys) + HeadWeights();
  cost.weight_bytes = bytes_per_weight_ * (BlockWeights() + HeadWeights());
  cost.session_bytes = CacheBytes(context + 1);
  return cost;
}

double CostModel::CacheBytes(int64_t context) const {
  return 2 * kFloatBytes * static_cast<double>(config_.transformer.n_layer) * static_cast<double>(config_.d_model) *
         static_cast<double>(context);
}

CostModel::Published CostModel::PublishedNumbers(int64_t full_context) const {
  const double w = static_cast<double>(config_.window()), d = static_cast<double>(config_.d_model);
  const double s = static_cast<double>(config_.stride), l = static_cast<double>(full_context);
  Published p{};
  p.window_attention = w * w * d;
  p.pooling = w * d * d / s;
  p.ssm = d * d / s;
  p.total = p.window_attention + p.pooling + p.ssm;
  p.full_attention = l * l * d;
  p.window_activations = w * d;
  p.full_activations = l * d;
  return p;
}

std::string CostModel::Report(int64_t full_context) const {
  const Published p = PublishedNumbers(full_context);
  std::string text = absl::StrFormat(
      "Published figures (one attention layer, multiply-adds a token)\n"
      "  window attention  W^2 D      %8s\n"
      "  pooling           W D^2 / s  %8s\n"
      "  SSM               D^2 / s    %8s\n"
      "  total                        %8s\n"
      "  full attention    L^2 D      %8s at L = %s, about %s times the total (a whole sequence's matrix against "
      "one token)\n"
      "  activations       W D        %8s floats; L D %s floats, %.0f times\n",
      Millions(p.window_attention), Millions(p.pooling), Millions(p.ssm), Millions(p.total), Millions(p.full_attention),
      Grouped(static_cast<double>(full_context)), TwoDigits(p.full_attention / p.total), Grouped(p.window_activations),
      Grouped(p.full_activations), p.full_activations / p.window_activations);
  absl::StrAppendFormat(&text,
                        "Like for like (per token, all layers, MLP and head included; %.0f bytes a weight)\n"
                        "  %-26s %14s %14s %14s\n",
                        bytes_per_weight_, "", "multiply-adds", "weight bytes", "session bytes");
  const auto row = [&](const std::string& name, const TokenCost& cost) {
    absl::StrAppendFormat(&text, "  %-26s %14s %14s %14s\n", name, Engineering(cost.multiply_adds),
                          Engineering(cost.weight_bytes), Engineering(cost.session_bytes));
  };
  row("ingest (prompt)", Ingest());
  row("hop", Hop());
  row("slide", Slide());
  for (const int64_t context : {int64_t{1024}, full_context, 100 * full_context / 4}) {
    row(absl::StrFormat("GPT-2, cache of %d", context), CachedGpt2(context));
  }
  const double state = static_cast<double>(StateLayout(config_).bytes());
  absl::StrAppendFormat(&text, "A session holds %s bytes at any length; that GPT-2's cache %s bytes at %d tokens\n",
                        Engineering(state), Engineering(CacheBytes(full_context)), full_context);
  return text;
}

}  // namespace smt
