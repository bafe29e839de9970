// Reading a session: its log, and a state to go on from. The log is the truth; a snapshot only saves absorbing it
// again, so a damaged one is passed over as long as the log covers the rest.
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/session/session_manager_impl.h"

namespace smt {

absl::Status SessionContext::CheckModel(std::string_view id, const SessionHeader& header) const {
  if (header.model_fingerprint == options.model_fingerprint) return absl::OkStatus();
  const std::string message = StrCat("session '", id, "' belongs to the model with fingerprint ",
                                     header.model_fingerprint, ", this server serves ", options.model_fingerprint);
  return WithDetails(absl::FailedPreconditionError(message),
                     {.reason = "MODEL_MISMATCH", .preconditions = {{"MODEL", StrCat("sessions/", id), message}}});
}

absl::StatusOr<RestoredState> SessionContext::Restore(const SessionKey& key, int64_t branch, int64_t head) {
  RestoredState out;
  out.tier = "new";
  if (head == 0) return out;
  const auto take = [&](const SnapshotRecord& s, std::string_view tier) {
    out.state = s.state;
    out.position = s.position;
    out.numerics_id = s.numerics_id;
    out.foreign_numerics = s.numerics_id != options.numerics_id;
    out.tier = std::string(tier);
  };
  out.tier = "log";
  if (const auto waiting = writer->WaitingSnapshot(key.uid, branch, head)) take(*waiting, "host");
  auto names = store->ListSnapshots(key);
  if (absl::IsDataLoss(names.status())) {  // not even their names can be read
    names = std::vector<SnapshotName>();
    ++out.damaged_snapshots;
    ++damaged_snapshots;
  }
  RETURN_IF_ERROR(names.status());
  for (const SnapshotName& name : *names) {  // newest first
    if (name.branch != branch || name.position > head) continue;
    if (out.position >= name.position) break;
    const auto payload = store->GetSnapshot(key, name);
    if (absl::IsNotFound(payload.status())) continue;  // pruned meanwhile
    const auto record = payload.ok() ? DecodeSnapshot(*payload) : absl::StatusOr<SnapshotRecord>(payload.status());
    const bool good = record.ok() && record->branch == branch && record->position == name.position &&
                      static_cast<int64_t>(record->state->size()) == options.state_bytes;
    if (!good) {
      if (!record.ok() && !absl::IsDataLoss(record.status())) return record.status();
      ++out.damaged_snapshots;
      ++damaged_snapshots;
      continue;
    }
    if (record->model_fingerprint != options.model_fingerprint) continue;  // absorb the log again
    take(*record, "store");
    break;
  }
  ASSIGN_OR_RETURN(out.tail, store->ReadLog(key, branch, out.position + 1, head));
  return out;
}

absl::StatusOr<std::vector<int32_t>> SessionManagerImpl::ReadLog(std::string_view id, int64_t first, int64_t last) {
  RETURN_IF_ERROR(CheckSessionId(id));
  const Entry entry = table_.Acquire(id);
  SessionKey key;
  int64_t branch = 0;
  bool in_turn = false;
  {
    absl::MutexLock lock(&entry->mu);
    RETURN_IF_ERROR(Load(*entry));
    if (first < 1 || last > entry->log_end) {
      return absl::OutOfRangeError(StrCat("positions ", first, " to ", last, " were asked for, the log of session '",
                                          id, "' has 1 to ", entry->log_end));
    }
    key = entry->key;
    branch = entry->header.branch;
    in_turn = entry->in_turn;
  }
  if (in_turn) c_.writer->Drain();
  return c_.store->ReadLog(key, branch, first, last);
}

absl::StatusOr<RestoredState> SessionManagerImpl::ReadState(std::string_view id, SessionInfo* info) {
  RETURN_IF_ERROR(CheckSessionId(id));
  const Entry entry = table_.Acquire(id);
  SessionKey key;
  SessionInfo now;
  {
    absl::MutexLock lock(&entry->mu);
    RETURN_IF_ERROR(Load(*entry));
    RETURN_IF_ERROR(c_.CheckModel(id, entry->header));
    key = entry->key;
    now = entry->Info();
  }
  if (now.active) c_.writer->Drain();
  if (info != nullptr) *info = now;
  return c_.Restore(key, now.branch, now.position);
}

void SessionManagerImpl::SaveEvicted(const std::string& session_key, int64_t position,
                                     std::shared_ptr<const StateBuffer> state) {
  const auto parsed = ParseSessionStateKey(session_key);
  if (!parsed.ok() || position <= 0 || state == nullptr) return;  // an ephemeral one, or empty
  if (const Entry entry = table_.Peek(parsed->key.id)) {
    absl::MutexLock lock(&entry->mu);
    if (entry->loaded && entry->key == parsed->key) c_.WritePending(entry);
  }
  c_.writer->EnqueueSnapshot(parsed->key, {parsed->branch, position, c_.options.model_fingerprint,
                                           c_.options.numerics_id, 0, std::move(state)});
}

}  // namespace smt
