// The one list of a configuration's fields and what each may hold, and the visitors that walk such a list: load, save,
// range check, comparison and canonical text (for fingerprints) all come from it, so that none can forget a field.
//
// A list is a function template `VisitFields(config, visit)` that calls
//   visit(Field{"transformer.n_layer"}, config.transformer.n_layer, Integer{1, 1024});
// once a field, in the order it is written; a dot in the name is an object in the JSON.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "model/config.h"

namespace smt::fields {

struct Field {
  enum class Role {
    kModel,    // changes what the model computes: part of the fingerprint
    kServing,  // changes how it is used
  };
  std::string_view name;  // dotted
  Role role = Role::kModel;
};

struct Integer {
  int64_t min, max;              // inclusive
  bool zero_is_derived = false;  // 0, null and absence mean "derived from other fields"; 0 is not written
};
struct Real {
  double min, max;
  bool min_allowed = true;  // [min, max], or (min, max]
};
struct Flag {};
struct Text {
  size_t max_bytes;
};
template <typename E>
struct Choice {
  std::span<const std::pair<E, std::string_view>> names;
};

std::string AllowedText(const Integer& allowed);  // "an integer in [1, 65536]"
std::string AllowedText(const Real& allowed);     // "a number in (0, 1]"
std::string ShowReal(double value);               // shortest text that reads back the same
std::string Violation(std::string_view field, std::string_view value, std::string_view allowed);
// As a violation shows values of strangers: escaped, at most `shown` bytes.
std::string ShowValue(std::string_view value, size_t shown = 64);

// Collects the fields that are out of range.
class RangeChecker {
 public:
  // `skip`: fields already reported.
  explicit RangeChecker(const std::set<std::string, std::less<>>& skip = {}) : bad_(skip) {}

  void operator()(const Field& f, int64_t value, const Integer& allowed);
  void operator()(const Field& f, const std::optional<int64_t>& value, const Integer& allowed);
  void operator()(const Field& f, double value, const Real& allowed);
  void operator()(const Field&, bool, const Flag&) {}
  void operator()(const Field& f, const std::string& value, const Text& allowed);
  template <typename E>
  void operator()(const Field& f, E value, const Choice<E>& choice) {
    for (const auto& [known, name] : choice.names) {
      if (known == value) return;
    }
    Add(f.name, std::to_string(static_cast<int>(value)), "a named value");
  }

  // A rule over several fields: adds the violation unless one of `fields` was found bad by itself or `ok` holds.
  void Rule(bool ok, std::initializer_list<std::string_view> fields, std::string_view value, std::string_view allowed);
  // Neither the field nor the object it is in was found bad.
  bool Good(std::string_view field) const {
    return !bad_.contains(field) && !bad_.contains(field.substr(0, field.find('.')));
  }
  std::vector<std::string> Take() { return std::move(violations_); }

 private:
  void Add(std::string_view field, std::string_view value, std::string_view allowed);
  std::set<std::string, std::less<>> bad_;
  std::vector<std::string> violations_;
};

// "name=value" lines, the same on every machine. Fields of Role::kServing are left out on request.
class CanonicalText {
 public:
  explicit CanonicalText(bool with_serving_fields) : with_serving_(with_serving_fields) {}
  void operator()(const Field& f, int64_t value, const Integer&) { Add(f, std::to_string(value)); }
  void operator()(const Field& f, const std::optional<int64_t>& value, const Integer&) {
    Add(f, value ? std::to_string(*value) : "none");
  }
  void operator()(const Field& f, double value, const Real&) { Add(f, ShowReal(value)); }
  void operator()(const Field& f, bool value, const Flag&) { Add(f, value ? "true" : "false"); }
  void operator()(const Field& f, const std::string& value, const Text&) { Add(f, value); }
  template <typename E>
  void operator()(const Field& f, E value, const Choice<E>& choice) {
    for (const auto& [known, name] : choice.names) {
      if (known == value) Add(f, name);
    }
  }
  std::vector<std::pair<std::string, std::string>> Take() { return std::move(lines_); }

