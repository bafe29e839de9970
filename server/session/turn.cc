// One writer's hold on a session: adds generated ids to its log, and ends with one atomic write of outcome, header and
// what is left of the log.
#include <utility>

#include "model/base/strings.h"
#include "server/session/session_manager_impl.h"

namespace smt {
namespace {

class TurnImpl final : public Turn {
 public:
  TurnImpl(SessionContext& context, std::shared_ptr<SessionEntry> entry, SessionInfo session,
           std::vector<int32_t> recent)
      : c_(context), entry_(std::move(entry)), session_(std::move(session)), recent_(std::move(recent)) {
    absl::MutexLock lock(&entry_->mu);
    log_ = entry_->turn;
    durability_ = entry_->request.durability;
    makes_ = entry_->makes;
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
  bool begun() const override { return log_->begun(); }
  absl::Status AwaitBegun() override { return log_->AwaitBegun(); }
  int64_t durable_position() const override { return log_->durable(); }
  void Watch(std::function<void()> changed) override { log_->Watch(std::move(changed)); }
  absl::Status status() const override { return log_->status(); }
  bool asked_to_end() const override { return log_->asked_to_end(); }
  bool asked_to_cancel() const override { return log_->asked_to_cancel(); }

  void Append(std::span<const int32_t> ids) override {
    if (!finished_ && !ids.empty()) c_.writer->Append(log_, ids);
  }

  void Snapshot(int64_t position, std::shared_ptr<const StateBuffer> state) override {
    if (finished_ || state == nullptr) return;
    c_.writer->WriteAll(log_);
    c_.writer->EnqueueSnapshot(
        key_,
        {session_.branch, position, c_.options.model_fingerprint, c_.NumericsOf(session_.key), 0, std::move(state)},
        log_);
  }

  void Finish(RequestState state, std::string outcome, std::function<void(absl::Status, int64_t)> done) override {
    if (finished_) return;
    finished_ = true;
    const bool sync = durability_ != Durability::kNone;
    absl::MutexLock lock(&entry_->mu);
    SessionHeader header = entry_->header;
    SessionWrite write = log_->TakeRest();  // an append that failed makes this fail too
    const int64_t end = entry_->idle_end = log_->end();
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
    c_.writer->Enqueue(
        std::move(write), sync,
        [&c = c_, entry = entry_, log = log_, state_key = session_.key, end, sync, makes = makes_,
         done = std::move(done)](absl::Status status) {
          if (status.ok() && sync) log->Durable(end);
          if (!status.ok()) {
            log->Fail(status);
            status = log->status();  // the first failure says why
          }
          if (sync || !status.ok()) log->Tell();  // what was sent is complete before `done`
          const bool failed = !log->status().ok();
          // The slot's state may be of ids that the log has not got, and others may take their places.
          if (failed && c.options.on_removed) c.options.on_removed(state_key);
          if (makes && !log->begun()) --c.sessions;
          {
            absl::MutexLock release(&entry->mu);
            entry->stale |= failed;
            entry->Release(c.leases.get());
          }
          if (done) done(status, log->durable());
        },
        log_);
  }

 private:
  SessionContext& c_;
  const std::shared_ptr<SessionEntry> entry_;
  const SessionInfo session_;
  const std::vector<int32_t> recent_;
  std::shared_ptr<TurnLog> log_;
  Durability durability_;
  bool makes_ = false;  // the session
  SessionKey key_;
  SessionHeader began_;  // as it was when the turn began
  bool finished_ = false;
};

}  // namespace

std::unique_ptr<Turn> MakeTurn(SessionContext& context, std::shared_ptr<SessionEntry> entry, SessionInfo session,
                               std::vector<int32_t> recent) {
  return std::make_unique<TurnImpl>(context, std::move(entry), std::move(session), std::move(recent));
}

}  // namespace smt
