#include "server/service/session_service.h"

#include <string>
#include <utility>

#include "server/service/names.h"
#include "server/service/session_messages.h"
#include "server/service/validators.h"

namespace smt {
SessionServiceImpl::Unary* SessionServiceImpl::CreateSession(Call*, const Bytes* request, Bytes* response) {
  return RunUnary<v1::CreateSessionRequest, v1::CreateSessionResponse>(
      context_, request, response, kSessionService, "CreateSession",
      [context = context_](const v1::CreateSessionRequest& in, v1::CreateSessionResponse* out) -> absl::Status {
        Violations violations;
        ValidateCreateSession(in, context->limits, &violations);
        if (!violations.empty()) return violations.ToStatus();
        return Answer(
            context, "create",
            context->sessions->Create(in.session_id(), Ttl(in.session()), Labels(in.session()), in.request_id()),
            out->mutable_session());
      });
}

SessionServiceImpl::Unary* SessionServiceImpl::GetSession(Call*, const Bytes* request, Bytes* response) {
  return RunUnary<v1::GetSessionRequest, v1::GetSessionResponse>(
      context_, request, response, kSessionService, "GetSession",
      [context = context_](const v1::GetSessionRequest& in, v1::GetSessionResponse* out) -> absl::Status {
        Violations violations;
        ValidateSessionName("name", in.name(), &violations);
        if (!violations.empty()) return violations.ToStatus();
        return Answer(context, "get", context->sessions->Get(*ParseSessionName(in.name())), out->mutable_session());
      });
}

SessionServiceImpl::Unary* SessionServiceImpl::ListSessions(Call*, const Bytes* request, Bytes* response) {
  return RunUnary<v1::ListSessionsRequest, v1::ListSessionsResponse>(
      context_, request, response, kSessionService, "ListSessions",
      [context = context_](const v1::ListSessionsRequest& in, v1::ListSessionsResponse* out) -> absl::Status {
        Violations violations;
        ValidatePage(in.page_size(), &violations);
        if (!violations.empty()) return violations.ToStatus();
        const absl::StatusOr<SessionManager::Page> page = context->sessions->List(in.page_size(), in.page_token());
        if (page.ok()) {
          for (const SessionInfo& info : page->sessions) ToProto(info, out->add_sessions());
          out->set_next_page_token(page->next_page_token);
        }
        return Counted(context, "list", page.status());
      });
}

SessionServiceImpl::Unary* SessionServiceImpl::UpdateSession(Call*, const Bytes* request, Bytes* response) {
  return RunUnary<v1::UpdateSessionRequest, v1::UpdateSessionResponse>(
      context_, request, response, kSessionService, "UpdateSession",
      [context = context_](const v1::UpdateSessionRequest& in, v1::UpdateSessionResponse* out) -> absl::Status {
        Violations violations;
        ValidateUpdateSession(in, context->limits, &violations);
        if (!violations.empty()) return violations.ToStatus();
        const v1::Session& session = in.session();
        bool ttl = false, labels = false;
        for (const std::string& path : in.update_mask().paths()) {
          ttl |= path == "ttl" || path == "*";
          labels |= path == "labels" || path == "*";
        }
        if (in.update_mask().paths().empty()) {
          ttl = session.has_ttl();
          labels = !session.labels().empty();
        }
        SessionManager::Update update;
        if (ttl) update.ttl = Ttl(session);
        if (labels) update.labels = Labels(session);
        if (!session.etag().empty()) update.etag = session.etag();
        update.request_id = in.request_id();
        return Answer(context, "update", context->sessions->UpdateSession(*ParseSessionName(session.name()), update),
                      out->mutable_session());
      });
}

SessionServiceImpl::Unary* SessionServiceImpl::DeleteSession(Call*, const Bytes* request, Bytes* response) {
  return RunUnary<v1::DeleteSessionRequest, v1::DeleteSessionResponse>(
      context_, request, response, kSessionService, "DeleteSession",
      [context = context_](const v1::DeleteSessionRequest& in, v1::DeleteSessionResponse*) -> absl::Status {
        Violations violations;
        ValidateDeleteSession(in, &violations);
        if (!violations.empty()) return violations.ToStatus();
        std::optional<std::string> etag;
        if (in.has_etag()) etag = in.etag();
        absl::Status status = context->sessions->Delete(*ParseSessionName(in.name()), etag, in.request_id());
        if (absl::IsNotFound(status) && in.allow_missing()) status = absl::OkStatus();
        return Counted(context, "delete", status);
      });
}

}  // namespace smt