 private:
  void Add(const Field& f, std::string_view value) {
    if (with_serving_ || f.role == Field::Role::kModel) lines_.emplace_back(f.name, value);
  }
  const bool with_serving_;
  std::vector<std::pair<std::string, std::string>> lines_;
};

inline constexpr std::pair<WindowPolicy, std::string_view> kWindowPolicyNames[] = {{WindowPolicy::kHop, "hop"},
                                                                                   {WindowPolicy::kSlide, "slide"}};
inline constexpr std::pair<PoolScope, std::string_view> kPoolScopeNames[] = {{PoolScope::kWindow, "window"},
                                                                             {PoolScope::kTokens, "tokens"}};
inline constexpr std::pair<TransformerKind, std::string_view> kTransformerKindNames[] = {
    {TransformerKind::kGpt2, "gpt2"}, {TransformerKind::kSimple, "simple"}};
inline constexpr std::pair<SsmKind, std::string_view> kSsmKindNames[] = {{SsmKind::kMamba, "mamba"},
                                                                         {SsmKind::kSimple, "simple"}};

// The fields of StrideHybridConfig. Upper bounds are far above any sensible model and low enough that no product of
// them (elements of a tensor, bytes of a state, parameters of a model) leaves an int64.
template <typename Config, typename Visitor>
requires std::is_same_v<std::remove_const_t<Config>, StrideHybridConfig>
void VisitFields(Config& c, Visitor&& visit) {
  using enum Field::Role;
  constexpr int64_t kVocab = int64_t{1} << 24, kWidth = 1 << 16, kLayers = 1024;
  visit(Field{"vocab_size"}, c.vocab_size, Integer{1, kVocab});
  visit(Field{"d_model"}, c.d_model, Integer{1, kWidth});
  visit(Field{"n_ssm_outputs"}, c.n_ssm_outputs, Integer{1, kWidth});
  visit(Field{"m_input_tokens"}, c.m_input_tokens, Integer{1, kWidth});
  visit(Field{"stride"}, c.stride, Integer{1, kWidth});
  visit(Field{"window_policy", kServing}, c.window_policy, Choice<WindowPolicy>{kWindowPolicyNames});
  visit(Field{"pool_scope"}, c.pool_scope, Choice<PoolScope>{kPoolScopeNames});
  visit(Field{"tie_word_embeddings"}, c.tie_word_embeddings, Flag{});
  visit(Field{"bos_token_id", kServing}, c.bos_token_id, Integer{0, kVocab - 1});
  visit(Field{"eos_token_id", kServing}, c.eos_token_id, Integer{0, kVocab - 1});
  visit(Field{"transformer.kind"}, c.transformer.kind, Choice<TransformerKind>{kTransformerKindNames});
  visit(Field{"transformer.n_layer"}, c.transformer.n_layer, Integer{1, kLayers});
  visit(Field{"transformer.n_head"}, c.transformer.n_head, Integer{1, 4096});
  visit(Field{"transformer.n_positions"}, c.transformer.n_positions, Integer{1, int64_t{1} << 20});
  visit(Field{"transformer.n_inner"}, c.transformer.n_inner, Integer{0, int64_t{1} << 20, /*zero_is_derived=*/true});
  visit(Field{"transformer.layer_norm_epsilon"}, c.transformer.layer_norm_epsilon, Real{0, 1, /*min_allowed=*/false});
  visit(Field{"ssm.kind"}, c.ssm.kind, Choice<SsmKind>{kSsmKindNames});
  visit(Field{"ssm.n_layer"}, c.ssm.n_layer, Integer{1, kLayers});
  visit(Field{"ssm.d_state"}, c.ssm.d_state, Integer{1, 4096});
  visit(Field{"ssm.d_conv"}, c.ssm.d_conv, Integer{1, 64});
  visit(Field{"ssm.expand"}, c.ssm.expand, Integer{1, 64});
  visit(Field{"ssm.dt_rank"}, c.ssm.dt_rank, Integer{0, kWidth, /*zero_is_derived=*/true});
  visit(Field{"ssm.rms_norm_epsilon"}, c.ssm.rms_norm_epsilon, Real{0, 1, /*min_allowed=*/false});
}

}  // namespace smt::fields

namespace smt {

// Fields in which two configurations differ, "name: a != b" each; derived values are compared as derived.
std::vector<std::string> DifferingFields(const StrideHybridConfig& a, const StrideHybridConfig& b);
// The fields that change what the model computes, derived ones (dt_rank 0, n_inner 0) filled in: one "name=value" line
// each. The config's part of the model fingerprint.
std::string FingerprintText(const StrideHybridConfig& config);

}  // namespace smt
