// What an error tells a program besides its code and sentence, carried in an absl::Status without protobuf. The service
// turns it into google.rpc details (ErrorInfo, BadRequest, ResourceInfo, RetryInfo, PreconditionFailure, QuotaFailure).
//
//   return WithDetails(absl::AbortedError("session 'a' is being written by another request"),
//                      {.reason = "SESSION_BUSY", .retry_delay = absl::Milliseconds(100)});
//
// A status without details gets the usual ones of its code there, so layers add only what they know better.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace smt {

struct StatusDetails {
  struct FieldViolation {
    std::string field = {};        // path in the request: "spec.sampling.top_p"
    std::string description = {};  // what it is and what is allowed
  };
  struct Resource {
    std::string type = {};  // "session", "checkpoint", "request", "model"
    std::string name = {};  // "sessions/a"
    std::string description = {};
  };
  struct Precondition {
    std::string type = {};     // "MODEL", "FORMAT_VERSION", "SUPERSEDED", "DIVERGED"
    std::string subject = {};  // the resource
    std::string description = {};
  };
  struct Quota {
    std::string subject = {};
    std::string description = {};
  };

  std::string reason = {};                           // UPPER_SNAKE_CASE: ErrorInfo.reason
  std::map<std::string, std::string> metadata = {};  // ErrorInfo.metadata: "position", "first_position", ...
  std::vector<FieldViolation> violations = {};
  std::optional<Resource> resource = {};
  std::optional<absl::Duration> retry_delay = {};
  std::vector<Precondition> preconditions = {};
  std::vector<Quota> quotas = {};

  bool empty() const;
};

// `status` with `details` instead of what it carried. OK statuses stay as they are.
absl::Status WithDetails(absl::Status status, const StatusDetails& details);

// Empty when it carries none.
StatusDetails GetDetails(const absl::Status& status);

}  // namespace smt
