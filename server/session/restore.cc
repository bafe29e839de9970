// Reading a session: its log, and a state to go on from. The log is the truth; a snapshot only saves absorbing it
// again, so a damaged one is passed over as long as the log covers the rest.
#include <algorithm>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/session/session_manager_impl.h"

namespace smt {
namespace {

// How long one that looks at the snapshots waits for those on their way to the store.
constexpr absl::Duration kSnapshotWait = absl::Seconds(5);

StateName NameOf(const BranchView& view, const SnapshotName& name) { return {view.key, name.branch, name.position}; }

}  // namespace

absl::Status SessionContext::CheckModel(std::string_view id, const SessionHeader& header) const {
  if (header.model_fingerprint == options.model_fingerprint) return absl::OkStatus();
  const std::string message = StrCat("session '", id, "' belongs to the model with fingerprint ",
                                     header.model_fingerprint, ", this server serves ", options.model_fingerprint);
  return WithDetails(absl::FailedPreconditionError(message),
                     {.reason = "MODEL_MISMATCH", .preconditions = {{"MODEL", StrCat("sessions/", id), message}}});
}

absl::StatusOr<std::optional<SnapshotRecord>> SessionContext::ReadSnapshot(const StateName& name) {
  const auto payload = store->GetSnapshot(name.owner, {name.branch, name.position});
  if (absl::IsNotFound(payload.status())) return std::optional<SnapshotRecord>();
  auto record = payload.ok() ? DecodeSnapshot(*payload) : absl::StatusOr<SnapshotRecord>(payload.status());
  if (!record.ok()) return record.status();
  if (record->branch != name.branch || record->position != name.position ||
      static_cast<int64_t>(record->state->size()) != options.state_bytes) {
    return absl::DataLossError(StrCat("session '", name.owner.id, "': the snapshot at position ", name.position,
                                      " is one of another place or size"));
  }
  return std::optional<SnapshotRecord>(*std::move(record));
}

absl::StatusOr<std::vector<StateName>> SessionContext::StatesOf(const BranchView& view, int64_t head) {
  std::vector<StateName> out;
  for (const StateName& state : view.before.states) {
    if (state.position <= head) out.push_back(state);
  }
  ASSIGN_OR_RETURN(const std::vector<SnapshotName> own, store->ListSnapshots(view.key));
  for (const SnapshotName& name : own) {
    if (name.branch == view.branch && name.position <= head) out.push_back(NameOf(view, name));
  }
  std::stable_sort(out.begin(), out.end(),
                   [](const StateName& a, const StateName& b) { return a.position > b.position; });
  return out;
}

absl::StatusOr<RestoredState> SessionContext::FindState(const BranchView& view, int64_t head) {
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
  const auto damaged = [&] {
    ++out.damaged_snapshots;
    ++damaged_snapshots;
  };
  out.tier = "log";
  if (const auto waiting = writer->WaitingSnapshot(view.key.uid, view.branch, head)) take(*waiting, "host");
  auto names = StatesOf(view, head);
  if (absl::IsDataLoss(names.status())) {  // not even their names can be read
    names = view.before.states;
    damaged();
  }
  RETURN_IF_ERROR(names.status());
  for (const StateName& name : *names) {  // newest first
    if (out.position >= name.position) break;
    if (const auto held = cache->Find(name.owner.uid, name.branch, name.position);
        held && held->position == name.position) {
      take(*held, "host");
      break;
    }
    const auto record = ReadSnapshot(name);
    if (absl::IsDataLoss(record.status())) {
      damaged();
      continue;
    }
    RETURN_IF_ERROR(record.status());
    if (!*record) continue;                                                   // pruned meanwhile
    if ((*record)->model_fingerprint != options.model_fingerprint) continue;  // absorb the log again
    take(**record, "store");
    break;
  }
  return out;
}

void SessionContext::NoteOrigin(const std::string& state_key, const RestoredState& state) {
  absl::MutexLock lock(&foreign_mu);
  if (state.foreign_numerics) {
    foreign.insert(state_key);
  } else {
    foreign.erase(state_key);
  }
}

std::string SessionContext::NumericsOf(const std::string& state_key) {
  absl::MutexLock lock(&foreign_mu);
  return foreign.count(state_key) > 0 ? StrCat("mixed/", options.numerics_id) : options.numerics_id;
}

absl::StatusOr<RestoredState> SessionContext::Restore(const BranchView& view, int64_t head) {
  ASSIGN_OR_RETURN(RestoredState out, FindState(view, head));
  ASSIGN_OR_RETURN(out.tail, ReadBranch(*store, view, out.position + 1, head));
  return out;
}

absl::Status SessionContext::WithLastGood(const absl::Status& status, const SessionKey& key,
                                          const SessionHeader& header) {
  if (!absl::IsDataLoss(status)) return status;
  constexpr int64_t kAtOnce = 1 << 16;
  int64_t good = 0;  // the log reads up to here
  const BranchView view = ViewOf(key, header);
  while (good < header.position) {
    const int64_t next = std::min(good + kAtOnce, header.position);
    if (ReadBranch(*store, view, good + 1, next).ok()) {
      good = next;
      continue;
    }
    // Somewhere in this piece.
    int64_t bad = next;
    while (bad - good > 1) {
      const int64_t middle = good + (bad - good) / 2;
      (ReadBranch(*store, view, good + 1, middle).ok() ? good : bad) = middle;
    }
    break;
  }
  const StoredCheckpoint* last = nullptr;
  for (const StoredCheckpoint& c : header.checkpoints) {
    if (!c.lineage && c.info.position <= good) last = &c;
  }
  StatusDetails details{.reason = "SESSION_DAMAGED", .metadata = {{"readable_position", StrCat(good)}}};
  std::string message = StrCat(std::string(status.message()), "; the log can be read up to position ", good);
  if (last == nullptr) {
    details.resource = {"session", StrCat("sessions/", key.id), "no checkpoint lies before the damage"};
    message += ", and no checkpoint lies before that";
  } else {
    const std::string name = StrCat("sessions/", key.id, "/checkpoints/", last->info.id);
    details.metadata["last_good_checkpoint"] = name;
    details.resource = {"session", StrCat("sessions/", key.id),
                        StrCat("the last good checkpoint is ", name, " at position ", last->info.position)};
    message += StrCat("; the last good checkpoint is ", name, " at position ", last->info.position,
                      ", roll back to it to go on from there");
  }
  return WithDetails(absl::DataLossError(message), details);
}

absl::StatusOr<std::vector<int32_t>> SessionManagerImpl::ReadLog(std::string_view id, int64_t first, int64_t last) {
  RETURN_IF_ERROR(CheckSessionId(id));
  const Entry entry = table_.Acquire(id);
  SessionKey key;
  SessionHeader header;
  bool in_turn = false;
  {
    absl::MutexLock lock(&entry->mu);
    RETURN_IF_ERROR(LoadToRead(*entry));
    if (first < 1 || last > entry->log_end()) {
      return absl::OutOfRangeError(StrCat("positions ", first, " to ", last, " were asked for, the log of session '",
                                          id, "' has 1 to ", entry->log_end()));
    }
    key = entry->key;
    header = entry->header;
    in_turn = entry->in_turn;
  }
  if (in_turn) c_.writer->Drain();
  auto ids = ReadBranch(*c_.store, ViewOf(key, header), first, last);
  if (!ids.ok()) return c_.WithLastGood(ids.status(), key, header);
  return ids;
}

absl::StatusOr<std::vector<int32_t>> SessionManagerImpl::ReadRequestLog(std::string_view id, int64_t branch,
                                                                        int64_t first, int64_t last) {
  RETURN_IF_ERROR(CheckSessionId(id));
  const Entry entry = table_.Acquire(id);
  SessionKey key;
  {
    absl::MutexLock lock(&entry->mu);
    RETURN_IF_ERROR(LoadToRead(*entry));
    key = entry->key;
    if (entry->in_turn && entry->header.branch == branch) c_.WritePending(*entry);
  }
  c_.writer->Drain();
  return c_.store->ReadLog(key, branch, first, last);
}

absl::StatusOr<RestoredState> SessionManagerImpl::ReadState(std::string_view id, SessionInfo* info) {
  RETURN_IF_ERROR(CheckSessionId(id));
  const Entry entry = table_.Acquire(id);
  SessionKey key;
  SessionHeader header;
  SessionInfo now;
  {
    absl::MutexLock lock(&entry->mu);
    RETURN_IF_ERROR(LoadToRead(*entry));
    RETURN_IF_ERROR(c_.CheckModel(id, entry->header));
    key = entry->key;
    header = entry->header;
    now = entry->Info();
  }
  if (now.active) c_.writer->Drain();
  if (info != nullptr) *info = now;
  auto state = c_.Restore(ViewOf(key, header), now.position);
  if (!state.ok()) return c_.WithLastGood(state.status(), key, header);
  return state;
}

absl::Status SessionManagerImpl::VisitStates(std::string_view id,
                                             const std::function<absl::Status(const KeptState&)>& visit) {
  RETURN_IF_ERROR(CheckSessionId(id));
  const Entry entry = table_.Acquire(id);
  BranchView view;
  int64_t head = 0;
  {
    absl::MutexLock lock(&entry->mu);
    RETURN_IF_ERROR(LoadToRead(*entry));
    RETURN_IF_ERROR(c_.CheckModel(id, entry->header));
    view = ViewOf(entry->key, entry->header);
    head = entry->header.position;
  }
  c_.writer->AwaitSnapshots(kSnapshotWait);
  ASSIGN_OR_RETURN(std::vector<StateName> names, c_.StatesOf(view, head));
  std::reverse(names.begin(), names.end());
  for (const StateName& name : names) {
    const auto record = c_.ReadSnapshot(name);
    if (absl::IsDataLoss(record.status())) {
      ++c_.damaged_snapshots;
      RETURN_IF_ERROR(visit({name.position, "", nullptr}));
      continue;
    }
    RETURN_IF_ERROR(record.status());
    if (!*record || (*record)->model_fingerprint != c_.options.model_fingerprint) continue;
    RETURN_IF_ERROR(visit({name.position, (*record)->numerics_id, (*record)->state}));
  }
  return absl::OkStatus();
}

void SessionManagerImpl::SaveEvicted(const std::string& session_key, int64_t position,
                                     std::shared_ptr<const StateBuffer> state) {
  const auto parsed = ParseSessionStateKey(session_key);
  if (!parsed.ok() || position <= 0 || state == nullptr) return;  // an ephemeral one, or empty
  if (const Entry entry = table_.Peek(parsed->key.id)) {
    absl::MutexLock lock(&entry->mu);
    if (entry->loaded && entry->key == parsed->key) c_.WritePending(*entry);
  }
  c_.writer->EnqueueSnapshot(parsed->key, {parsed->branch, position, c_.options.model_fingerprint,
                                           c_.NumericsOf(session_key), 0, std::move(state)});
}

}  // namespace smt
