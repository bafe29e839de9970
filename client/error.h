// What went wrong, as a person and a program want it: the status code, one sentence, and the google.rpc details.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "grpcpp/support/status.h"

namespace smt::client {

struct Error {
  grpc::StatusCode code = grpc::StatusCode::OK;
  std::string message;
  std::string reason;                                           // ErrorInfo.reason, e.g. "SESSION_BUSY"
  std::vector<std::pair<std::string, std::string>> violations;  // BadRequest: field, what is wrong
  std::optional<absl::Duration> retry_delay;                    // RetryInfo
  std::vector<std::pair<std::string, std::string>> metadata;    // ErrorInfo.metadata, e.g. "position"

  bool ok() const { return code == grpc::StatusCode::OK; }
};

Error FromGrpc(const grpc::Status& status);

// For people: the code's name, the message, one line for each violation, and what to do about it.
std::string Explain(const Error& error);

// Of the command line programs: 0 success · 1 other errors · 2 bad usage or input · 3 not found · 4 conflict (busy,
// exists already, precondition) · 5 unavailable or out of time · 6 stored data damaged · 130 interrupted.
int ExitCode(const Error& error);

}  // namespace smt::client
