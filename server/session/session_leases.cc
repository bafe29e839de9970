// Whose turn it is in a store that several servers share: a session is leased before it is changed, and what is heard
// of leases meanwhile reaches the turn that runs. In a store of this server's own a session is only made busy.
#include <utility>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/session/session_manager_impl.h"

namespace smt {
absl::Status LeaseLost(std::string_view id) {
  return WithDetails(
      absl::UnavailableError(StrCat("the lease on session '", id, "' is lost: another server may go on with it")),
      {.reason = kLeaseLost, .retry_delay = absl::Milliseconds(100)});
}

absl::Status SessionManagerImpl::Lease(SessionEntry& entry, LeaseKeeper::Patience patience, absl::Time deadline,
                                       const std::string& request_id) {
  entry.busy = true;
  if (c_.leases == nullptr) return absl::OkStatus();
  const SessionKey key = entry.key;
  entry.mu.Unlock();
  absl::StatusOr<std::string> token =
      c_.leases->Acquire(key, patience, deadline, [&] { return Runs(key, request_id); });
  entry.mu.Lock();
  entry.key = key;  // others may have looked meanwhile
  entry.loaded = false;
  if (!token.ok()) {
    entry.Release(c_.leases.get());
    return token.status();
  }
  entry.lease = *std::move(token);
  return absl::OkStatus();
}

absl::StatusOr<bool> SessionManagerImpl::Runs(const SessionKey& key, const std::string& request_id) {
  ASSIGN_OR_RETURN(const StoredSession stored, c_.store->Find(key.id));
  RETURN_IF_ERROR(stored.header.status());
  ASSIGN_OR_RETURN(const SessionHeader header, DecodeHeader(*stored.header));
  return stored.key == key && header.turn_open && header.open_request_id == request_id;
}

absl::Status SessionManagerImpl::CancelElsewhere(std::string_view session_id, std::string_view request_id,
                                                 absl::Time deadline) {
  ASSIGN_OR_RETURN(RequestRecord record, GetRequest(session_id, request_id));
  if (c_.leases == nullptr || record.state != RequestState::kRunning) return absl::OkStatus();
  const Entry entry = table_.Acquire(session_id);
  SessionKey key;
  {
    absl::MutexLock lock(&entry->mu);
    key = entry->key;
  }
  // The session is not made busy meanwhile: a request that waits here for this one to end goes on waiting.
  const absl::StatusOr<std::string> token =
      c_.leases->Acquire(key, LeaseKeeper::Patience::kCancel, deadline, [&] { return Runs(key, record.request_id); });
  if (token.ok()) c_.leases->Release(key, *token);
  absl::MutexLock lock(&entry->mu);
  RETURN_IF_ERROR(Load(*entry));
  // Left by a server that is gone, it is recorded as interrupted.
  if (token.ok() && !entry->busy) CheckIdle(*entry).IgnoreError();
  if (token.ok()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::optional<RequestRecord> now, FindRequest(key, record.request_id));
  return now && now->state == RequestState::kRunning ? token.status() : absl::OkStatus();
}

absl::Status SessionManagerImpl::Hold(SessionEntry& entry, LeaseKeeper::Patience patience, absl::Time deadline,
                                      const std::string& request_id) {
  RETURN_IF_ERROR(Lease(entry, patience, deadline, request_id));
  if (c_.leases == nullptr) return absl::OkStatus();
  const SessionKey key = entry.key;
  absl::Status status = Load(entry);
  // Made anew under its name meanwhile: the lease is of the one that is gone.
  if (status.ok() && (entry.key != key || Expired(entry.header))) status = SessionNotFound(entry.id);
  if (!status.ok()) {
    entry.key = key;
    entry.Release(c_.leases.get());
  }
  return status;
}

bool SessionManagerImpl::LeaseRanOut(const SessionEntry& entry) const {
  return c_.leases != nullptr && !entry.lease.empty() && !c_.leases->Holds(entry.key, entry.lease);
}

absl::Status SessionManagerImpl::LoadToRead(SessionEntry& entry) {
  RETURN_IF_ERROR(Load(entry));
  return LeaseRanOut(entry) ? LeaseLost(entry.id) : absl::OkStatus();
}

absl::Status SessionManagerImpl::CheckIdle(SessionEntry& entry) {
  if (entry.busy) return BusyError(entry.id);
  if (!entry.header.turn_open) return absl::OkStatus();
  if (absl::Status held = Hold(entry); !held.ok()) return absl::IsAborted(held) ? BusyError(entry.id) : held;
  entry.Release(c_.leases.get());
  return Load(entry);
}

void SessionManagerImpl::OnLeaseLost(const SessionKey& key, const std::string& token) {
  const Entry entry = table_.Peek(key.id);
  if (entry == nullptr) return;
  std::shared_ptr<TurnLog> turn;
  {
    absl::MutexLock lock(&entry->mu);
    if (entry->lease != token) return;
    turn = entry->turn;
  }
  if (turn != nullptr && turn->Fail(LeaseLost(key.id))) turn->Tell();
}

void SessionManagerImpl::OnLeaseWanted(const WantedLease& wanted) {
  const Entry entry = table_.Peek(wanted.lease.key.id);
  if (entry == nullptr) return;
  std::shared_ptr<TurnLog> turn;
  {
    absl::MutexLock lock(&entry->mu);
    if (entry->lease == wanted.lease.token && entry->in_turn) turn = entry->turn;
  }
  if (turn != nullptr && turn->AskToEnd(wanted.handover)) turn->Tell();
}

void SessionManagerImpl::OnStoreReplaced() {
  c_.cache->Clear();
  for (const Entry& entry : table_.All()) {
    absl::MutexLock lock(&entry->mu);
    (entry->busy ? entry->stale : entry->loaded) = entry->busy;
  }
  if (c_.options.on_store_replaced) c_.options.on_store_replaced();
}

}  // namespace smt
