#include "server/service/violations.h"

#include <utility>

#include "model/base/strings.h"
#include "server/service/utf8.h"

namespace smt {
namespace {

constexpr size_t kMaxViolations = 32;
constexpr size_t kMaxValueBytes = 64;

}  // namespace

std::string ShowValue(std::string_view value) {
  const bool cut = value.size() > kMaxValueBytes;
  std::string_view part = value.substr(0, kMaxValueBytes);
  if (cut) part.remove_suffix(IncompleteUtf8Suffix(part));
  std::string clean;
  AppendSanitizedUtf8(part, &clean);
  for (char& c : clean) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  return StrCat("'", clean, cut ? "...'" : "'");
}

void Violations::Add(std::string field, std::string description) {
  violations_.push_back({std::move(field), std::move(description)});
}

absl::Status Violations::ToStatus() const {
  if (violations_.empty()) return absl::OkStatus();
  std::string message = StrCat(violations_[0].field, ": ", violations_[0].description);
  if (violations_.size() > 1) {
    message +=
        StrCat(" (and ", violations_.size() - 1, violations_.size() == 2 ? " more violation)" : " more violations)");
  }
  StatusDetails details{.reason = "INVALID_REQUEST"};
  details.violations.assign(violations_.begin(), violations_.begin() + std::min(violations_.size(), kMaxViolations));
  return WithDetails(absl::InvalidArgumentError(message), details);
}

}  // namespace smt
