#include <algorithm>

#include "model/base/strings.h"
#include "server/service/names.h"
#include "server/service/proto_time.h"
#include "server/service/validators.h"

namespace smt {
namespace {

constexpr absl::Duration kMaxTtl = absl::Hours(24 * 365 * 100);
constexpr size_t kMaxLabelKey = 63;
constexpr size_t kMaxLabelValue = 256;
constexpr size_t kMaxData = size_t{1} << 20;

bool IsLabelKey(std::string_view key) {
  return !key.empty() && key.size() <= kMaxLabelKey && std::all_of(key.begin(), key.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
  });
}

void CheckSession(const v1::Session& session, const RequestLimits& limits, Violations* violations) {
  if (session.has_ttl()) {
    const auto ttl = FromProto(session.ttl());
    if (!ttl || *ttl <= absl::ZeroDuration() || *ttl > kMaxTtl) {
      violations->Add("session.ttl", StrCat("is ", session.ttl().seconds(), " s ", session.ttl().nanos(),
                                            " ns; allowed is more than 0 to 100 years, or unset for ever"));
    }
  }
  if (session.labels_size() > limits.max_labels) {
    violations->Add("session.labels",
                    StrCat("has ", session.labels_size(), " entries; allowed are at most ", limits.max_labels));
    return;
  }
  for (const auto& [key, value] : session.labels()) {
    if (!IsLabelKey(key)) {
      violations->Add("session.labels",
                      StrCat("has the key ", ShowValue(key), "; allowed are 1 to 63 characters of [a-z0-9_.-]"));
    } else if (value.size() > kMaxLabelValue) {
      violations->Add(StrCat("session.labels[", key, "]"),
                      StrCat("is ", ShowValue(value), ", ", value.size(), " bytes long; allowed are at most 256"));
    }
  }
}

void CheckRequestId(std::string_view request_id, Violations* violations) {
  if (request_id.empty() || IsValidRequestId(request_id)) return;
  violations->Add("request_id",
                  StrCat("is ", ShowValue(request_id), "; allowed are 1 to 64 characters of [A-Za-z0-9_.:-]"));
}

void CheckNewId(const std::string& field, std::string_view id, Violations* violations) {
  if (id.empty() || IsValidSessionId(id)) return;
  violations->Add(field, StrCat("is ", ShowValue(id),
                                "; allowed are 1 to 63 characters of [a-z0-9_.-], the first a letter or digit"));
}

template <typename Request>
void CheckExpectedPosition(const Request& request, Violations* violations) {
  if (!request.has_expected_position() || request.expected_position() >= 0) return;
  violations->Add("expected_position", StrCat("is ", request.expected_position(), "; allowed is 0 or more"));
}

void CheckCheckpointName(const std::string& field, std::string_view name, Violations* violations) {
  if (ParseCheckpointName(name)) return;
  violations->Add(field, StrCat("is ", ShowValue(name),
                                "; allowed is sessions/{id}/checkpoints/{id} with ids of 1 to 63 characters of "
                                "[a-z0-9_.-] that begin with a letter or digit"));
}

// One of `session`, which the request names too.
void CheckCheckpointOf(std::string_view session, std::string_view name, Violations* violations) {
  const auto key = ParseCheckpointName(name);
  if (!key) return CheckCheckpointName("checkpoint", name, violations);
  const auto session_id = ParseSessionName(session);
  if (!session_id || *session_id == key->session_id) return;
  violations->Add("checkpoint", StrCat("is ", ShowValue(name), ", of another session; allowed are checkpoints of ",
                                       ShowValue(session)));
}

}  // namespace

void ValidateSessionName(const std::string& field, std::string_view name, Violations* violations) {
  if (ParseSessionName(name)) return;
  violations->Add(field,
                  StrCat("is ", ShowValue(name),
                         "; allowed is sessions/{id} with an id of 1 to 63 characters of [a-z0-9_.-] that begins "
                         "with a letter or digit"));
}

void ValidatePage(int32_t page_size, Violations* violations) {
  if (page_size < 0) {
    violations->Add("page_size",
                    StrCat("is ", page_size, "; allowed is 0 (means 50) or more (1000 are returned at most)"));
  }
}

void ValidateCreateSession(const v1::CreateSessionRequest& request, const RequestLimits& limits,
                           Violations* violations) {
  CheckNewId("session_id", request.session_id(), violations);
  CheckSession(request.session(), limits, violations);
  CheckRequestId(request.request_id(), violations);
}

