// SessionManager's parts: life cycle in session_manager.cc, turns in session_manager_turns.cc and turn.cc, reading in
// restore.cc. Not for others.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "absl/random/random.h"
#include "server/session/session_manager.h"
#include "server/session/session_table.h"
#include "server/session/session_writer.h"

namespace smt {

// What turns share with their manager, which outlives them.
struct SessionContext {
  SessionManager::Options options;
  std::unique_ptr<SessionStore> store;
  std::unique_ptr<SessionWriter> writer;  // after store: stopped first
  std::atomic<int64_t> damaged_snapshots{0};
  std::atomic<int64_t> expired{0};

  absl::Time Now() const { return options.now(); }
  // Hands the entry's pending ids to the writer.
  void WritePending(const std::shared_ptr<SessionEntry>& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry->mu);
  // Newest good snapshot at or before `head` and the log from there.
  absl::StatusOr<RestoredState> Restore(const SessionKey& key, int64_t branch, int64_t head);
  absl::Status CheckModel(std::string_view id, const SessionHeader& header) const;
};

std::unique_ptr<Turn> MakeTurn(SessionContext& context, std::shared_ptr<SessionEntry> entry, SessionInfo session,
                               std::vector<int32_t> recent, std::shared_ptr<TurnProgress> progress,
                               Durability durability);

class SessionManagerImpl final : public SessionManager {
 public:
  SessionManagerImpl(Options options, std::unique_ptr<SessionStore> store, int64_t sessions);
  ~SessionManagerImpl() override;

  absl::StatusOr<SessionInfo> Create(std::string id, absl::Duration ttl,
                                     std::map<std::string, std::string> labels) override;
  absl::StatusOr<SessionInfo> Get(std::string_view id) override;
  absl::StatusOr<Page> List(int32_t page_size, const std::string& page_token) override;
  absl::StatusOr<SessionInfo> UpdateSession(std::string_view id, const Update& update) override;
  absl::Status Delete(std::string_view id, std::optional<std::string> etag) override;
  absl::StatusOr<SessionInfo> Fork(const ForkSpec& spec) override;
  absl::StatusOr<CheckpointInfo> CreateCheckpoint(const CheckpointSpec& spec) override;
  absl::StatusOr<CheckpointPage> ListCheckpoints(std::string_view id, int32_t page_size,
                                                 const std::string& page_token) override;
  absl::Status DeleteCheckpoint(std::string_view id, std::string_view checkpoint_id,
                                const std::string& request_id) override;
  absl::StatusOr<SessionInfo> Rollback(const RollbackSpec& spec) override;
  absl::StatusOr<SessionContent> Export(std::string_view id, std::string_view checkpoint_id) override;
  absl::StatusOr<SessionInfo> Import(const ImportSpec& spec) override;
  absl::Status VisitStates(std::string_view id, const std::function<absl::Status(const KeptState&)>& visit) override;
  absl::StatusOr<BeginTurnResult> BeginTurn(TurnSpec spec) override;
  absl::StatusOr<ResumeTurnResult> ResumeTurn(std::string_view session_id, std::string_view request_id) override;
  absl::StatusOr<RequestRecord> GetRequest(std::string_view session_id, std::string_view request_id) override;
  absl::StatusOr<std::vector<int32_t>> ReadLog(std::string_view id, int64_t first, int64_t last) override;
  absl::StatusOr<std::vector<int32_t>> ReadRequestLog(std::string_view id, int64_t branch, int64_t first,
                                                      int64_t last) override;
  absl::StatusOr<RestoredState> ReadState(std::string_view id, SessionInfo* info) override;
  void SaveEvicted(const std::string& session_key, int64_t position, std::shared_ptr<const StateBuffer> state) override;
  absl::Status Flush() override;
  absl::Status Sweep() override;
  absl::Status Health() override { return c_.store->Health(); }
  int64_t StoreFreeBytes() override { return c_.store->FreeBytes(); }
  SessionCounters counters() const override;

 private:
  using Entry = std::shared_ptr<SessionEntry>;

  // Makes the entry's content valid. NOT_FOUND when the session is unknown or has expired, DATA_LOSS.
  absl::Status Load(SessionEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  // Ends, in the store, a turn that ran when its server died.
  absl::Status EndInterrupted(SessionEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  bool Expired(const SessionHeader& header) const { return header.expire_time <= c_.Now(); }
  // Counts a change and renews the ttl.
  void Touch(SessionHeader* header) const;
  // Enqueues, under the entry's mutex for the order, and gives what the writer says.
  struct Outcome;
  std::shared_ptr<Outcome> Write(SessionWrite write, bool sync);
  absl::Status Remove(const Entry& entry, std::optional<std::string> etag, bool only_expired);
  absl::Status SweepSessions();
  absl::Status SweepRequests();
  void SweepLoop();
  std::string DrawId();
  uint64_t DrawUid();

  // Opens a turn of entry.request, which the caller has claimed: `write` gets its header and record, and is queued.
  std::shared_ptr<Outcome> OpenTurn(SessionEntry& entry, SessionWrite write) ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  // Waits for that, and gives the turn.
  absl::StatusOr<std::unique_ptr<Turn>> AwaitTurn(const Entry& entry, Outcome& outcome, SessionInfo before,
                                                  std::vector<int32_t> recent);
  // The stored record of a request, while it is remembered.
  absl::StatusOr<std::optional<RequestRecord>> FindRequest(const SessionKey& key, const std::string& request_id);
  absl::StatusOr<std::optional<RequestRecord>> CheckReplay(SessionEntry& entry, const TurnSpec& spec)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  absl::StatusOr<std::optional<RequestRecord>> Claim(SessionEntry& entry, const TurnSpec& spec)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);

  SessionContext c_;
  SessionTable table_;
  std::atomic<int64_t> sessions_;  // counted when max_sessions asks for it

  absl::Mutex random_mu_;
  absl::BitGen random_ ABSL_GUARDED_BY(random_mu_);
  absl::Mutex sweep_mu_;
  bool stop_ ABSL_GUARDED_BY(sweep_mu_) = false;
  std::thread sweep_thread_;
};

// Checks shared by calls that take preconditions: ABORTED naming both values.
absl::Status CheckEtag(std::string_view id, const std::optional<std::string>& wanted, const std::string& present);
absl::Status BusyError(std::string_view id);

struct SessionManagerImpl::Outcome {
  absl::Mutex mu;
  bool done ABSL_GUARDED_BY(mu) = false;
  absl::Status status ABSL_GUARDED_BY(mu);
  absl::Status Wait() {
    absl::MutexLock lock(&mu);
    mu.Await(absl::Condition(&done));
    return status;
  }
};

}  // namespace smt
