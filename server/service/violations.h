// Collects everything that is wrong with a request, so that the client learns it at once.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "server/base/status_details.h"

namespace smt {

// A value as it is shown in errors: in single quotes, cut to 64 bytes, ill-formed and control bytes replaced.
std::string ShowValue(std::string_view value);

class Violations {
 public:
  // `field`: path in the request ("spec.sampling.top_p"); `description`: its value and what is allowed.
  void Add(std::string field, std::string description);
  bool empty() const { return violations_.empty(); }
  // OK when empty. INVALID_ARGUMENT with the first violation in the message and 32 at most in the details.
  absl::Status ToStatus() const;

 private:
  std::vector<StatusDetails::FieldViolation> violations_;
};

}  // namespace smt
