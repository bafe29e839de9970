// Forks, checkpoints and rollback: sessions and branches that share what came before them.
#include <algorithm>
#include <utility>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/session/session_manager_impl.h"

namespace smt {
namespace {

// A snapshot that is to be shared may be replaced by newer ones before the write that names it.
constexpr int kForkAttempts = 3;

std::string CheckpointName(std::string_view session, std::string_view id) {
  return StrCat("sessions/", session, "/checkpoints/", id);
}

absl::Status CheckPosition(std::string_view id, const std::optional<int64_t>& expected, int64_t position) {
  if (!expected || *expected == position) return absl::OkStatus();
  return WithDetails(
      absl::AbortedError(StrCat("session '", id, "' is at position ", position, ", the request expects ", *expected)),
      {.reason = "POSITION_MISMATCH", .metadata = {{"position", StrCat(position)}}});
}

std::string EncodeCheckpointInfo(const CheckpointInfo& info) {
  SessionHeader header;  // a header with nothing but this
  header.checkpoints.push_back({info, std::nullopt});
  return EncodeHeader(header);
}
absl::StatusOr<CheckpointInfo> DecodeCheckpointInfo(std::string_view bytes) {
  ASSIGN_OR_RETURN(const SessionHeader header, DecodeHeader(bytes));
  if (header.checkpoints.size() != 1) return absl::DataLossError("the stored answer of the operation is damaged");
  return header.checkpoints[0].info;
}

std::string OrderKey(const CheckpointInfo& info) {
  std::string key;
  AppendBigEndian(&key, static_cast<uint64_t>(info.position));
  AppendBigEndian(&key, static_cast<uint64_t>(info.branch));
  return key + info.id;
}

}  // namespace

absl::Status CheckpointNotFound(std::string_view session, std::string_view id) {
  return WithDetails(
      absl::NotFoundError(StrCat("session '", session, "' has no checkpoint '", id, "', or not any more")),
      {.reason = "CHECKPOINT_NOT_FOUND",
       .resource = StatusDetails::Resource{"checkpoint", CheckpointName(session, id), ""}});
}

absl::Status CheckCheckpointId(std::string_view id) {
  const absl::Status status = CheckSessionId(id);  // the same rule
  if (status.ok()) return status;
  return absl::InvalidArgumentError(StrCat("checkpoint id: ", std::string(status.message())));
}

absl::StatusOr<Lineage> SessionManagerImpl::LineageTo(const SessionKey& key, const SessionHeader& header,
                                                      int64_t position, std::span<const int64_t> also) {
  auto names = c_.store->ListSnapshots(key);
  if (absl::IsDataLoss(names.status())) names = std::vector<SnapshotName>();  // the log alone will do
  RETURN_IF_ERROR(names.status());
  return CutLineage(ViewOf(key, header), *names, position, also);
}

absl::Status SessionManagerImpl::Inherit(const SessionKey& key, const SessionHeader& parent, int64_t position,
                                         SessionHeader* child) {
  std::vector<int64_t> turns;
  for (const StoredCheckpoint& c : parent.checkpoints) {
    if (!c.info.automatic || c.lineage || c.info.position >= position) continue;
    child->checkpoints.push_back(c);
    turns.push_back(c.info.position);
  }
  ASSIGN_OR_RETURN(child->before, LineageTo(key, parent, position, turns));
  return absl::OkStatus();
}

absl::StatusOr<SessionInfo> SessionManagerImpl::Fork(const ForkSpec& spec) {
  RETURN_IF_ERROR(CheckSessionId(spec.session_id));
  RETURN_IF_ERROR(CheckRequestId(spec.request_id));
  if (!spec.checkpoint_id.empty()) RETURN_IF_ERROR(CheckCheckpointId(spec.checkpoint_id));
  if (spec.ttl) RETURN_IF_ERROR(CheckTtl(*spec.ttl));
  if (spec.labels) RETURN_IF_ERROR(CheckLabels(*spec.labels));
  OperationHash meaning("fork");
  meaning.Add(spec.session_id).Add(spec.new_id).Add(spec.checkpoint_id);
  if (spec.ttl) meaning.Add("ttl").Add(*spec.ttl);
  if (spec.labels) meaning.Add("labels").Add(*spec.labels);
  const std::string hash = meaning.Take();
  const std::string id = spec.new_id.empty() ? DrawId(StrCat("fork/", spec.session_id), spec.request_id) : spec.new_id;
  RETURN_IF_ERROR(CheckSessionId(id));
  ASSIGN_OR_RETURN(std::optional<SessionInfo> made, FindMade(id, spec.request_id, hash));
  if (made) return *std::move(made);
  for (int attempt = 1;; ++attempt) {
    SessionHeader child;
    SessionWrite write;
    {
      const Entry parent = table_.Acquire(spec.session_id);
      absl::MutexLock lock(&parent->mu);
      RETURN_IF_ERROR(LoadToRead(*parent));
      RETURN_IF_ERROR(c_.CheckModel(spec.session_id, parent->header));
      if (spec.checkpoint_id.empty()) {
        RETURN_IF_ERROR(CheckIdle(*parent));
        RETURN_IF_ERROR(Inherit(parent->key, parent->header, parent->header.position, &child));
      } else {
        const StoredCheckpoint* const from = FindCheckpoint(parent->header, spec.checkpoint_id);
        if (from == nullptr) return CheckpointNotFound(spec.session_id, spec.checkpoint_id);
        if (from->lineage) {
          child.before = *from->lineage;
        } else {
          RETURN_IF_ERROR(Inherit(parent->key, parent->header, from->info.position, &child));
        }
      }
      RETURN_IF_ERROR(CheckPosition(spec.session_id, spec.expected_position, parent->log_end()));
      child.ttl = spec.ttl.value_or(parent->header.ttl);
      child.labels = spec.labels.value_or(parent->header.labels);
    }
    child.position = child.before.end();
    ASSIGN_OR_RETURN(write.ids, TakeShortPiece(*c_.store, &child.before));
    write.position = write.log_begin = child.before.end();
    absl::StatusOr<SessionInfo> info = Make(id, std::move(child), std::move(write), spec.request_id, hash);
    if (!absl::IsNotFound(info.status()) || attempt == kForkAttempts) return info;
  }
}

void SessionManagerImpl::RememberTurn(SessionHeader* header, const RequestRecord& request) {
  StoredCheckpoint turn;
  turn.info.id = StrCat("turn-", header->branch, "-", header->position);
  turn.info.position = header->position;
  turn.info.branch = header->branch;
  turn.info.automatic = true;
  turn.info.request_id = request.request_id;
  turn.info.create_time = request.create_time;
  // A turn that added nothing gives its place to the next one.
  std::erase_if(header->checkpoints, [&](const StoredCheckpoint& c) { return c.info.id == turn.info.id; });
  AddCheckpoint(header, std::move(turn));
  const auto automatic = [](const StoredCheckpoint& c) { return c.info.automatic; };
  auto& all = header->checkpoints;
  for (auto n = std::count_if(all.begin(), all.end(), automatic); n > kRememberedTurns; --n) {
    all.erase(std::find_if(all.begin(), all.end(), automatic));
  }
}

absl::StatusOr<CheckpointInfo> SessionManagerImpl::CreateCheckpoint(const CheckpointSpec& spec) {
  RETURN_IF_ERROR(CheckSessionId(spec.session_id));
  RETURN_IF_ERROR(CheckRequestId(spec.request_id));
  if (!spec.checkpoint_id.empty()) RETURN_IF_ERROR(CheckCheckpointId(spec.checkpoint_id));
  const std::string hash = OperationHash("create checkpoint").Add(spec.checkpoint_id).Take();
  const Entry entry = table_.Acquire(spec.session_id);
  StoredCheckpoint checkpoint;
  std::shared_ptr<Outcome> outcome;
  {
    absl::MutexLock lock(&entry->mu);
    RETURN_IF_ERROR(Load(*entry));
    ASSIGN_OR_RETURN(const std::optional<std::string> done, FindOperation(entry->key, spec.request_id, hash));
    if (done) return DecodeCheckpointInfo(*done);
    if (entry->busy) return BusyError(spec.session_id);
    RETURN_IF_ERROR(Hold(*entry));
    HoldScope hold(*entry, c_.leases.get());
    RETURN_IF_ERROR(CheckPosition(spec.session_id, spec.expected_position, entry->header.position));
    SessionHeader header = entry->header;
    CheckpointInfo& info = checkpoint.info;
    info.id = spec.checkpoint_id.empty() ? DrawId(StrCat("checkpoint/", entry->key.uid), spec.request_id)
                                         : spec.checkpoint_id;
    if (spec.checkpoint_id.empty()) info.id[0] = 'c';
    if (FindCheckpoint(header, info.id) != nullptr) {
      return WithDetails(
          absl::AlreadyExistsError(StrCat("session '", spec.session_id, "' has a checkpoint '", info.id, "' already")),
          {.reason = "CHECKPOINT_EXISTS",
           .resource = StatusDetails::Resource{"checkpoint", CheckpointName(spec.session_id, info.id), ""}});
    }
    const auto named = std::count_if(header.checkpoints.begin(), header.checkpoints.end(),
                                     [](const StoredCheckpoint& c) { return !c.info.automatic; });
    if (named >= kMaxCheckpoints) {
      const std::string message =
          StrCat("session '", spec.session_id, "' has ", named, " checkpoints, the limit; delete some");
      return WithDetails(
          absl::ResourceExhaustedError(message),
          {.reason = "TOO_MANY_CHECKPOINTS", .quotas = {{StrCat("sessions/", spec.session_id), message}}});
    }
    info.position = header.position;
    info.branch = header.branch;
    info.create_time = c_.Now();
    AddCheckpoint(&header, checkpoint);
    Touch(&header);
    outcome = Change(*entry, std::move(header), {}, spec.request_id, hash, EncodeCheckpointInfo(info));
    hold.HandOn();
  }
  RETURN_IF_ERROR(Settle(entry, *outcome));
  return checkpoint.info;
}

absl::StatusOr<SessionManager::CheckpointPage> SessionManagerImpl::ListCheckpoints(std::string_view id,
                                                                                   int32_t page_size,
                                                                                   const std::string& page_token) {
  RETURN_IF_ERROR(CheckSessionId(id));
  ASSIGN_OR_RETURN(const size_t size, PageSize(page_size));
  ASSIGN_OR_RETURN(const std::string after, ParsePageToken(page_token, "ListCheckpoints"));
  const Entry entry = table_.Acquire(id);
  absl::MutexLock lock(&entry->mu);
  RETURN_IF_ERROR(LoadToRead(*entry));
  CheckpointPage page;
  for (const StoredCheckpoint& c : entry->header.checkpoints) {  // in order
    if (OrderKey(c.info) <= after) continue;
    if (page.checkpoints.size() == size) {
      page.next_page_token = MakePageToken(OrderKey(page.checkpoints.back()));
      break;
    }
    page.checkpoints.push_back(c.info);
  }
  return page;
}

absl::Status SessionManagerImpl::DeleteCheckpoint(std::string_view id, std::string_view checkpoint_id,
                                                  const std::string& request_id) {
  RETURN_IF_ERROR(CheckSessionId(id));
  RETURN_IF_ERROR(CheckCheckpointId(checkpoint_id));
  RETURN_IF_ERROR(CheckRequestId(request_id));
  const std::string hash = OperationHash("delete checkpoint").Add(checkpoint_id).Take();
  const Entry entry = table_.Acquire(id);
  std::shared_ptr<Outcome> outcome;
  {
    absl::MutexLock lock(&entry->mu);
    RETURN_IF_ERROR(Load(*entry));
    ASSIGN_OR_RETURN(const std::optional<std::string> done, FindOperation(entry->key, request_id, hash));
    if (done) return absl::OkStatus();
    if (FindCheckpoint(entry->header, checkpoint_id) == nullptr) return CheckpointNotFound(id, checkpoint_id);
    if (entry->busy) return BusyError(id);
    RETURN_IF_ERROR(Hold(*entry));
    HoldScope hold(*entry, c_.leases.get());
    SessionHeader header = entry->header;
    std::erase_if(header.checkpoints, [&](const StoredCheckpoint& c) { return c.info.id == checkpoint_id; });
    Touch(&header);
    outcome = Change(*entry, std::move(header), {}, request_id, hash, "");
    hold.HandOn();
  }
  return Settle(entry, *outcome);
}

absl::StatusOr<SessionInfo> SessionManagerImpl::Rollback(const RollbackSpec& spec) {
  RETURN_IF_ERROR(CheckSessionId(spec.session_id));
  RETURN_IF_ERROR(CheckRequestId(spec.request_id));
  if (!spec.checkpoint_id.empty()) RETURN_IF_ERROR(CheckCheckpointId(spec.checkpoint_id));
  if (spec.checkpoint_id.empty() && spec.turns < 1) {
    return absl::InvalidArgumentError(StrCat("turns is ", spec.turns, ", must be 1 or more, or a checkpoint be named"));
  }
  const std::string hash = OperationHash("rollback")
                               .Add(spec.checkpoint_id)
                               .Add(int64_t{spec.checkpoint_id.empty() ? spec.turns : 0})
                               .Take();
  const Entry entry = table_.Acquire(spec.session_id);
  std::shared_ptr<Outcome> outcome;
  SessionInfo info;
  std::string left;  // key of the state that is not the session's any more
  {
    absl::MutexLock lock(&entry->mu);
    RETURN_IF_ERROR(Load(*entry));
    ASSIGN_OR_RETURN(const std::optional<std::string> done, FindOperation(entry->key, spec.request_id, hash));
    if (done) {
      ASSIGN_OR_RETURN(const SessionHeader header, DecodeHeader(*done));
      return MakeInfo(entry->key, header);
    }
    if (entry->busy) return BusyError(spec.session_id);
    RETURN_IF_ERROR(Hold(*entry));
    HoldScope hold(*entry, c_.leases.get());
    RETURN_IF_ERROR(c_.CheckModel(spec.session_id, entry->header));
    RETURN_IF_ERROR(CheckEtag(spec.session_id, spec.etag, Etag(entry->key.uid, entry->header)));
    const SessionHeader before = entry->header;
    const StoredCheckpoint* target = nullptr;
    if (!spec.checkpoint_id.empty()) {
      target = FindCheckpoint(before, spec.checkpoint_id);
      if (target == nullptr) return CheckpointNotFound(spec.session_id, spec.checkpoint_id);
    } else {
      int32_t turns = 0;
      for (auto c = before.checkpoints.rbegin(); c != before.checkpoints.rend() && target == nullptr; ++c) {
        if (c->info.automatic && !c->lineage && ++turns == spec.turns) target = &*c;
      }
      if (target == nullptr) {
        return WithDetails(
            absl::NotFoundError(StrCat("session '", spec.session_id, "' remembers the start of ", turns,
                                       " turns (at most ", kRememberedTurns, "), turns is ", spec.turns)),
            {.reason = "CHECKPOINT_NOT_FOUND",
             .resource = StatusDetails::Resource{"checkpoint", StrCat("sessions/", spec.session_id), ""}});
      }
    }

    const int64_t position = target->info.position;
    SessionHeader header = before;
    header.checkpoints.clear();
    std::vector<int64_t> kept;
    for (const StoredCheckpoint& c : before.checkpoints) {
      // One at or before the target lies on the new branch too, unless the target is of a branch that was left.
      const bool stays = !c.lineage && !target->lineage && c.info.position <= position;
      if (c.info.automatic) {
        if (!stays || c.info.position == position) continue;  // its turn is undone
      }
      StoredCheckpoint copy = c;
      if (&c == target) {
        copy.lineage.reset();
      } else if (!c.lineage && !stays) {
        ASSIGN_OR_RETURN(copy.lineage, LineageTo(entry->key, before, c.info.position));
      }
      if (!copy.lineage) kept.push_back(copy.info.position);
      header.checkpoints.push_back(std::move(copy));
    }
    if (target->lineage) {
      header.before = *target->lineage;
    } else {
      ASSIGN_OR_RETURN(header.before, LineageTo(entry->key, before, position, kept));
    }
    SessionWrite write;
    auto short_piece = TakeShortPiece(*c_.store, &header.before);
    if (!short_piece.ok()) return c_.WithLastGood(short_piece.status(), entry->key, before);
    write.ids = *std::move(short_piece);
    left = SessionStateKey(entry->key, before.branch);
    write.branch = ++header.branch;
    write.position = write.log_begin = header.before.end();
    header.position = header.durable_position = position;
    Touch(&header);
    info = MakeInfo(entry->key, header);
    std::string answer = EncodeHeader(header);
    outcome = Change(*entry, std::move(header), std::move(write), spec.request_id, hash, std::move(answer));
    hold.HandOn();
  }
  RETURN_IF_ERROR(Settle(entry, *outcome));
  if (c_.options.on_removed) c_.options.on_removed(left);
  return info;
}

}  // namespace smt
