// What the handlers of SessionService share: sessions as messages, and the count of operations.
#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "server/service/service_context.h"
#include "smt/v1/session_service.pb.h"

namespace smt {

inline constexpr char kSessionService[] = "smt.v1.SessionService";

void ToProto(const SessionInfo& info, v1::Session* out);

// Of a session that is to be made. Unset ttl: for ever.
std::map<std::string, std::string> Labels(const v1::Session& session);
absl::Duration Ttl(const v1::Session& session);

// Counts the operation and passes its status on.
absl::Status Counted(ServiceContext* context, const char* op, absl::Status status);
// The same, and fills `out` when there is a session.
absl::Status Answer(ServiceContext* context, const char* op, const absl::StatusOr<SessionInfo>& info, v1::Session* out);

}  // namespace smt
