// Verification: a session's token log is absorbed again from the start, and what that makes is compared with every
// state that is kept of the session.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/service/event_source.h"
#include "server/service/service_context.h"
#include "smt/v1/session_service.pb.h"

namespace smt {

using VerifyEvents = EventSource<v1::VerifySessionResponse>;

// Blocks on the store. `deadline` is the call's. RESOURCE_EXHAUSTED while as many run as may at a time.
absl::StatusOr<std::shared_ptr<VerifyEvents>> StartVerify(ServiceContext* context,
                                                          const v1::VerifySessionRequest& request, absl::Time deadline);

}  // namespace smt
