// SessionManager's parts: life cycle in session_manager.cc, lists in session_listing.cc, what goes by itself in
// session_sweep.cc, who may change a session in session_leases.cc, changes in session_operations.cc, forks and rollback
// in branching.cc, whole sessions in transfer.cc, turns in session_manager_turns.cc and turn.cc, reading in restore.cc.
// Not for others.
#pragma once

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/random/random.h"
#include "server/session/session_manager.h"
#include "server/session/session_table.h"
#include "server/session/session_writer.h"
#include "server/store/record_format.h"

namespace smt {

// What turns share with their manager, which outlives them.
struct SessionContext {
  SessionManager::Options options;
  std::unique_ptr<SessionStore> store;
  std::unique_ptr<StateCache> cache;
  std::unique_ptr<SessionWriter> writer;  // after these: stopped first
  std::unique_ptr<LeaseKeeper> leases;    // null: the store is not shared
  // Of states that came of one of other numerics, by state key: what is made of them is bit for bit neither's.
  absl::Mutex foreign_mu;
  std::set<std::string> foreign ABSL_GUARDED_BY(foreign_mu);
  std::atomic<int64_t> damaged_snapshots{0};
  std::atomic<int64_t> expired{0};
  std::atomic<int64_t> sessions{0};  // counted at the start when max_sessions asks for it; else those made since

  absl::Time Now() const { return options.now(); }
  // Hands what a turn has added to the log to the writer.
  void WritePending(const SessionEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu) {
    if (entry.turn != nullptr) writer->WriteAll(entry.turn);
  }
  // nullopt: there is none of this name. DATA_LOSS: damaged.
  absl::StatusOr<std::optional<SnapshotRecord>> ReadSnapshot(const StateName& name);
  // Stored states on the way to `head`, newest first.
  absl::StatusOr<std::vector<StateName>> StatesOf(const BranchView& view, int64_t head);
  // The newest good one, wherever it is; no tail.
  absl::StatusOr<RestoredState> FindState(const BranchView& view, int64_t head);
  // The same and the log from there.
  absl::StatusOr<RestoredState> Restore(const BranchView& view, int64_t head);
  // A DATA_LOSS with how far the log can be read and the newest checkpoint up to there; others as they are.
  absl::Status WithLastGood(const absl::Status& status, const SessionKey& key, const SessionHeader& header);
  absl::Status CheckModel(std::string_view id, const SessionHeader& header) const;
  // Remembers what the state in the slot of this key has begun from.
  void NoteOrigin(const std::string& state_key, const RestoredState& state) ABSL_LOCKS_EXCLUDED(foreign_mu);
  std::string NumericsOf(const std::string& state_key) ABSL_LOCKS_EXCLUDED(foreign_mu);
};

// Of an entry whose turn was opened.
std::unique_ptr<Turn> MakeTurn(SessionContext& context, std::shared_ptr<SessionEntry> entry, SessionInfo session,
                               std::vector<int32_t> recent);

// What is put into the record of an operation, so that a retry is known as one: the names and values that give it its
// meaning.
class OperationHash {
 public:
  explicit OperationHash(std::string_view operation) { w_.Str(operation); }
  OperationHash& Add(std::string_view value) {
    w_.Str(value);
    return *this;
  }
  OperationHash& Add(int64_t value) {
    w_.I64(value);
    return *this;
  }
  OperationHash& Add(absl::Duration value);
  OperationHash& Add(const std::map<std::string, std::string>& value);
  std::string Take();  // 8 bytes

 private:
  RecordWriter w_;
};

class SessionManagerImpl final : public SessionManager {
 public:
  SessionManagerImpl(Options options, std::unique_ptr<SessionStore> store, int64_t sessions);
  ~SessionManagerImpl() override;

  absl::StatusOr<SessionInfo> Create(std::string id, absl::Duration ttl, std::map<std::string, std::string> labels,
                                     const std::string& request_id) override;
  absl::StatusOr<SessionInfo> Get(std::string_view id) override;
  absl::StatusOr<Page> List(int32_t page_size, const std::string& page_token) override;
  absl::StatusOr<SessionInfo> UpdateSession(std::string_view id, const Update& update) override;
  absl::Status Delete(std::string_view id, std::optional<std::string> etag, const std::string& request_id) override;
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
  absl::StatusOr<ResumeTurnResult> ResumeTurn(std::string_view session_id, std::string_view request_id,
                                              absl::Time deadline) override;
  absl::StatusOr<RequestRecord> GetRequest(std::string_view session_id, std::string_view request_id) override;
  absl::Status CancelElsewhere(std::string_view session_id, std::string_view request_id, absl::Time deadline) override;
  absl::StatusOr<std::vector<int32_t>> ReadLog(std::string_view id, int64_t first, int64_t last) override;
  absl::StatusOr<std::vector<int32_t>> ReadRequestLog(std::string_view id, int64_t branch, int64_t first,
                                                      int64_t last) override;
  absl::StatusOr<RestoredState> ReadState(std::string_view id, SessionInfo* info) override;
  void SaveEvicted(const std::string& session_key, int64_t position, std::shared_ptr<const StateBuffer> state) override;
  void HoldAppends() override { c_.writer->HoldAppends(); }
  void ReleaseAppends() override { c_.writer->ReleaseAppends(); }
  absl::Status Flush() override;
  absl::Status Backup(const std::string& dir) override;
  absl::Status Sweep() override;
  absl::Status Health() override { return c_.store->Health(); }
  int64_t StoreFreeBytes() override { return c_.store->FreeBytes(); }
  SessionCounters counters() const override;

