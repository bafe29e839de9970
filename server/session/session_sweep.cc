// What goes by itself, looked for once an interval: sessions that have expired, requests that need not be remembered
// any more, and the logs of branches that were left behind.
//
// What a session needs of the logs of its former branches is in its header (its lineage, its checkpoints') and in its
// request records, whose retries are answered from the log. It never needs more of them than before: nothing is
// appended to them, and what begins at a checkpoint names pieces of logs that the checkpoint named. So what a look at
// the store finds is enough, whatever happens meanwhile, and nothing is held up for it. Others' references are the
// store's business.
#include <algorithm>

#include "model/base/status_macros.h"
#include "server/session/session_manager_impl.h"

namespace smt {
namespace {

constexpr size_t kSweepPage = 256;

void AddLogs(const SessionKey& key, const Lineage& lineage, SessionWrite::KeptLogs* kept) {
  for (const LogPiece& piece : lineage.log) {
    if (piece.owner.uid != key.uid || piece.branch >= kept->below) continue;
    int64_t& last = kept->logs[piece.branch];
    last = std::max(last, piece.last);
  }
}

}  // namespace

absl::Status SessionManagerImpl::Sweep() {
  absl::MutexLock lock(&left_mu_);
  LeftLogs left;
  RETURN_IF_ERROR(SweepSessions(&left));
  RETURN_IF_ERROR(SweepRequests(&left));
  return SweepLogs(std::move(left));
}

absl::Status SessionManagerImpl::SweepSessions(LeftLogs* left) {
  const int64_t known = c_.sessions;
  int64_t found = 0;
  std::string after;
  for (;;) {
    ASSIGN_OR_RETURN(const std::vector<StoredSession> page, c_.store->List(after, kSweepPage));
    for (const StoredSession& s : page) {
      const auto header = s.header.ok() ? DecodeHeader(*s.header) : absl::StatusOr<SessionHeader>(s.header.status());
      if (!header.ok()) continue;
      if (!Expired(*header)) {
        if (left == nullptr || header->branch == 0) continue;
        LeftLog& log = (*left)[s.key.uid];
        log.key = s.key;
        log.kept.below = header->branch;
        AddLogs(s.key, header->before, &log.kept);
        for (const StoredCheckpoint& c : header->checkpoints) {
          if (c.lineage) AddLogs(s.key, *c.lineage, &log.kept);
        }
        continue;
      }
      const absl::Status removed = Remove(table_.Acquire(s.key.id), std::nullopt, true);  // looks again
      if (removed.ok()) ++c_.expired;
      if (!removed.ok() && !absl::IsAborted(removed) && !absl::IsNotFound(removed)) return removed;
    }
    found += static_cast<int64_t>(page.size());
    if (page.size() < kSweepPage) break;
    after = page.back().key.id;
  }
  uncounted_ = found - known;
  return absl::OkStatus();
}

absl::Status SessionManagerImpl::SweepRequests(LeftLogs* left) {
  std::string cursor;
  do {
    ASSIGN_OR_RETURN(std::vector<StoredRequest> page, c_.store->ListRequests(&cursor, kSweepPage));
    std::erase_if(page, [&](const StoredRequest& r) {
      const auto record = r.record.ok() ? DecodeRequest(*r.record) : absl::StatusOr<RequestRecord>(r.record.status());
      const auto log = left->find(r.uid);
      if (log != left->end()) NoteRequest(record, &log->second);
      return !record.ok() || record->state == RequestState::kRunning ||
             record->end_time + c_.options.request_ttl > c_.Now();
    });
    if (!page.empty()) RETURN_IF_ERROR(c_.store->RemoveRequests(page));
  } while (!cursor.empty());
  return absl::OkStatus();
}

// One that has just been forgotten counts once more: somebody may be reading what it generated.
void SessionManagerImpl::NoteRequest(const absl::StatusOr<RequestRecord>& record, LeftLog* log) {
  if (!record.ok()) {
    log->unknown = true;
  } else if (record->state != RequestState::kOperation && record->branch < log->kept.below) {
    int64_t& last = log->kept.logs[record->branch];
    last = std::max({last, record->end_position, record->start_position + record->prompt_tokens});
  }
}

absl::Status SessionManagerImpl::SweepLogs(LeftLogs left) {
  for (auto& [uid, log] : left) {
    const auto before = left_.find(uid);
    if (before == left_.end() || before->second.kept != log.kept || log.unknown) continue;
    log.swept = before->second.swept;
    if (log.swept) continue;
    SessionWrite write;
    write.key = log.key;
    write.kept_logs = log.kept;
    const absl::Status status = Write(std::move(write), false)->Wait();
    if (!status.ok() && !absl::IsNotFound(status)) return status;
    log.swept = true;
  }
  left_ = std::move(left);
  return absl::OkStatus();
}

void SessionManagerImpl::SweepLoop() {
  if (const int64_t known = c_.sessions; c_.options.max_sessions <= 0) {
    if (const absl::StatusOr<int64_t> stored = c_.store->Count(); stored.ok()) uncounted_ = *stored - known;
  }
  for (;;) {
    {
      absl::MutexLock lock(&sweep_mu_);
      if (sweep_mu_.AwaitWithTimeout(absl::Condition(&stop_), c_.options.sweep_interval)) return;
    }
    Sweep().IgnoreError();  // the store's health says the same to whoever asks
  }
}

}  // namespace smt
