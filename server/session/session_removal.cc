// Removing a session, asked for or expired, and remembering that for a retry.
#include <utility>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/session/session_manager_impl.h"
#include "server/store/record_format.h"

namespace smt {

absl::Status SessionManagerImpl::Delete(std::string_view id, std::optional<std::string> etag,
                                        const std::string& request_id) {
  RETURN_IF_ERROR(CheckSessionId(id));
  RETURN_IF_ERROR(CheckRequestId(request_id));
  const Entry entry = table_.Acquire(id);
  if (!request_id.empty()) {
    ASSIGN_OR_RETURN(const std::optional<uint64_t> removed, FindRemoval(entry->id, request_id));
    if (removed) {
      absl::MutexLock lock(&entry->mu);
      const absl::Status loaded = Load(*entry);
      if (absl::IsNotFound(loaded) || (loaded.ok() && entry->key.uid != *removed)) return absl::OkStatus();
    }
  }
  return Remove(entry, std::move(etag), false, request_id);
}

absl::StatusOr<std::optional<uint64_t>> SessionManagerImpl::FindRemoval(const std::string& id,
                                                                        const std::string& request_id) {
  const auto payload = c_.store->GetRemoval(id, request_id);
  if (absl::IsNotFound(payload.status())) return std::optional<uint64_t>();
  RETURN_IF_ERROR(payload.status());
  ASSIGN_OR_RETURN(const RequestRecord record, DecodeRequest(*payload));
  if (record.outcome.size() != 8) return absl::DataLossError(StrCat("session '", id, "': its removal is damaged"));
  const bool forgotten = record.end_time + c_.options.request_ttl <= c_.Now();
  return forgotten ? std::optional<uint64_t>() : ReadBigEndian(record.outcome);
}

SessionWrite::Removal SessionManagerImpl::RecordRemoval(const SessionKey& key, const std::string& request_id) const {
  std::string uid;
  AppendBigEndian(&uid, key.uid);
  SessionWrite write;
  RecordOperation(request_id, OperationHash("delete").Take(), std::move(uid), &write);
  return {request_id, std::move(write.requests.front().second), c_.options.request_ttl};
}

absl::Status SessionManagerImpl::Remove(const Entry& entry, std::optional<std::string> etag, bool only_expired,
                                        const std::string& request_id) {
  SessionKey key;
  std::string state_key;
  std::shared_ptr<Outcome> outcome;
  {
    absl::MutexLock lock(&entry->mu);
    if (entry->busy) return BusyError(entry->id);
    const absl::Status status = Load(*entry);
    if (only_expired && !(entry->loaded && Expired(entry->header))) return absl::OkStatus();
    if (!only_expired && absl::IsNotFound(status)) return status;
    const bool damaged = !entry->loaded;
    if (damaged) {
      if (!absl::IsDataLoss(status) && !absl::IsFailedPrecondition(status)) return status;
      ASSIGN_OR_RETURN(const StoredSession stored, c_.store->Find(entry->id));  // its name is all that is needed
      entry->key = stored.key;
    }
    key = entry->key;
    RETURN_IF_ERROR(Lease(*entry, LeaseKeeper::Patience::kNone, absl::InfinitePast()));
    HoldScope hold(*entry, c_.leases.get());
    if (!damaged) {
      RETURN_IF_ERROR(Load(*entry));
      if (entry->key != key) return SessionNotFound(entry->id);
      if (only_expired && !Expired(entry->header)) return absl::OkStatus();
      RETURN_IF_ERROR(FindOperation(key, request_id, OperationHash("delete").Take()).status());
      RETURN_IF_ERROR(CheckEtag(entry->id, etag, Etag(key.uid, entry->header)));
    }
    state_key = SessionStateKey(key, damaged ? 0 : entry->header.branch);
    SessionWrite remove;
    remove.kind = SessionWrite::Kind::kRemove;
    remove.key = key;
    remove.lease = entry->lease;
    if (!request_id.empty()) remove.removal = RecordRemoval(key, request_id);
    outcome = Write(std::move(remove), !only_expired);
    hold.HandOn();
  }
  const absl::Status status = outcome->Wait();
  {
    absl::MutexLock lock(&entry->mu);
    entry->Release(c_.leases.get());
    entry->loaded = false;
  }
  RETURN_IF_ERROR(status);
  --c_.sessions;
  c_.cache->Remove(key.uid);
  {
    absl::MutexLock lock(&c_.foreign_mu);
    c_.foreign.erase(state_key);
  }
  if (c_.options.on_removed) c_.options.on_removed(state_key);
  return absl::OkStatus();
}

}  // namespace smt
