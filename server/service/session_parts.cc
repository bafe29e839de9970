#include "server/service/session_parts.h"

#include "server/service/names.h"
#include "server/service/proto_time.h"

namespace smt {

void ToProto(const SessionInfo& info, v1::Session* out) {
  out->set_name(SessionName(info.id));
  out->set_position(info.position);
  out->set_branch(info.branch);
  *out->mutable_create_time() = ToProto(info.create_time);
  *out->mutable_update_time() = ToProto(info.update_time);
  if (info.expire_time != absl::InfiniteFuture()) *out->mutable_expire_time() = ToProto(info.expire_time);
  if (info.ttl != absl::InfiniteDuration()) *out->mutable_ttl() = ToProto(info.ttl);
  out->mutable_labels()->insert(info.labels.begin(), info.labels.end());
  out->set_etag(info.etag);
  out->set_model_fingerprint(info.model_fingerprint);
  out->set_active(info.active);
}

absl::Duration TtlOf(const v1::Session& session) {
  return session.has_ttl() ? *FromProto(session.ttl()) : absl::InfiniteDuration();
}

std::map<std::string, std::string> LabelsOf(const v1::Session& session) {
  return {session.labels().begin(), session.labels().end()};
}

absl::Status Counted(ServiceContext* context, const char* op, absl::Status status) {
  context->metrics->Add(Metric::kSessionOperationsTotal, 1,
                        {op, status.ok() ? "ok" : absl::StatusCodeToString(status.code())});
  return status;
}

}  // namespace smt
