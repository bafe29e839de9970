// Changes of a session that no turn makes: written as one, waited for, and remembered by their request_id, so that the
// same call again is answered as it was.
#include <utility>

#include "model/base/status_macros.h"
#include "server/session/session_manager_impl.h"

namespace smt {

OperationHash& OperationHash::Add(absl::Duration value) {
  return Add(value == absl::InfiniteDuration() ? INT64_MAX : absl::ToInt64Nanoseconds(value));
}
OperationHash& OperationHash::Add(const std::map<std::string, std::string>& value) {
  Add(static_cast<int64_t>(value.size()));
  for (const auto& [k, v] : value) Add(k).Add(v);
  return *this;
}
std::string OperationHash::Take() {
  std::string hash;
  AppendBigEndian(&hash, Xxh3(w_.Take()));
  return hash;
}

absl::StatusOr<std::optional<std::string>> SessionManagerImpl::FindOperation(const SessionKey& key,
                                                                             const std::string& request_id,
                                                                             const std::string& hash) {
  if (request_id.empty()) return std::optional<std::string>();
  ASSIGN_OR_RETURN(std::optional<RequestRecord> record, FindRequest(key, request_id));
  if (!record) return std::optional<std::string>();
  if (record->state != RequestState::kOperation || record->semantic_hash != hash) {
    return ReusedRequestId(key.id, request_id);
  }
  return std::optional<std::string>(std::move(record->outcome));
}

void SessionManagerImpl::RecordOperation(const std::string& request_id, const std::string& hash, std::string answer,
                                         SessionWrite* write) const {
  if (request_id.empty()) return;
  RequestRecord record;
  record.request_id = request_id;
  record.semantic_hash = hash;
  record.state = RequestState::kOperation;
  record.outcome = std::move(answer);
  record.create_time = record.end_time = c_.Now();
  write->requests.emplace_back(request_id, EncodeRequest(record));
}

absl::StatusOr<std::optional<SessionInfo>> SessionManagerImpl::FindMade(const std::string& id,
                                                                        const std::string& request_id,
                                                                        const std::string& hash) {
  if (request_id.empty()) return std::optional<SessionInfo>();
  const Entry entry = table_.Acquire(id);
  absl::MutexLock lock(&entry->mu);
  const absl::Status loaded = Load(*entry);
  if (absl::IsNotFound(loaded)) return std::optional<SessionInfo>();
  RETURN_IF_ERROR(loaded);
  ASSIGN_OR_RETURN(const std::optional<std::string> answer, FindOperation(entry->key, request_id, hash));
  if (!answer) return std::optional<SessionInfo>();
  ASSIGN_OR_RETURN(const SessionHeader header, DecodeHeader(*answer));
  return std::optional<SessionInfo>(MakeInfo(entry->key, header));
}

std::shared_ptr<SessionManagerImpl::Outcome> SessionManagerImpl::Change(SessionEntry& entry, SessionHeader header,
                                                                        SessionWrite write,
                                                                        const std::string& request_id,
                                                                        const std::string& hash, std::string answer) {
  const std::vector<StoreReference> before = ReferencesOf(entry.key, entry.header);
  std::vector<StoreReference> after = ReferencesOf(entry.key, header);
  if (before != after) write.references = std::move(after);
  write.key = entry.key;
  write.lease = entry.lease;
  write.header = EncodeHeader(header);
  RecordOperation(request_id, hash, std::move(answer), &write);
  entry.header = std::move(header);
  entry.idle_end = entry.header.position;
  return Write(std::move(write), true);
}

absl::Status SessionManagerImpl::Settle(const Entry& entry, Outcome& outcome) {
  const absl::Status status = outcome.Wait();
  absl::MutexLock lock(&entry->mu);
  entry->stale |= !status.ok();
  entry->Release(c_.leases.get());
  return status;
}

}  // namespace smt