 private:
  using Entry = std::shared_ptr<SessionEntry>;

  // Makes an idle entry this server's to change: busy and, in a shared store, leased. Lets go of the entry's mutex
  // meanwhile. On failure the entry is free. With kAsk another server that runs this request is asked to let go.
  absl::Status Lease(SessionEntry& entry, LeaseKeeper::Patience patience, absl::Time deadline,
                     const std::string& request_id = "") ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  // The same, and what others may have written meanwhile is loaded.
  absl::Status Hold(SessionEntry& entry, LeaseKeeper::Patience patience = LeaseKeeper::Patience::kNone,
                    absl::Time deadline = absl::InfinitePast(), const std::string& request_id = "")
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  // ABORTED while a turn runs, here or elsewhere. Ends one that was left by a server that is gone.
  absl::Status CheckIdle(SessionEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  void OnLeaseLost(const SessionKey& key, const std::string& token);
  void OnLeaseWanted(const WantedLease& wanted);
  // Whether the store has this request as the one that runs.
  absl::StatusOr<bool> Runs(const SessionKey& key, const std::string& request_id);
  void OnStoreReplaced();
  // Makes the entry's content valid. NOT_FOUND when the session is unknown or has expired, DATA_LOSS.
  absl::Status Load(SessionEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  // The same for an answer from memory: UNAVAILABLE where this server holds the session by a lease that has run out, as
  // one that stood still does not know who has written since.
  absl::Status LoadToRead(SessionEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  bool LeaseRanOut(const SessionEntry& entry) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  // Ends, in the store, a turn that ran when its server died.
  absl::Status EndInterrupted(SessionEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  bool Expired(const SessionHeader& header) const { return header.expire_time <= c_.Now(); }
  // Counts a change and renews the ttl.
  void Touch(SessionHeader* header) const;
  // Enqueues, under the entry's mutex for the order, and gives what the writer says.
  struct Outcome;
  std::shared_ptr<Outcome> Write(SessionWrite write, bool sync, std::shared_ptr<TurnLog> rests_on = nullptr);
  // A session that `header` and `write` describe; the key and the rest of both are set here. With a request id the same
  // call again is answered with what it made.
  absl::StatusOr<SessionInfo> Make(std::string id, SessionHeader header, SessionWrite write,
                                   const std::string& request_id, const std::string& hash);
  absl::Status CheckRoom();  // for one more session; with no entry's mutex held
  // An id for what a request makes, the same for the same request.
  std::string DrawId(std::string_view scope, std::string_view request_id);
  // The answer of an operation that was done before; nullopt: it was not. INVALID_ARGUMENT: that was another one.
  absl::StatusOr<std::optional<std::string>> FindOperation(const SessionKey& key, const std::string& request_id,
                                                           const std::string& hash);
  void RecordOperation(const std::string& request_id, const std::string& hash, std::string answer,
                       SessionWrite* write) const;
  // Queues the change of an idle session to `header`, with an operation's answer, and makes the entry busy.
  std::shared_ptr<Outcome> Change(SessionEntry& entry, SessionHeader header, SessionWrite write,
                                  const std::string& request_id, const std::string& hash, std::string answer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  // Waits for that and frees the entry.
  absl::Status Settle(const Entry& entry, Outcome& outcome);
  // The session that an earlier call with this request id made; nullopt: none did.
  absl::StatusOr<std::optional<SessionInfo>> FindMade(const std::string& id, const std::string& request_id,
                                                      const std::string& hash);
  // The branch's lineage up to `position`, with the newest states on the way (CutLineage).
  absl::StatusOr<Lineage> LineageTo(const SessionKey& key, const SessionHeader& header, int64_t position,
                                    std::span<const int64_t> also = {});
  // What a fork at `position` begins with: the lineage up to there, and the starts of turns on the way.
  absl::Status Inherit(const SessionKey& key, const SessionHeader& parent, int64_t position, SessionHeader* child);
  // As BeginTurn leaves behind: the head as an automatic checkpoint, if the turn is not undone.
  static void RememberTurn(SessionHeader* header, const RequestRecord& request);
  absl::Status Remove(const Entry& entry, std::optional<std::string> etag, bool only_expired,
                      const std::string& request_id = "");
  // The uid of the session that a request with this id removed; nullopt: none did.
  absl::StatusOr<std::optional<uint64_t>> FindRemoval(const std::string& id, const std::string& request_id);
  SessionWrite::Removal RecordRemoval(const SessionKey& key, const std::string& request_id) const;
  // What is still read of the logs of a session's former branches.
  struct LeftLog {
    SessionKey key;
    SessionWrite::KeptLogs kept;
    bool unknown = false;  // something cannot be read
    bool swept = false;    // what is not kept is removed
  };
  using LeftLogs = std::map<uint64_t, LeftLog>;  // by uid: sessions that were rolled back
  absl::Status SweepSessions(LeftLogs* left);    // and fills it, unless it is null
  absl::Status SweepRequests(LeftLogs* left);
  static void NoteRequest(const absl::StatusOr<RequestRecord>& record, LeftLog* log);
  // Removes what was not needed at the last look, and is not now: whoever had begun to read it has ended.
  absl::Status SweepLogs(LeftLogs left) ABSL_EXCLUSIVE_LOCKS_REQUIRED(left_mu_);
  void SweepLoop();
  uint64_t DrawUid();

  // BeginTurn, which knows whether another server made the session at the same moment; `makes`: this turn does.
  absl::StatusOr<BeginTurnResult> TryBeginTurn(TurnSpec spec, bool* makes);
  // Claims an entry that has no session for a turn that makes it. True: it is ours, busy. False: look again. Lets go of
  // the entry's mutex meanwhile.
  absl::StatusOr<bool> ClaimNew(SessionEntry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  // Opens a turn of entry.request, which the caller has claimed: prompt, header and record are queued as one write.
  void OpenTurn(SessionEntry& entry, std::vector<int32_t> prompt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  // The stored record of a request, while it is remembered.
  absl::StatusOr<std::optional<RequestRecord>> FindRequest(const SessionKey& key, const std::string& request_id);
  absl::StatusOr<std::optional<RequestRecord>> CheckReplay(SessionEntry& entry, const TurnSpec& spec)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  absl::StatusOr<std::optional<RequestRecord>> Claim(SessionEntry& entry, const TurnSpec& spec)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  // FAILED_PRECONDITION where the session has moved since the request was left.
  absl::Status CheckSuperseded(const SessionEntry& entry, const RequestRecord& record) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);
  absl::Status CheckPreconditions(SessionEntry& entry, const TurnSpec& spec) ABSL_EXCLUSIVE_LOCKS_REQUIRED(entry.mu);

  SessionContext c_;
  SessionTable table_;
  std::atomic<int64_t> uncounted_ = 0;  // sessions in the store besides SessionContext::sessions, at the last look

  absl::Mutex random_mu_;
  absl::BitGen random_ ABSL_GUARDED_BY(random_mu_);
  absl::Mutex left_mu_;
  LeftLogs left_ ABSL_GUARDED_BY(left_mu_);  // at the last look
  absl::Mutex sweep_mu_;
  bool stop_ ABSL_GUARDED_BY(sweep_mu_) = false;
  std::thread sweep_thread_;
};

// Frees an entry that was held at the end of a scope, unless it was handed on. Declared after the lock.
class HoldScope {
 public:
  HoldScope(SessionEntry& entry, LeaseKeeper* leases) : entry_(&entry), leases_(leases) {}
  HoldScope(const HoldScope&) = delete;
  ~HoldScope() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (entry_ != nullptr) entry_->Release(leases_);
  }
  void HandOn() { entry_ = nullptr; }

 private:
  SessionEntry* entry_;
  LeaseKeeper* const leases_;
};

// Checks shared by calls that take preconditions: ABORTED naming both values.
absl::Status CheckEtag(std::string_view id, const std::optional<std::string>& wanted, const std::string& present);
absl::Status BusyError(std::string_view id);
absl::Status SessionNotFound(std::string_view id);
absl::Status LeaseLost(std::string_view id);  // UNAVAILABLE
absl::Status CheckpointNotFound(std::string_view session, std::string_view id);
absl::Status CheckCheckpointId(std::string_view id);  // INVALID_ARGUMENT
absl::Status ReusedRequestId(std::string_view session_id, std::string_view request_id);

std::string MakePageToken(std::string_view last_id);
absl::StatusOr<std::string> ParsePageToken(const std::string& token, std::string_view method);  // INVALID_ARGUMENT
absl::StatusOr<size_t> PageSize(int32_t page_size);                                             // INVALID_ARGUMENT

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
