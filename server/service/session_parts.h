// What the handlers of SessionService share.
#pragma once

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/service/service_context.h"
#include "server/session/session_manager.h"
#include "smt/v1/session_service.pb.h"

namespace smt {

void ToProto(const SessionInfo& info, v1::Session* out);

// Of a validated message; infinite when unset.
absl::Duration TtlOf(const v1::Session& session);
std::map<std::string, std::string> LabelsOf(const v1::Session& session);

// Counts the operation (smt_session_operations_total) and passes its status on.
absl::Status Counted(ServiceContext* context, const char* op, absl::Status status);

}  // namespace smt