void ValidateUpdateSession(const v1::UpdateSessionRequest& request, const RequestLimits& limits,
                           Violations* violations) {
  ValidateSessionName("session.name", request.session().name(), violations);
  CheckSession(request.session(), limits, violations);
  for (const std::string& path : request.update_mask().paths()) {
    if (path != "ttl" && path != "labels" && path != "*") {
      violations->Add("update_mask", StrCat("has the path ", ShowValue(path), "; allowed are ttl, labels and *"));
    }
  }
  CheckRequestId(request.request_id(), violations);
}

void ValidateDeleteSession(const v1::DeleteSessionRequest& request, Violations* violations) {
  ValidateSessionName("name", request.name(), violations);
  CheckRequestId(request.request_id(), violations);
}

void ValidateForkSession(const v1::ForkSessionRequest& request, const RequestLimits& limits, Violations* violations) {
  ValidateSessionName("name", request.name(), violations);
  CheckNewId("session_id", request.session_id(), violations);
  if (!request.checkpoint().empty()) CheckCheckpointOf(request.name(), request.checkpoint(), violations);
  CheckSession(request.session(), limits, violations);
  CheckExpectedPosition(request, violations);
  CheckRequestId(request.request_id(), violations);
}

void ValidateCreateCheckpoint(const v1::CreateCheckpointRequest& request, Violations* violations) {
  ValidateSessionName("parent", request.parent(), violations);
  CheckNewId("checkpoint_id", request.checkpoint_id(), violations);
  if (IsAutomaticCheckpointId(request.checkpoint_id())) {
    violations->Add("checkpoint_id",
                    StrCat("is ", ShowValue(request.checkpoint_id()),
                           "; turn-{number}-{number} is kept for the checkpoints that the server makes itself"));
  }
  CheckExpectedPosition(request, violations);
  CheckRequestId(request.request_id(), violations);
}

void ValidateDeleteCheckpoint(const v1::DeleteCheckpointRequest& request, Violations* violations) {
  CheckCheckpointName("name", request.name(), violations);
  CheckRequestId(request.request_id(), violations);
}

void ValidateRollbackSession(const v1::RollbackSessionRequest& request, Violations* violations) {
  ValidateSessionName("name", request.name(), violations);
  switch (request.target_case()) {
    case v1::RollbackSessionRequest::kCheckpoint:
      CheckCheckpointOf(request.name(), request.checkpoint(), violations);
      break;
    case v1::RollbackSessionRequest::kTurns:
      if (request.turns() < 1) violations->Add("turns", StrCat("is ", request.turns(), "; allowed is 1 or more"));
      break;
    case v1::RollbackSessionRequest::TARGET_NOT_SET:
      violations->Add("target", "is not set; required is checkpoint or turns");
      break;
  }
  CheckRequestId(request.request_id(), violations);
}

void ValidateExportSession(const v1::ExportSessionRequest& request, Violations* violations) {
  ValidateSessionName("name", request.name(), violations);
  if (!request.checkpoint().empty()) CheckCheckpointOf(request.name(), request.checkpoint(), violations);
}

void ValidateImportSession(const v1::ImportSessionRequest& request, bool first, const RequestLimits& limits,
                           Violations* violations) {
  if (first) {
    CheckNewId("session_id", request.session_id(), violations);
    CheckSession(request.session(), limits, violations);
    CheckRequestId(request.request_id(), violations);
  } else {
    const auto refuse = [&](const char* field) {
      violations->Add(field, "is set in a later message; allowed is only the first one of the stream");
    };
    if (!request.session_id().empty()) refuse("session_id");
    if (request.has_session()) refuse("session");
    if (!request.request_id().empty()) refuse("request_id");
  }
  if (request.data().size() > kMaxData) {
    violations->Add(
        "data", StrCat("is ", request.data().size(), " bytes long; allowed are at most ", kMaxData, " in a message"));
  }
}

void ValidateVerifySession(const v1::VerifySessionRequest& request, Violations* violations) {
  ValidateSessionName("name", request.name(), violations);
}

void ValidateBackupSessions(const v1::BackupSessionsRequest& request, Violations* violations) {
  CheckNewId("backup_id", request.backup_id(), violations);
}

}  // namespace smt
