// One writer's hold on a session: buffers generated ids, hands them to the writer, and ends with one atomic group of
// outcome, header and what is left of the log.
#include <utility>

#include "model/base/strings.h"
#include "server/session/session_manager_impl.h"

namespace smt {
namespace {

constexpr size_t kFlushIds = 64;

class TurnImpl final : public Turn {
 public:
  TurnImpl(SessionContext& context, std::shared_ptr<SessionEntry> entry, SessionInfo session,
           std::vector<int32_t> recent, std::shared_ptr<TurnProgress> progress, Durability durability)
      : c_(context),
        entry_(std::move(entry)),
        session_(std::move(session)),
        recent_(std::move(recent)),
        progress_(std::move(progress)),
        durability_(durability) {
    absl::MutexLock lock(&entry_->mu);
    key_ = entry_->key;
    began_ = entry_->header;
  }

  ~TurnImpl() override {
    if (!finished_) Finish(RequestState::kInterrupted, "", nullptr);
  }

  const SessionInfo& session() const override { return session_; }
  std::span<const int32_t> recent() const override { return recent_; }
  absl::StatusOr<RestoredState> Restore() override {
    auto state = c_.Restore(ViewOf(key_, began_), session_.position);
    if (!state.ok()) return c_.WithLastGood(state.status(), key_, began_);
    c_.NoteOrigin(session_.key, *state);
    return state;
  }
  int64_t durable_position() const override { return progress_->durable(); }
  void Watch(std::function<void()> changed) override { progress_->Watch(std::move(changed)); }
  absl::Status status() const override { return progress_->status(); }
  bool asked_to_end() const override { return progress_->asked_to_end(); }
  bool asked_to_cancel() const override { return progress_->asked_to_cancel(); }

  void Append(std::span<const int32_t> ids) override {
    if (finished_ || ids.empty()) return;
    absl::MutexLock lock(&entry_->mu);
    entry_->pending.insert(entry_->pending.end(), ids.begin(), ids.end());
    if (durability_ == Durability::kToken || entry_->pending.size() >= kFlushIds) c_.WritePending(entry_);
  }

  void Snapshot(int64_t position, std::shared_ptr<const StateBuffer> state) override {
    if (finished_ || state == nullptr) return;
    {
      absl::MutexLock lock(&entry_->mu);
      c_.WritePending(entry_);
    }
    c_.writer->EnqueueSnapshot(key_, {session_.branch, position, c_.options.model_fingerprint,
                                      c_.NumericsOf(session_.key), 0, std::move(state)});
  }

  void Finish(RequestState state, std::string outcome, std::function<void(absl::Status, int64_t)> done) override {
    if (finished_) return;
    finished_ = true;
    const bool sync = durability_ != Durability::kNone;
    absl::MutexLock lock(&entry_->mu);
    SessionHeader header = entry_->header;
    SessionWrite write;
    write.key = key_;
    write.lease = entry_->lease;
    write.branch = header.branch;
    write.log_begin = header.before.end();
    write.position = entry_->log_end;  // an append that failed makes this fail too
    write.ids = std::exchange(entry_->pending, {});
    const int64_t end = entry_->log_end += static_cast<int64_t>(write.ids.size());
    header.position = end;
    header.turn_open = false;
    header.open_request_id.clear();
    header.update_time = c_.Now();
    header.expire_time = header.update_time + header.ttl;
    ++header.revision;
    if (sync) header.durable_position = end;
    entry_->header = header;
    write.header = EncodeHeader(header);
    if (!entry_->request.request_id.empty()) {
      RequestRecord record = entry_->request;
      record.state = state;
      record.end_position = end;
      record.outcome = std::move(outcome);
      record.end_time = header.update_time;
      write.requests.emplace_back(record.request_id, EncodeRequest(record));
    }
    c_.writer->Enqueue(std::move(write), sync,
                       [entry = entry_, progress = progress_, leases = c_.leases.get(), end, sync,
                        done = std::move(done)](absl::Status status) {
                         if (status.ok() && sync) progress->Durable(end);
                         if (!status.ok()) {
                           progress->Fail(status);
                           status = progress->status();  // the first failure says why
                         }
                         {
                           absl::MutexLock release(&entry->mu);
                           if (!status.ok()) entry->stale = true;
                           entry->Release(leases);
                         }
                         if (done) done(status, progress->durable());
                       });
  }

 private:
  SessionContext& c_;
  const std::shared_ptr<SessionEntry> entry_;
  const SessionInfo session_;
  const std::vector<int32_t> recent_;
  const std::shared_ptr<TurnProgress> progress_;
  const Durability durability_;
  SessionKey key_;
  SessionHeader began_;  // as it was when the turn began
  bool finished_ = false;
};

}  // namespace

void SessionContext::WritePending(const std::shared_ptr<SessionEntry>& entry) {
  if (entry->pending.empty() || !entry->in_turn) return;
  SessionWrite write;
  write.key = entry->key;
  write.lease = entry->lease;
  write.branch = entry->header.branch;
  write.log_begin = entry->header.before.end();
  write.position = entry->log_end;
  write.ids = std::exchange(entry->pending, {});
  const int64_t end = entry->log_end += static_cast<int64_t>(write.ids.size());
  const bool sync = entry->request.durability == Durability::kToken;
  writer->Enqueue(std::move(write), sync, [entry, progress = entry->progress, end, sync](const absl::Status& status) {
    if (status.ok()) {
      if (sync) progress->Durable(end);
      return;
    }
    progress->Fail(status);
    absl::MutexLock lock(&entry->mu);
    entry->stale = true;
  });
}

std::unique_ptr<Turn> MakeTurn(SessionContext& context, std::shared_ptr<SessionEntry> entry, SessionInfo session,
                               std::vector<int32_t> recent, std::shared_ptr<TurnProgress> progress,
                               Durability durability) {
  return std::make_unique<TurnImpl>(context, std::move(entry), std::move(session), std::move(recent),
                                    std::move(progress), durability);
}

}  // namespace smt
