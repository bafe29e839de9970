// SessionService's calls around points of a session: fork, checkpoints, rollback.
#include <optional>
#include <string>
#include <utility>

#include "server/service/names.h"
#include "server/service/proto_time.h"
#include "server/service/resident_state.h"
#include "server/service/session_messages.h"
#include "server/service/session_service.h"
#include "server/service/validators.h"

namespace smt {
namespace {

void ToProto(const std::string& session_id, const CheckpointInfo& info, v1::Checkpoint* out) {
  out->set_name(CheckpointName(session_id, info.id));
  out->set_position(info.position);
  out->set_branch(info.branch);
  out->set_automatic(info.automatic);
  out->set_request_id(info.request_id);
  *out->mutable_create_time() = smt::ToProto(info.create_time);
}

// Of a validated name; empty for the empty one.
std::string CheckpointId(const std::string& name) {
  return name.empty() ? "" : ParseCheckpointName(name)->checkpoint_id;
}

}  // namespace

SessionServiceImpl::Unary* SessionServiceImpl::ForkSession(Call*, const Bytes* request, Bytes* response) {
  return RunUnary<v1::ForkSessionRequest, v1::ForkSessionResponse>(
      context_, request, response, kSessionService, "ForkSession",
      [context = context_](const v1::ForkSessionRequest& in, v1::ForkSessionResponse* out) -> absl::Status {
        Violations violations;
        ValidateForkSession(in, context->limits, &violations);
        if (!violations.empty()) return violations.ToStatus();
        ForkSpec spec;
        spec.session_id = *ParseSessionName(in.name());
        spec.new_id = in.session_id();
        spec.checkpoint_id = CheckpointId(in.checkpoint());
        if (in.session().has_ttl()) spec.ttl = Ttl(in.session());
        if (!in.session().labels().empty()) spec.labels = Labels(in.session());
        if (in.has_expected_position()) spec.expected_position = in.expected_position();
        spec.request_id = in.request_id();
        const absl::StatusOr<SessionInfo> child = context->sessions->Fork(spec);
        if (child.ok() && spec.checkpoint_id.empty()) {
          const absl::StatusOr<SessionInfo> parent = context->sessions->Get(spec.session_id);
          if (parent.ok()) SaveResident(context, *parent, *child);
        }
        return Answer(context, "fork", child, out->mutable_session());
      });
}

SessionServiceImpl::Unary* SessionServiceImpl::CreateCheckpoint(Call*, const Bytes* request, Bytes* response) {
  return RunUnary<v1::CreateCheckpointRequest, v1::CreateCheckpointResponse>(
      context_, request, response, kSessionService, "CreateCheckpoint",
      [context = context_](const v1::CreateCheckpointRequest& in, v1::CreateCheckpointResponse* out) -> absl::Status {
        Violations violations;
        ValidateCreateCheckpoint(in, &violations);
        if (!violations.empty()) return violations.ToStatus();
        CheckpointSpec spec;
        spec.session_id = *ParseSessionName(in.parent());
        spec.checkpoint_id = in.checkpoint_id();
        if (in.has_expected_position()) spec.expected_position = in.expected_position();
        spec.request_id = in.request_id();
        const absl::StatusOr<CheckpointInfo> info = context->sessions->CreateCheckpoint(spec);
        if (info.ok()) ToProto(spec.session_id, *info, out->mutable_checkpoint());
        return Counted(context, "checkpoint_create", info.status());
      });
}

SessionServiceImpl::Unary* SessionServiceImpl::ListCheckpoints(Call*, const Bytes* request, Bytes* response) {
  return RunUnary<v1::ListCheckpointsRequest, v1::ListCheckpointsResponse>(
      context_, request, response, kSessionService, "ListCheckpoints",
      [context = context_](const v1::ListCheckpointsRequest& in, v1::ListCheckpointsResponse* out) -> absl::Status {
        Violations violations;
        ValidateSessionName("parent", in.parent(), &violations);
        ValidatePage(in.page_size(), &violations);
        if (!violations.empty()) return violations.ToStatus();
        const std::string id = *ParseSessionName(in.parent());
        const absl::StatusOr<SessionManager::CheckpointPage> page =
            context->sessions->ListCheckpoints(id, in.page_size(), in.page_token());
        if (page.ok()) {
          for (const CheckpointInfo& info : page->checkpoints) ToProto(id, info, out->add_checkpoints());
          out->set_next_page_token(page->next_page_token);
        }
        return Counted(context, "checkpoint_list", page.status());
      });
}

SessionServiceImpl::Unary* SessionServiceImpl::DeleteCheckpoint(Call*, const Bytes* request, Bytes* response) {
  return RunUnary<v1::DeleteCheckpointRequest, v1::DeleteCheckpointResponse>(
      context_, request, response, kSessionService, "DeleteCheckpoint",
      [context = context_](const v1::DeleteCheckpointRequest& in, v1::DeleteCheckpointResponse*) -> absl::Status {
        Violations violations;
        ValidateDeleteCheckpoint(in, &violations);
        if (!violations.empty()) return violations.ToStatus();
        const CheckpointKey key = *ParseCheckpointName(in.name());
        return Counted(context, "checkpoint_delete",
                       context->sessions->DeleteCheckpoint(key.session_id, key.checkpoint_id, in.request_id()));
      });
}

SessionServiceImpl::Unary* SessionServiceImpl::RollbackSession(Call*, const Bytes* request, Bytes* response) {
  return RunUnary<v1::RollbackSessionRequest, v1::RollbackSessionResponse>(
      context_, request, response, kSessionService, "RollbackSession",
      [context = context_](const v1::RollbackSessionRequest& in, v1::RollbackSessionResponse* out) -> absl::Status {
        Violations violations;
        ValidateRollbackSession(in, &violations);
        if (!violations.empty()) return violations.ToStatus();
        RollbackSpec spec;
        spec.session_id = *ParseSessionName(in.name());
        spec.checkpoint_id = CheckpointId(in.checkpoint());
        spec.turns = in.turns();
        if (in.has_etag()) spec.etag = in.etag();
        spec.request_id = in.request_id();
        return Answer(context, "rollback", context->sessions->Rollback(spec), out->mutable_session());
      });
}

}  // namespace smt
