// All of a session at once: what a file of it is made of, and a session of such content.
#include <utility>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/session/session_manager_impl.h"

namespace smt {

absl::StatusOr<SessionContent> SessionManagerImpl::Export(std::string_view id, std::string_view checkpoint_id) {
  RETURN_IF_ERROR(CheckSessionId(id));
  if (!checkpoint_id.empty()) RETURN_IF_ERROR(CheckCheckpointId(checkpoint_id));
  const Entry entry = table_.Acquire(id);
  SessionContent out;
  SessionKey key;
  SessionHeader header;
  BranchView view;
  {
    absl::MutexLock lock(&entry->mu);
    RETURN_IF_ERROR(LoadToRead(*entry));
    RETURN_IF_ERROR(c_.CheckModel(id, entry->header));
    if (checkpoint_id.empty()) RETURN_IF_ERROR(CheckIdle(*entry));
    key = entry->key;
    header = entry->header;
  }
  view = ViewOf(key, header);
  out.info = MakeInfo(key, header);
  if (!checkpoint_id.empty()) {
    const StoredCheckpoint* const from = FindCheckpoint(header, checkpoint_id);
    if (from == nullptr) return CheckpointNotFound(id, checkpoint_id);
    out.info.position = from->info.position;
    if (from->lineage) {
      view.branch = -1;  // none of the present branch's
      view.before = *from->lineage;
      out.info.branch = from->info.branch;
    }
  }
  auto log = ReadBranch(*c_.store, view, 1, out.info.position);
  if (!log.ok()) return c_.WithLastGood(log.status(), key, header);
  out.log = *std::move(log);
  ASSIGN_OR_RETURN(RestoredState state, c_.FindState(view, out.info.position));
  out.state = std::move(state.state);
  out.state_position = state.position;
  out.numerics_id = std::move(state.numerics_id);
  return out;
}

absl::StatusOr<SessionInfo> SessionManagerImpl::Import(const ImportSpec& spec) {
  const SessionContent& content = spec.content;
  RETURN_IF_ERROR(CheckRequestId(spec.request_id));
  RETURN_IF_ERROR(CheckTtl(spec.ttl));
  RETURN_IF_ERROR(CheckLabels(spec.labels));
  SessionHeader header;
  header.ttl = spec.ttl;
  header.labels = spec.labels;
  header.position = static_cast<int64_t>(content.log.size());
  header.model_fingerprint = content.info.model_fingerprint;
  OperationHash meaning("import");
  meaning.Add(spec.new_id).Add(spec.ttl).Add(spec.labels);
  meaning.Add({reinterpret_cast<const char*>(content.log.data()), content.log.size() * sizeof(int32_t)});
  const std::string hash = meaning.Take();
  const std::string id = spec.new_id.empty() ? DrawId("import", spec.request_id) : spec.new_id;
  RETURN_IF_ERROR(CheckSessionId(id));
  RETURN_IF_ERROR(c_.CheckModel(id, header));
  if (content.state != nullptr) {
    if (static_cast<int64_t>(content.state->size()) != c_.options.state_bytes) {
      return absl::InvalidArgumentError(
          StrCat("the state has ", content.state->size(), " bytes, this model's have ", c_.options.state_bytes));
    }
    if (content.state_position < 1 || content.state_position > header.position) {
      return absl::InvalidArgumentError(StrCat("the state is at position ", content.state_position,
                                               ", allowed is 1 to ", header.position, ", the end of the log"));
    }
  }
  ASSIGN_OR_RETURN(std::optional<SessionInfo> made, FindMade(id, spec.request_id, hash));
  if (made) return *std::move(made);
  SessionWrite write;
  write.position = 0;
  write.ids = content.log;
  ASSIGN_OR_RETURN(SessionInfo info, Make(id, std::move(header), std::move(write), spec.request_id, hash));
  if (content.state == nullptr) return info;
  ASSIGN_OR_RETURN(const ParsedStateKey parsed, ParseSessionStateKey(info.key));
  RETURN_IF_ERROR(c_.writer
                      ->PutSnapshot(parsed.key, {0, content.state_position, c_.options.model_fingerprint,
                                                 content.numerics_id, 0, content.state})
                      .status());
  RETURN_IF_ERROR(c_.writer->Flush());
  return info;
}

}  // namespace smt
