// The one place where absl::Status becomes grpc::Status with google.rpc details.
#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace smt {

// Every error gets ErrorInfo{reason, domain "smt.serve", metadata}; ABORTED, UNAVAILABLE and RESOURCE_EXHAUSTED get
// RetryInfo; the rest comes from GetDetails(status). The serialised google.rpc.Status stays within 4 KiB: larger
// trailers break clients, so violations and metadata are dropped from the end until it fits. INTERNAL and UNKNOWN are
// our own bugs: their message is logged and replaced by a sentence that says so.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace smt
