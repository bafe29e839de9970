// Beginning a turn: who may write, and what a request_id that was seen before gets.
#include <algorithm>

#include "absl/synchronization/notification.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/session/session_manager_impl.h"

namespace smt {
namespace {

// How often one that waits for a session looks whether it is still wanted.
constexpr absl::Duration kAbandonedPoll = absl::Milliseconds(50);

absl::Status RequestNotFound(std::string_view session_id, std::string_view request_id) {
  return WithDetails(
      absl::NotFoundError(StrCat("session '", session_id, "' has no request '", request_id,
                                 "', or it ended longer ago than requests are remembered")),
      {.reason = "REQUEST_NOT_FOUND", .resource = StatusDetails::Resource{"request", std::string(request_id), ""}});
}

absl::Status StillRunning(std::string_view session_id, std::string_view request_id) {
  return WithDetails(
      absl::AbortedError(StrCat("request '", request_id, "' on session '", session_id, "' is still running")),
      {.reason = "REQUEST_RUNNING", .retry_delay = absl::Milliseconds(100)});
}

}  // namespace

absl::Status ReusedRequestId(std::string_view session_id, std::string_view request_id) {
  return WithDetails(
      absl::InvalidArgumentError(StrCat("request_id \"", request_id, "\" was used on session '", session_id,
                                        "' for a request with another meaning; use a new one")),
      {.reason = "REQUEST_ID_REUSED", .violations = {{"request_id", "was used for a request with another meaning"}}});
}

absl::StatusOr<std::optional<RequestRecord>> SessionManagerImpl::FindRequest(const SessionKey& key,
                                                                             const std::string& request_id) {
  const auto payload = c_.store->GetRequest(key, request_id);
  if (absl::IsNotFound(payload.status())) return std::optional<RequestRecord>();
  RETURN_IF_ERROR(payload.status());
  auto record = DecodeRequest(*payload);
  if (!record.ok()) {
    return absl::Status(record.status().code(), StrCat("session '", key.id, "': request '", request_id,
                                                       "': ", std::string(record.status().message())));
  }
  const bool forgotten =
      record->state != RequestState::kRunning && record->end_time + c_.options.request_ttl <= c_.Now();
  return forgotten ? std::optional<RequestRecord>() : *std::move(record);
}

absl::StatusOr<RequestRecord> SessionManagerImpl::GetRequest(std::string_view session_id, std::string_view request_id) {
  RETURN_IF_ERROR(CheckSessionId(session_id));
  RETURN_IF_ERROR(CheckRequestId(request_id));
  const Entry entry = table_.Acquire(session_id);
  absl::MutexLock lock(&entry->mu);
  RETURN_IF_ERROR(LoadToRead(*entry));
  std::optional<RequestRecord> record;
  if (entry->in_turn && !request_id.empty() && entry->request.request_id == request_id) {
    record = entry->request;
  } else {
    ASSIGN_OR_RETURN(record, FindRequest(entry->key, std::string(request_id)));
  }
  if (!record || record->state == RequestState::kOperation) return RequestNotFound(session_id, request_id);
  if (record->state == RequestState::kRunning) {  // here, on another server, or on one that is gone
    record->end_position = std::max(entry->log_end(), record->start_position + record->prompt_tokens);
  }
  return *std::move(record);
}

absl::StatusOr<std::optional<RequestRecord>> SessionManagerImpl::CheckReplay(SessionEntry& entry,
                                                                             const TurnSpec& spec) {
  std::optional<RequestRecord> record;
  if (spec.request_id.empty()) return record;
  const bool running = entry.in_turn && entry.request.request_id == spec.request_id;
  if (running) {
    record = entry.request;
  } else {
    ASSIGN_OR_RETURN(record, FindRequest(entry.key, spec.request_id));
  }
  if (record && record->semantic_hash != spec.semantic_hash) {
    return ReusedRequestId(entry.id, spec.request_id);
  }
  if (running) {
    record.reset();
    if (!spec.wait) return StillRunning(entry.id, spec.request_id);
  }
  return record;
}

absl::StatusOr<bool> SessionManagerImpl::ClaimNew(SessionEntry& entry) {
  const Entry shared = table_.Acquire(entry.id);  // this one
  const bool expired = entry.loaded;
  entry.mu.Unlock();
  absl::Status ready = CheckRoom();
  if (ready.ok() && expired) ready = Remove(shared, std::nullopt, true);
  entry.mu.Lock();
  RETURN_IF_ERROR(ready);
  const absl::Status loaded = Load(entry);
  if (!absl::IsNotFound(loaded) || entry.loaded || entry.busy) return false;
  entry.key = {entry.id, DrawUid()};
  // Nobody else can hold it; another server that makes one of this name has a lease on its own.
  RETURN_IF_ERROR(Lease(entry, LeaseKeeper::Patience::kNone, absl::InfinitePast()));
  entry.header = {};
  entry.header.model_fingerprint = c_.options.model_fingerprint;
  entry.header.create_time = c_.Now();
  entry.idle_end = 0;
  entry.makes = true;
  entry.loaded = true;
  return true;
}

// Waits for its turn and checks the preconditions. Nothing returned: the session is ours, busy set.
absl::StatusOr<std::optional<RequestRecord>> SessionManagerImpl::Claim(SessionEntry& entry, const TurnSpec& spec) {
  bool elsewhere = false;
  for (;;) {
    if (spec.abandoned && spec.abandoned()) {
      return absl::CancelledError(StrCat("the client went away before its turn on session '", entry.id, "' began"));
    }
    const absl::Status loaded = Load(entry);
    const bool absent = spec.create && absl::IsNotFound(loaded);
    if (!absent) RETURN_IF_ERROR(loaded);
    if (absent && !entry.busy) {
      ASSIGN_OR_RETURN(const bool ours, ClaimNew(entry));
      if (!ours) continue;
      break;
    }
    std::optional<RequestRecord> replay;
    if (!absent) {
      ASSIGN_OR_RETURN(replay, CheckReplay(entry, spec));
    }
    // One that is not known to have ended runs on another server, or ran on one that is gone: the lease tells.
    elsewhere = replay && replay->state == RequestState::kRunning;
    if (replay && !elsewhere) return replay;
    if (!entry.busy) break;
    if (!spec.wait) return BusyError(entry.id);
    const auto free = [](SessionEntry* e) ABSL_NO_THREAD_SAFETY_ANALYSIS { return !e->busy; };
    const absl::Time poll = spec.abandoned ? std::min(spec.deadline, absl::Now() + kAbandonedPoll) : spec.deadline;
    if (!entry.mu.AwaitWithDeadline(absl::Condition(+free, &entry), poll) && poll == spec.deadline) {
      return absl::DeadlineExceededError(
          StrCat("session '", entry.id, "' was being written by another request until the deadline"));
    }
  }
  using Patience = LeaseKeeper::Patience;
  if (entry.makes) {
    HoldScope hold(entry, c_.leases.get());
    RETURN_IF_ERROR(CheckPreconditions(entry, spec));
    hold.HandOn();
    ++c_.sessions;
    entry.in_turn = true;
    return std::optional<RequestRecord>();
  }
  if (absl::Status held = Hold(entry, spec.wait ? Patience::kWait : Patience::kNone, spec.deadline); !held.ok()) {
    return elsewhere && absl::IsAborted(held) ? StillRunning(entry.id, spec.request_id) : held;
  }
  HoldScope hold(entry, c_.leases.get());
  if (c_.leases != nullptr) {  // it may have run elsewhere
    ASSIGN_OR_RETURN(std::optional<RequestRecord> replay, CheckReplay(entry, spec));
    if (replay) return replay;
  }
  RETURN_IF_ERROR(CheckPreconditions(entry, spec));
  hold.HandOn();
  entry.in_turn = true;
  return std::optional<RequestRecord>();
}

absl::Status SessionManagerImpl::CheckPreconditions(SessionEntry& entry, const TurnSpec& spec) {
  RETURN_IF_ERROR(c_.CheckModel(entry.id, entry.header));
  RETURN_IF_ERROR(CheckEtag(entry.id, spec.etag, Etag(entry.key.uid, entry.header)));
  if (spec.expected_position && *spec.expected_position != entry.header.position) {
    return WithDetails(absl::AbortedError(StrCat("session '", entry.id, "' is at position ", entry.header.position,
                                                 ", the request expects ", *spec.expected_position)),
                       {.reason = "POSITION_MISMATCH", .metadata = {{"position", StrCat(entry.header.position)}}});
  }
  if (spec.empty_session && *spec.empty_session != (entry.header.position == 0)) {
    return WithDetails(absl::AbortedError(StrCat("session '", entry.id, "' is at position ", entry.header.position,
                                                 ", it was changed while the request was being prepared")),
                       {.reason = "POSITION_MISMATCH", .metadata = {{"position", StrCat(entry.header.position)}}});
  }
  return absl::OkStatus();
}

void SessionManagerImpl::OpenTurn(SessionEntry& entry, std::vector<int32_t> prompt) {
  RequestRecord& request = entry.request;
  const bool sync = request.durability != Durability::kNone || entry.makes;
  SessionHeader& header = entry.header;
  const int64_t durable = header.durable_position;
  SessionWrite write;
  if (entry.makes) write.kind = SessionWrite::Kind::kCreate;
  write.key = entry.key;
  write.lease = entry.lease;
  write.branch = header.branch;
  write.log_begin = header.before.end();
  write.position = header.position;
  entry.idle_end = header.position += static_cast<int64_t>(prompt.size());
  write.ids = std::move(prompt);
  header.turn_open = true;
  header.open_request_id = request.request_id;
  Touch(&header);
  if (sync) header.durable_position = header.position;  // true if it is ever read
  write.header = EncodeHeader(header);
  if (!request.request_id.empty()) write.requests.emplace_back(request.request_id, EncodeRequest(request));
  entry.turn = std::make_shared<TurnLog>(std::move(write), durable, request.durability == Durability::kToken);
  c_.writer->Open(entry.turn, sync);
}

absl::StatusOr<BeginTurnResult> SessionManagerImpl::BeginTurn(TurnSpec spec) {
  if (spec.create && spec.session_id.empty()) spec.session_id = DrawId("create", "");
  bool makes = false;
  if (!spec.create || c_.leases == nullptr) return TryBeginTurn(std::move(spec), &makes);
  for (;;) {
    ASSIGN_OR_RETURN(BeginTurnResult begun, TryBeginTurn(spec, &makes));
    if (!makes || !absl::IsAlreadyExists(begun.turn->AwaitBegun())) return begun;
    // Another server was faster: the turn is to be one of its session.
    absl::Notification ended;
    begun.turn->Finish(RequestState::kFailed, "", [&](const absl::Status&, int64_t) { ended.Notify(); });
    ended.WaitForNotification();
  }
}

absl::StatusOr<BeginTurnResult> SessionManagerImpl::TryBeginTurn(TurnSpec spec, bool* makes) {
  RETURN_IF_ERROR(CheckSessionId(spec.session_id));
  RETURN_IF_ERROR(CheckRequestId(spec.request_id));
  if (spec.durability == Durability::kToken && c_.options.token_durability) {
    RETURN_IF_ERROR(c_.options.token_durability());
  }
  const Entry entry = table_.Acquire(spec.session_id);
  SessionInfo before;
  std::vector<int32_t> recent;
  {
    absl::MutexLock lock(&entry->mu);
    ASSIGN_OR_RETURN(std::optional<RequestRecord> replay, Claim(*entry, spec));
    if (replay) return BeginTurnResult{nullptr, std::move(replay)};
    SessionHeader& header = entry->header;
    const int64_t head = header.position, m = c_.options.input_tokens;
    if (head > 0 && m > 0) {
      auto ids = ReadBranch(*c_.store, ViewOf(entry->key, header), std::max<int64_t>(1, head - m + 1), head);
      if (!ids.ok()) {
        entry->Release(c_.leases.get());
        return c_.WithLastGood(ids.status(), entry->key, header);
      }
      recent = *std::move(ids);
    }
    before = entry->Info();
    before.active = false;
    RequestRecord& request = entry->request;
    request = {};
    request.request_id = spec.request_id;
    request.semantic_hash = std::move(spec.semantic_hash);
    request.params = std::move(spec.params);
    request.branch = header.branch;
    request.start_position = head;
    request.prompt_tokens = static_cast<int64_t>(spec.prompt.size());
    request.seed = spec.seed;
    request.durability = spec.durability;
    request.create_time = c_.Now();
    request.end_time = absl::InfiniteFuture();
    RememberTurn(&header, request);
    OpenTurn(*entry, std::move(spec.prompt));
    *makes = entry->makes;
  }
  return BeginTurnResult{MakeTurn(c_, entry, std::move(before), std::move(recent)), std::nullopt};
}

absl::StatusOr<ResumeTurnResult> SessionManagerImpl::ResumeTurn(std::string_view session_id,
                                                                std::string_view request_id, absl::Time deadline) {
  RETURN_IF_ERROR(CheckSessionId(session_id));
  RETURN_IF_ERROR(CheckRequestId(request_id));
  const Entry entry = table_.Acquire(session_id);
  SessionInfo before;
  RequestRecord record;
  const auto find = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry->mu) -> absl::Status {
    ASSIGN_OR_RETURN(std::optional<RequestRecord> found, FindRequest(entry->key, std::string(request_id)));
    if (!found || found->state == RequestState::kOperation) return RequestNotFound(session_id, request_id);
    record = *std::move(found);
    return absl::OkStatus();
  };
  const auto ended = [&] {
    return record.state != RequestState::kInterrupted && record.state != RequestState::kRunning;
  };
  {
    absl::MutexLock lock(&entry->mu);
    RETURN_IF_ERROR(Load(*entry));
    if (entry->in_turn && entry->request.request_id == request_id) return StillRunning(session_id, request_id);
    RETURN_IF_ERROR(find());
    if (ended()) return ResumeTurnResult{nullptr, std::move(record)};
    if (c_.leases == nullptr) RETURN_IF_ERROR(CheckSuperseded(*entry, record));
    if (entry->busy) return BusyError(session_id);
    RETURN_IF_ERROR(Hold(*entry, LeaseKeeper::Patience::kAsk, deadline, std::string(request_id)));
    HoldScope hold(*entry, c_.leases.get());
    RETURN_IF_ERROR(find());
    if (ended()) return ResumeTurnResult{nullptr, std::move(record)};
    SessionHeader& header = entry->header;
    RETURN_IF_ERROR(CheckSuperseded(*entry, record));
    RETURN_IF_ERROR(c_.CheckModel(session_id, header));
    entry->in_turn = true;
    before = entry->Info();
    before.active = false;
    record.state = RequestState::kRunning;
    record.end_position = 0;
    record.outcome.clear();
    record.end_time = absl::InfiniteFuture();
    entry->request = record;
    OpenTurn(*entry, {});
    hold.HandOn();
  }
  return ResumeTurnResult{MakeTurn(c_, entry, std::move(before), {}), std::move(record)};
}

absl::Status SessionManagerImpl::CheckSuperseded(const SessionEntry& entry, const RequestRecord& record) const {
  const SessionHeader& header = entry.header;
  if (header.branch == record.branch && header.position == record.end_position) return absl::OkStatus();
  const std::string message =
      StrCat("request '", record.request_id, "' was left at position ", record.end_position, ", but session '",
             entry.id, "' has gone on to position ", header.position, " without it");
  return WithDetails(absl::FailedPreconditionError(message),
                     {.reason = "SUPERSEDED",
                      .metadata = {{"position", StrCat(header.position)}},
                      .preconditions = {{"SUPERSEDED", StrCat("sessions/", entry.id), message}}});
}

}  // namespace smt
