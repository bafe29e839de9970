#include "model/config_fields.h"

#include <charconv>
#include <cmath>

#include "absl/strings/escaping.h"
#include "model/base/strings.h"

namespace smt::fields {

std::string ShowReal(double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), value).ptr;
  return std::string(text, end);
}

std::string AllowedText(const Integer& allowed) {
  return StrCat("an integer in [", allowed.min, ", ", allowed.max, "]");
}

std::string AllowedText(const Real& allowed) {
  return StrCat("a number in ", allowed.min_allowed ? "[" : "(", ShowReal(allowed.min), ", ", ShowReal(allowed.max),
                "]");
}

std::string ShowValue(std::string_view value, size_t shown) {
  if (value.size() <= shown) return absl::CHexEscape(ToAbsl(value));
  return StrCat(absl::CHexEscape(ToAbsl(value.substr(0, shown))), "...");
}

std::string Violation(std::string_view field, std::string_view value, std::string_view allowed) {
  return StrCat(field, " is ", value, ", must be ", allowed);
}

void RangeChecker::Add(std::string_view field, std::string_view value, std::string_view allowed) {
  violations_.push_back(Violation(field, value, allowed));
  bad_.emplace(field);
}

void RangeChecker::operator()(const Field& f, int64_t value, const Integer& allowed) {
  if (!Good(f.name) || (value >= allowed.min && value <= allowed.max)) return;
  Add(f.name, StrCat(value), AllowedText(allowed));
}

void RangeChecker::operator()(const Field& f, const std::optional<int64_t>& value, const Integer& allowed) {
  if (value) (*this)(f, *value, allowed);
}

void RangeChecker::operator()(const Field& f, double value, const Real& allowed) {
  const bool above = allowed.min_allowed ? value >= allowed.min : value > allowed.min;
  if (!Good(f.name) || (std::isfinite(value) && above && value <= allowed.max)) return;
  Add(f.name, ShowReal(value), AllowedText(allowed));
}

void RangeChecker::operator()(const Field& f, const std::string& value, const Text& allowed) {
  if (!Good(f.name) || value.size() <= allowed.max_bytes) return;
  Add(f.name, StrCat(value.size(), " bytes long"), StrCat("at most ", allowed.max_bytes, " bytes"));
}

void RangeChecker::Rule(bool ok, std::initializer_list<std::string_view> fields, std::string_view value,
                        std::string_view allowed) {
  if (ok) return;
  for (const std::string_view field : fields) {
    if (!Good(field)) return;
  }
  violations_.push_back(Violation(*fields.begin(), value, allowed));
}

}  // namespace smt::fields

namespace smt {
namespace {
StrideHybridConfig WithDerivedValues(StrideHybridConfig config) {
  config.transformer.n_inner = config.mlp_width();
  config.ssm.dt_rank = config.dt_rank();
  return config;
}
}  // namespace

std::vector<std::string> DifferingFields(const StrideHybridConfig& a, const StrideHybridConfig& b) {
  fields::CanonicalText of_a(/*with_serving_fields=*/true), of_b(/*with_serving_fields=*/true);
  const StrideHybridConfig full_a = WithDerivedValues(a), full_b = WithDerivedValues(b);
  fields::VisitFields(full_a, of_a);
  fields::VisitFields(full_b, of_b);
  const auto in_a = of_a.Take(), in_b = of_b.Take();
  std::vector<std::string> differing;
  for (size_t i = 0; i < in_a.size(); ++i) {
    if (in_a[i].second != in_b[i].second) {
      differing.push_back(StrCat(in_a[i].first, ": ", in_a[i].second, " != ", in_b[i].second));
    }
  }
  return differing;
}

std::string FingerprintText(const StrideHybridConfig& config) {
  fields::CanonicalText text(/*with_serving_fields=*/false);
  const StrideHybridConfig full = WithDerivedValues(config);
  fields::VisitFields(full, text);
  std::string lines;
  for (const auto& [name, value] : text.Take()) lines += StrCat(name, "=", value, "\n");
  return lines;
}

}  // namespace smt
