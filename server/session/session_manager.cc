// The life of a session: made, found, changed. Lists are in session_listing.cc, removal in session_removal.cc.
#include "server/session/session_manager.h"

#include <algorithm>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/escaping.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/session/session_manager_impl.h"
#include "server/store/record_format.h"

namespace smt {
namespace {

StatusDetails::Resource SessionResource(std::string_view id) { return {"session", StrCat("sessions/", id), ""}; }

absl::Status Exists(std::string_view id) {
  return WithDetails(absl::AlreadyExistsError(StrCat("session '", id, "' exists already")),
                     {.reason = "SESSION_EXISTS", .resource = SessionResource(id)});
}

}  // namespace

absl::Status SessionNotFound(std::string_view id) {
  return WithDetails(absl::NotFoundError(StrCat("session '", id, "' does not exist or has expired")),
                     {.reason = "SESSION_NOT_FOUND", .resource = SessionResource(id)});
}

absl::Status CheckEtag(std::string_view id, const std::optional<std::string>& wanted, const std::string& present) {
  if (!wanted || *wanted == present) return absl::OkStatus();
  return WithDetails(
      absl::AbortedError(StrCat("session '", id, "' has etag \"", present, "\", the request expects \"",
                                absl::CHexEscape(wanted->substr(0, 64)), "\": it was changed in between")),
      {.reason = "ETAG_MISMATCH", .metadata = {{"etag", present}}});
}

absl::Status BusyError(std::string_view id) {
  return WithDetails(
      absl::AbortedError(StrCat("session '", id, "' is being written by another request; try again when it ends")),
      {.reason = "SESSION_BUSY", .retry_delay = absl::Milliseconds(100)});
}

absl::StatusOr<std::unique_ptr<SessionManager>> SessionManager::Open(Options options,
                                                                     std::unique_ptr<SessionStore> store) {
  int64_t sessions = 0;
  if (options.max_sessions > 0) {
    ASSIGN_OR_RETURN(sessions, store->Count());
  }
  return std::make_unique<SessionManagerImpl>(std::move(options), std::move(store), sessions);
}

SessionManagerImpl::SessionManagerImpl(Options options, std::unique_ptr<SessionStore> store, int64_t sessions)
    : table_(options.max_cached_sessions) {
  c_.sessions = sessions;
  c_.options = std::move(options);
  c_.store = std::move(store);
  c_.cache = std::make_unique<StateCache>(c_.options.host_state_bytes);
  if (c_.options.leases != nullptr) {
    LeaseKeeper::Options leases;
    leases.ttl = c_.options.lease_ttl;
    leases.on_lost = [this](const SessionKey& key, const std::string& token) { OnLeaseLost(key, token); };
    leases.on_wanted = [this](const WantedLease& wanted) { OnLeaseWanted(wanted); };
    leases.on_replaced = [this] { OnStoreReplaced(); };
    c_.leases = std::make_unique<LeaseKeeper>(*c_.options.leases, std::move(leases));
  }
  c_.writer = std::make_unique<SessionWriter>(*c_.store, *c_.cache, c_.options.max_pending_snapshot_bytes);
  if (c_.leases != nullptr) c_.writer->ShareStore(c_.options.leases, c_.leases.get());
  if (c_.options.sweep_interval != absl::InfiniteDuration()) sweep_thread_ = std::thread([this] { SweepLoop(); });
}

SessionManagerImpl::~SessionManagerImpl() {
  {
    absl::MutexLock lock(&sweep_mu_);
    stop_ = true;
  }
  if (sweep_thread_.joinable()) sweep_thread_.join();
  Flush().IgnoreError();
}

void SessionManagerImpl::Touch(SessionHeader* header) const {
  ++header->revision;
  header->update_time = c_.Now();
  header->expire_time = header->update_time + header->ttl;  // infinite + anything is infinite
}

std::shared_ptr<SessionManagerImpl::Outcome> SessionManagerImpl::Write(SessionWrite write, bool sync,
                                                                       std::shared_ptr<TurnLog> rests_on) {
  auto outcome = std::make_shared<Outcome>();
  const auto done = [outcome](const absl::Status& status) {
    absl::MutexLock lock(&outcome->mu);
    outcome->status = status;
    outcome->done = true;
  };
  c_.writer->Enqueue(std::move(write), sync, done, std::move(rests_on));
  return outcome;
}

uint64_t SessionManagerImpl::DrawUid() {
  absl::MutexLock lock(&random_mu_);
  return absl::Uniform<uint64_t>(random_, 1, uint64_t{1} << 63);
}

std::string SessionManagerImpl::DrawId(std::string_view scope, std::string_view request_id) {
  static constexpr std::string_view kAlphabet = "abcdefghijklmnopqrstuvwxyz234567";
  uint64_t halves[2];
  if (request_id.empty()) {
    absl::MutexLock lock(&random_mu_);
    for (uint64_t& half : halves) half = absl::Uniform<uint64_t>(random_);
  } else {
    for (uint64_t i = 0; i < 2; ++i) halves[i] = Xxh3(StrCat(i, "/", scope, "/", request_id));
  }
  std::string id = "s-";
  for (int i = 0; i < 20; ++i) id.push_back(kAlphabet[halves[i / 10] >> 5 * (i % 10) & 31]);
  return id;
}

absl::Status SessionManagerImpl::Load(SessionEntry& entry) {
  // What others may write is read anew for each call.
  if (!entry.loaded || (c_.leases != nullptr && !entry.busy)) {
    entry.loaded = false;
    const auto found = c_.store->Find(entry.id);
    if (absl::IsNotFound(found.status())) return SessionNotFound(entry.id);
    RETURN_IF_ERROR(found.status());
    const StoredSession& stored = *found;
    RETURN_IF_ERROR(stored.header.status());
    auto header = DecodeHeader(*stored.header);
    if (!header.ok()) {
      return absl::Status(header.status().code(),
                          StrCat("session '", entry.id, "': ", std::string(header.status().message())));
    }
    entry.key = stored.key;
    entry.header = *std::move(header);
    entry.idle_end = entry.header.position;
    if (entry.header.turn_open && !entry.in_turn) {
      if (c_.leases == nullptr || !entry.lease.empty()) {
        RETURN_IF_ERROR(EndInterrupted(entry));
      } else {  // it may run on another server
        ASSIGN_OR_RETURN(const int64_t end, c_.store->LogEnd(entry.key, entry.header.branch));
        entry.idle_end = std::max(end, entry.header.position);
      }
    }
    entry.loaded = true;
  }
  if (!entry.busy && Expired(entry.header)) return SessionNotFound(entry.id);
  return absl::OkStatus();
}

absl::Status SessionManagerImpl::EndInterrupted(SessionEntry& entry) {
  ASSIGN_OR_RETURN(const int64_t own_end, c_.store->LogEnd(entry.key, entry.header.branch));
  const int64_t end = std::max(own_end, entry.header.before.end());
  if (end < entry.header.position) {
    return absl::DataLossError(StrCat("session '", entry.id, "': the log ends at position ", end, ", it should reach ",
                                      entry.header.position));
  }
  SessionWrite write;
  write.key = entry.key;
  write.lease = entry.lease;
  if (!entry.header.open_request_id.empty()) {
    auto payload = c_.store->GetRequest(entry.key, entry.header.open_request_id);
    auto record = payload.ok() ? DecodeRequest(*payload) : absl::StatusOr<RequestRecord>(payload.status());
    // A damaged record does not hold up the session: whoever asks for the request is told.
    if (record.ok() && record->state == RequestState::kRunning) {
      record->state = RequestState::kInterrupted;
      record->end_position = end;
      record->end_time = c_.Now();
      write.requests.emplace_back(record->request_id, EncodeRequest(*record));
    }
  }
  entry.idle_end = entry.header.position = end;
  entry.header.durable_position = end;  // read back from disk by this process
  entry.header.turn_open = false;
  entry.header.open_request_id.clear();
  ++entry.header.revision;
  write.header = EncodeHeader(entry.header);
  return c_.store->Commit({&write, 1}, false)[0];
}

absl::Status SessionManagerImpl::CheckRoom() {
  const int64_t limit = c_.options.max_sessions;
  if (limit > 0 && c_.sessions >= limit) RETURN_IF_ERROR(SweepSessions(nullptr));  // expired ones make room
  if (limit <= 0 || c_.sessions < limit) return absl::OkStatus();
  return absl::ResourceExhaustedError(StrCat("the server holds ", c_.sessions.load(), " sessions, its limit is ", limit,
                                             "; delete some or let them expire"));
}

absl::StatusOr<SessionInfo> SessionManagerImpl::Create(std::string id, absl::Duration ttl,
                                                       std::map<std::string, std::string> labels,
                                                       const std::string& request_id) {
  RETURN_IF_ERROR(CheckRequestId(request_id));
  RETURN_IF_ERROR(CheckTtl(ttl));
  RETURN_IF_ERROR(CheckLabels(labels));
  const std::string hash = OperationHash("create").Add(id).Add(ttl).Add(labels).Take();
  if (id.empty()) id = DrawId("create", request_id);
  RETURN_IF_ERROR(CheckSessionId(id));
  ASSIGN_OR_RETURN(std::optional<SessionInfo> made, FindMade(id, request_id, hash));
  if (made) return *std::move(made);
  SessionHeader header;
  header.ttl = ttl;
  header.labels = std::move(labels);
  return Make(std::move(id), std::move(header), {}, request_id, hash);
}

absl::StatusOr<SessionInfo> SessionManagerImpl::Make(std::string id, SessionHeader header, SessionWrite write,
                                                     const std::string& request_id, const std::string& hash) {
  RETURN_IF_ERROR(CheckRoom());
  const Entry entry = table_.Acquire(id);
  const SessionKey key{id, DrawUid()};
  std::string lease;
  if (c_.leases != nullptr) {
    Remove(entry, std::nullopt, true).IgnoreError();  // an expired one of this name
    ASSIGN_OR_RETURN(lease, c_.leases->Acquire(key, LeaseKeeper::Patience::kNone, absl::InfinitePast()));
  }
  const auto give_back = absl::MakeCleanup([&] {
    if (!lease.empty()) c_.leases->Release(key, lease);
  });
  // Somebody was faster, perhaps with the same request.
  const auto exists = [&]() -> absl::StatusOr<SessionInfo> {
    ASSIGN_OR_RETURN(std::optional<SessionInfo> made, FindMade(id, request_id, hash));
    return made ? absl::StatusOr<SessionInfo>(*std::move(made)) : Exists(id);
  };
  std::string replaced;  // state key of an expired session of this name
  absl::Status status;
  {
    absl::ReleasableMutexLock lock(&entry->mu);
    status = entry->busy ? absl::OkStatus() : Load(*entry);
    if (status.ok()) {
      lock.Release();
      return exists();
    }
    if (!absl::IsNotFound(status)) return status;
    if (entry->loaded) {  // expired
      replaced = SessionStateKey(entry->key, entry->header.branch);
      SessionWrite remove;
      remove.kind = SessionWrite::Kind::kRemove;
      remove.key = entry->key;
      Write(std::move(remove), false);
    }
    entry->busy = true;
    entry->loaded = false;
    entry->key = key;
    header.model_fingerprint = c_.options.model_fingerprint;
    header.create_time = c_.Now();
    header.durable_position = header.position;
    Touch(&header);
    entry->header = std::move(header);
    entry->idle_end = entry->header.position;
    write.kind = SessionWrite::Kind::kCreate;
    write.key = entry->key;
    write.lease = lease;
    write.header = EncodeHeader(entry->header);
    std::vector<StoreReference> references = ReferencesOf(entry->key, entry->header);
    if (!references.empty()) write.references = std::move(references);
    RecordOperation(request_id, hash, *write.header, &write);
    const auto outcome = Write(std::move(write), true);
    lock.Release();
    status = outcome->Wait();
  }
  if (!replaced.empty() && c_.options.on_removed) c_.options.on_removed(replaced);
  absl::ReleasableMutexLock lock(&entry->mu);
  const SessionInfo info = entry->Info();
  entry->Release(c_.leases.get());
  if (absl::IsAlreadyExists(status)) {
    lock.Release();
    return exists();
  }
  RETURN_IF_ERROR(status);
  if (replaced.empty()) ++c_.sessions;
  entry->loaded = true;  // others may have looked meanwhile: what they loaded is this
  return info;
}

absl::StatusOr<SessionInfo> SessionManagerImpl::Get(std::string_view id) {
  RETURN_IF_ERROR(CheckSessionId(id));
  const Entry entry = table_.Acquire(id);
  absl::MutexLock lock(&entry->mu);
  RETURN_IF_ERROR(LoadToRead(*entry));
  return entry->Info();
}

absl::StatusOr<SessionInfo> SessionManagerImpl::UpdateSession(std::string_view id, const Update& update) {
  RETURN_IF_ERROR(CheckSessionId(id));
  RETURN_IF_ERROR(CheckRequestId(update.request_id));
  if (update.ttl) RETURN_IF_ERROR(CheckTtl(*update.ttl));
  if (update.labels) RETURN_IF_ERROR(CheckLabels(*update.labels));
  OperationHash meaning("update");
  if (update.ttl) meaning.Add("ttl").Add(*update.ttl);
  if (update.labels) meaning.Add("labels").Add(*update.labels);
  const std::string hash = meaning.Take();
  const Entry entry = table_.Acquire(id);
  SessionInfo info;
  std::shared_ptr<Outcome> outcome;
  bool held = false;
  {
    absl::MutexLock lock(&entry->mu);
    RETURN_IF_ERROR(Load(*entry));
    ASSIGN_OR_RETURN(const std::optional<std::string> done, FindOperation(entry->key, update.request_id, hash));
    if (done) {
      ASSIGN_OR_RETURN(const SessionHeader header, DecodeHeader(*done));
      return MakeInfo(entry->key, header);
    }
    // Beside a turn of this server too, under whose lease it then writes.
    const bool holds = !entry->busy && c_.leases != nullptr;
    if (holds) RETURN_IF_ERROR(Hold(*entry));
    if (absl::Status etag = CheckEtag(id, update.etag, Etag(entry->key.uid, entry->header)); !etag.ok()) {
      if (holds) entry->Release(c_.leases.get());
      return etag;
    }
    held = holds;
    if (update.ttl) entry->header.ttl = *update.ttl;
    if (update.labels) entry->header.labels = *update.labels;
    Touch(&entry->header);
    info = entry->Info();
    SessionWrite write;
    write.key = entry->key;
    write.lease = entry->lease;
    write.header = EncodeHeader(entry->header);
    RecordOperation(update.request_id, hash, *write.header, &write);
    outcome = Write(std::move(write), true, entry->turn);
  }
  if (held) {
    RETURN_IF_ERROR(Settle(entry, *outcome));
    return info;
  }
  const absl::Status status = outcome->Wait();
  if (!status.ok()) {
    absl::MutexLock lock(&entry->mu);
    entry->stale = entry->busy;
    if (!entry->busy) entry->loaded = false;
    return status;
  }
  return info;
}

absl::Status SessionManagerImpl::Flush() {
  for (const Entry& entry : table_.All()) {
    absl::MutexLock lock(&entry->mu);
    c_.WritePending(*entry);
  }
  return c_.writer->Flush();
}

absl::Status SessionManagerImpl::Backup(const std::string& dir) {
  RETURN_IF_ERROR(Flush());
  return c_.store->Backup(dir);
}

SessionCounters SessionManagerImpl::counters() const {
  SessionCounters out;
  c_.writer->FillCounters(&out);
  out.snapshots_damaged = c_.damaged_snapshots;
  out.expired_sessions = c_.expired;
  out.host_state_bytes = c_.cache->bytes();
  out.stored_sessions = std::max<int64_t>(0, c_.sessions + uncounted_);
  if (c_.leases != nullptr) {
    out.leases_held = c_.leases->held();
    out.lease_renew_failures = c_.leases->renew_failures();
    out.lease_conflicts = c_.leases->conflicts();
  }
  return out;
}

}  // namespace smt
