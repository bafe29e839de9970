// Sessions: a token log, a fixed-size state that can always be rebuilt from a snapshot and the log's tail, and the
// rules of who may write. Values only: no protobuf, no LibTorch.
//
// Thread-safe. Calls block on the store's I/O; the engine thread makes none of them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/session/state_buffer.h"
#include "server/store/lease_store.h"
#include "server/store/session_store.h"

namespace smt {

// What a client sees of a session.
struct SessionInfo {
  std::string id;        // [a-z0-9][a-z0-9-_.]{0,62}; "sessions/{id}" in the API
  int64_t position = 0;  // ids in the log
  int64_t branch = 0;    // positions belong to a branch
  absl::Time create_time, update_time;
  absl::Time expire_time = absl::InfiniteFuture();
  absl::Duration ttl = absl::InfiniteDuration();
  std::map<std::string, std::string> labels;
  std::string etag;  // changes with every change of the session
  std::string model_fingerprint;
  bool active = false;   // a request writes it now
  bool damaged = false;  // List only: the header fails its checksum; Delete is all that works
  // Identity of this incarnation's state: EngineRequest::session_key. Differs when an id is deleted and made again.
  std::string key;
};

enum class Durability { kNone, kTurn, kToken };

enum class RequestState {
  kRunning,
  kFinished,
  kCancelled,
  kInterrupted,
  kFailed,
  kOperation,  // no generation but a change of the session; `outcome` is its answer
};

// The durable record of one generation request.
struct RequestRecord {
  std::string request_id;
  std::string semantic_hash;  // of the fields that change what the request means
  std::string params;         // the service's serialised, resolved request (opaque here)
  RequestState state = RequestState::kRunning;
  int64_t branch = 0;
  int64_t start_position = 0;  // head before the prompt
  int64_t prompt_tokens = 0;
  int64_t end_position = 0;  // of the log, when ended
  uint64_t seed = 0;
  Durability durability = Durability::kTurn;
  std::string outcome;  // the service's serialised outcome (opaque here): finish reason, usage
  absl::Time create_time, end_time;
};

struct TurnSpec {
  std::string session_id;
  // Where there is no session of this id (empty: one is drawn) the write that opens the turn makes it, without a ttl.
  bool create = false;
  std::string request_id;  // empty: none
  std::string semantic_hash, params;
  std::optional<int64_t> expected_position;
  std::optional<std::string> etag;
  // Whether the prompt was made for an empty session; ABORTED where that is not so (any more). Unset: for any.
  std::optional<bool> empty_session;
  std::vector<int32_t> prompt;  // appended whole, with the record
  uint64_t seed = 0;
  Durability durability = Durability::kTurn;
  bool wait = false;  // for the present writer to end, until `deadline`; else ABORTED at once
  absl::Time deadline = absl::InfiniteFuture();
  // Whether nobody wants the turn any more: CANCELLED, and nothing was written. Empty: never.
  std::function<bool()> abandoned;
};

// One writer's hold on a session, until destruction. Methods are called by one thread at a time.
class Turn {
 public:
  virtual ~Turn() = default;
  virtual const SessionInfo& session() const = 0;  // as it was when the turn began: position = head before the prompt
  virtual std::span<const int32_t> recent() const = 0;  // the last <= m ids before the prompt
  // For EngineRequest::restore: newest good snapshot and the log after it, up to the head before the prompt; without a
  // good one, the whole log. Any thread, while the turn lives. DATA_LOSS: the log itself is damaged, names the
  // position.
  virtual absl::StatusOr<RestoredState> Restore() = 0;
  // Whether the record and the prompt are written, and durable unless kNone: nothing of the turn may be told before.
  // Where that failed status() says why, nothing of the turn is ever written, and its end leaves the session as it was
  // before it. Watch tells.
  virtual bool begun() const = 0;
  virtual absl::Status AwaitBegun() = 0;  // blocks until that is known, and gives it
  // Adds generated ids to the log; returns at once, written in order by the manager's writer thread.
  virtual void Append(std::span<const int32_t> ids) = 0;
  // A copy of the state at `position`, to be kept as a snapshot; returns at once.
  virtual void Snapshot(int64_t position, std::shared_ptr<const StateBuffer> state) = 0;
  // Log position known to be on disk (fdatasync returned). With kNone it stays where the turn began, or where its
  // prompt ends if it made the session.
  virtual int64_t durable_position() const = 0;
  // `changed` is called, by a thread of the manager's, when begun(), durable_position() or status() may have changed,
  // once for all that changed since the call before; it must not wait for the manager. What changed before Watch is not
  // told. With kToken that is soon after each Append, with others at the begin and the end.
  virtual void Watch(std::function<void()> changed) = 0;
  // Another server asks for the session (Options::leases): the turn should be finished as kInterrupted. Watch tells.
  virtual bool asked_to_end() const = 0;
  // CancelElsewhere, on another server: the turn should be finished as kCancelled. Watch tells.
  virtual bool asked_to_cancel() const = 0;
  // Not OK once an append failed (no space, store away): what was appended since is lost, the turn should end.
  virtual absl::Status status() const = 0;
  // Ends the turn: outcome recorded, log durable unless kNone, then `done` (the same thread) with the durable position.
  // At most once. A turn destroyed without it is recorded as kInterrupted at the end of its log. The session is free
  // for the next writer before `done` is called; `done` must not wait for the manager.
  virtual void Finish(RequestState state, std::string outcome, std::function<void(absl::Status, int64_t)> done) = 0;
};

// Either a turn, or, when the spec's request_id ended before, its record: the caller replays it from ReadLog.
struct BeginTurnResult {
  std::unique_ptr<Turn> turn;
  std::optional<RequestRecord> replay;
};

// A turn that goes on with a request that broke off, or, when that has ended, its record alone.
struct ResumeTurnResult {
  std::unique_ptr<Turn> turn;  // begins at the log's end
  RequestRecord record;
};

// A position of a session that can be returned to.
struct CheckpointInfo {
  std::string id;          // as session ids; automatic ones are "turn-{branch}-{position}"
  int64_t position = 0;    // of the log
  int64_t branch = 0;      // on which it was made
  bool automatic = false;  // a turn's start; the last kRememberedTurns of a session's branch are remembered
  std::string request_id;  // of that turn, if it had one
  absl::Time create_time;
};

inline constexpr int32_t kRememberedTurns = 16;
inline constexpr int32_t kMaxCheckpoints = 64;  // that were asked for, a session

struct ForkSpec {
  std::string session_id;
  std::string new_id;                 // empty: drawn, and the same for the same request_id
  std::string checkpoint_id;          // empty: from the head
  std::optional<absl::Duration> ttl;  // unset: the parent's
  std::optional<std::map<std::string, std::string>> labels;
  std::optional<int64_t> expected_position;  // of the parent's head
  std::string request_id;                    // empty: none
};

struct CheckpointSpec {
  std::string session_id;
  std::string checkpoint_id;  // empty: drawn, and the same for the same request_id
  std::optional<int64_t> expected_position;
  std::string request_id;
};

struct RollbackSpec {
  std::string session_id;
  std::string checkpoint_id;  // or, where empty,
  int32_t turns = 0;          // >= 1: to the start of the turns-th last turn
  std::optional<std::string> etag;
  std::string request_id;
};

// All there is of a session at one position: what a file of it holds.
struct SessionContent {
  SessionInfo info;          // position: ids in `log`
  std::vector<int32_t> log;  // from position 1
  // A state on the way, or null (then only the log speaks): position, whose numerics.
  std::shared_ptr<const StateBuffer> state;
  int64_t state_position = 0;  // <= info.position
  std::string numerics_id;
};

struct ImportSpec {
  std::string new_id;  // empty: drawn, and the same for the same request_id
  absl::Duration ttl = absl::InfiniteDuration();
  std::map<std::string, std::string> labels;
  std::string request_id;
  SessionContent content;  // of info only model_fingerprint is looked at
};

// What the manager has done since it was opened, for metrics.
struct SessionCounters {
  int64_t group_commits = 0;  // store commits
  int64_t synced_commits = 0;
  int64_t committed_writes = 0;  // in all of them
  int64_t snapshots_written = 0;
  int64_t snapshots_dropped = 0;  // queue full or store error
  int64_t snapshots_damaged = 0;  // found by Restore
  int64_t expired_sessions = 0;
  int64_t store_errors = 0;
  int64_t host_state_bytes = 0;  // held now
  int64_t stored_sessions = 0;   // about now: of other servers' changes it knows since the last sweep
  int64_t leases_held = 0;       // now
  int64_t lease_renew_failures = 0;
  int64_t lease_conflicts = 0;
};

class SessionManager {
 public:
  struct Options {
    std::string model_fingerprint;
    std::string numerics_id;
    int64_t state_bytes = 0;
    int64_t input_tokens = 0;  // m
    absl::Duration request_ttl = absl::Hours(24);
    int64_t max_sessions = 0;                     // 0: no limit
    std::function<absl::Time()> now = absl::Now;  // fake clock in tests
    // Engine::Discard: the session is gone, or what its slot holds is not what its log says. No lock held; returns at
    // once.
    std::function<void(std::string_view session_key)> on_removed;
    absl::Duration sweep_interval =
        absl::Minutes(1);  // between looks for expired sessions and requests; infinite: none
    // Of a store that several servers share; the store itself, given to Open. Null: this server has it for itself.
    LeaseStore* leases = nullptr;
    absl::Duration lease_ttl = absl::Seconds(10);
    // Whether a synced commit survives; why not otherwise. Requests with kToken are refused then. Empty: it does.
    std::function<absl::Status()> token_durability;
    // The shared store came back without what it had acknowledged: no state that is still in a slot can be trusted.
    std::function<void()> on_store_replaced;
    int64_t max_cached_sessions = 4096;                       // idle ones whose header is kept in memory
    int64_t max_pending_snapshot_bytes = int64_t{256} << 20;  // beyond it new snapshots are dropped
    int64_t host_state_bytes = int64_t{1} << 30;              // of states kept in memory after they were written
  };

  static absl::StatusOr<std::unique_ptr<SessionManager>> Open(Options options, std::unique_ptr<SessionStore> store);
  virtual ~SessionManager() = default;

  // ALREADY_EXISTS; INVALID_ARGUMENT for a bad id, ttl or labels; RESOURCE_EXHAUSTED at max_sessions. An empty id is
  // drawn by the server. Durable on return.
  //
  // This and the calls below that take a request_id (empty: none) remember it for Options::request_ttl: the same call
  // again is answered as it was then, one with another meaning with INVALID_ARGUMENT.
  virtual absl::StatusOr<SessionInfo> Create(std::string id, absl::Duration ttl,
                                             std::map<std::string, std::string> labels,
                                             const std::string& request_id = "") = 0;
  virtual absl::StatusOr<SessionInfo> Get(std::string_view id) = 0;  // NOT_FOUND when unknown or expired
  struct Page {
    std::vector<SessionInfo> sessions;
    std::string next_page_token;
  };
  // Ordered by id. page_size 0 is 50, above 1,000 is 1,000; INVALID_ARGUMENT if negative or the token is not one of
  // ours. A page may hold fewer sessions than asked for; the last one has no token.
  virtual absl::StatusOr<Page> List(int32_t page_size, const std::string& page_token) = 0;
  struct Update {
    std::optional<absl::Duration> ttl;
    std::optional<std::map<std::string, std::string>> labels;
    std::optional<std::string> etag;
    std::string request_id = {};
  };
  // Renews the ttl. ABORTED when `etag` differs.
  virtual absl::StatusOr<SessionInfo> UpdateSession(std::string_view id, const Update& update) = 0;
  // Makes a session that goes on from a point of another one, and shares the log up to there: nothing is absorbed
  // again. NOT_FOUND (session, checkpoint), ALREADY_EXISTS, ABORTED (from the head, while a request writes it;
  // expected_position), FAILED_PRECONDITION (another model's), RESOURCE_EXHAUSTED. Durable on return.
  virtual absl::StatusOr<SessionInfo> Fork(const ForkSpec& spec) = 0;
  // Names the head. ALREADY_EXISTS; ABORTED while a request writes it, or for expected_position; RESOURCE_EXHAUSTED at
  // kMaxCheckpoints. Durable on return.
  virtual absl::StatusOr<CheckpointInfo> CreateCheckpoint(const CheckpointSpec& spec) = 0;
  struct CheckpointPage {
    std::vector<CheckpointInfo> checkpoints;
    std::string next_page_token;
  };
  // By position, then branch, then id. Pages as List.
  virtual absl::StatusOr<CheckpointPage> ListCheckpoints(std::string_view id, int32_t page_size,
                                                         const std::string& page_token) = 0;
  // NOT_FOUND; automatic ones can be deleted too.
  virtual absl::Status DeleteCheckpoint(std::string_view id, std::string_view checkpoint_id,
                                        const std::string& request_id) = 0;
  // Returns to an earlier position on a new branch. Requests of the branch left behind are superseded, its named
  // checkpoints stay and can be returned to. NOT_FOUND (checkpoint; more turns than are remembered), ABORTED (a request
  // writes it; etag). Durable on return.
  virtual absl::StatusOr<SessionInfo> Rollback(const RollbackSpec& spec) = 0;
  // The whole log, and the newest state at or before the position. ABORTED from the head while a request writes it.
  virtual absl::StatusOr<SessionContent> Export(std::string_view id, std::string_view checkpoint_id) = 0;
  // The session that content is of, under a new id. ALREADY_EXISTS; FAILED_PRECONDITION (another model's);
  // INVALID_ARGUMENT (a state of another size or beyond the log). Durable on return, the state included.
  virtual absl::StatusOr<SessionInfo> Import(const ImportSpec& spec) = 0;
  // The states kept of a session's present branch, oldest first, for comparing them with what the log makes.
  // Each is called with null once, when its bytes are damaged; what `visit` gives other than OK ends it.
  struct KeptState {
    int64_t position = 0;
    std::string numerics_id;
    std::shared_ptr<const StateBuffer> state;
  };
  virtual absl::Status VisitStates(std::string_view id, const std::function<absl::Status(const KeptState&)>& visit) = 0;

  // ABORTED while a request writes it, or when `etag` differs. Removes the log, snapshots and requests, damaged or not,
  // but for what forks of it read. The same request_id again is OK, and leaves alone a session made since under the id.
  virtual absl::Status Delete(std::string_view id, std::optional<std::string> etag,
                              const std::string& request_id = "") = 0;

  // NOT_FOUND, ABORTED (busy, expected_position, etag), FAILED_PRECONDITION (another model's), DATA_LOSS,
  // UNAVAILABLE (store). Returns while the record and the prompt are still being written, those of turns that begin
  // together with one sync: Turn::begun() tells, or that there was no space (RESOURCE_EXHAUSTED), say.
  // A request_id used before: the same semantic_hash gives `replay` when it ended and ABORTED while it runs; another
  // hash is INVALID_ARGUMENT. `spec.deadline` is real time, whatever Options::now says. With `spec.create` also
  // RESOURCE_EXHAUSTED at max_sessions; of a turn that does not begin no session stays, and whatever the durability,
  // one that begins leaves it durable.
  virtual absl::StatusOr<BeginTurnResult> BeginTurn(TurnSpec spec) = 0;
  // Goes on with an interrupted request where its log ends. As BeginTurn, and: NOT_FOUND when there is no such request;
  // FAILED_PRECONDITION (SUPERSEDED) when the session has moved since; ABORTED while it runs.
  // In a shared store it asks another server that runs it to let go, and waits for one that is gone to lose its lease.
  virtual absl::StatusOr<ResumeTurnResult> ResumeTurn(std::string_view session_id, std::string_view request_id,
                                                      absl::Time deadline = absl::InfiniteFuture()) = 0;
  // NOT_FOUND when unknown or older than request_ttl. One that ran when a server died is kInterrupted, ended where its
  // log does.
  virtual absl::StatusOr<RequestRecord> GetRequest(std::string_view session_id, std::string_view request_id) = 0;
  // In a shared store: asks the server that runs the request to end it as kCancelled, and waits until it has, or until
  // one that is gone has lost its lease; that leaves the request kInterrupted. OK as well when it does not run (any
  // more). NOT_FOUND; ABORTED when it still runs at the deadline.
  virtual absl::Status CancelElsewhere(std::string_view session_id, std::string_view request_id,
                                       absl::Time deadline) = 0;
  // Ids at positions first..last (1-based, inclusive) of the session's log. OUT_OF_RANGE names the head.
  virtual absl::StatusOr<std::vector<int32_t>> ReadLog(std::string_view id, int64_t first, int64_t last) = 0;
  // The same on the branch of a request, whichever is the present one; only what the request appended.
  virtual absl::StatusOr<std::vector<int32_t>> ReadRequestLog(std::string_view id, int64_t branch, int64_t first,
                                                              int64_t last) = 0;
  // The state at the session's head for reading only (Score): snapshot and log tail.
  virtual absl::StatusOr<RestoredState> ReadState(std::string_view id, SessionInfo* info) = 0;

  // Engine::Options::on_evicted. Returns at once; a state of a session since deleted is dropped.
  virtual void SaveEvicted(const std::string& session_key, int64_t position,
                           std::shared_ptr<const StateBuffer> state) = 0;
  // Between these, which nest, ids that turns append wait, unless something else is to be written: those of one step of
  // the engine become one commit (Engine::Options::before_sinks, after_sinks). Return at once.
  virtual void HoldAppends() = 0;
  virtual void ReleaseAppends() = 0;
  // Writes and syncs everything handed over so far.
  virtual absl::Status Flush() = 0;
  // Flush, then SessionStore::Backup.
  virtual absl::Status Backup(const std::string& dir) = 0;
  // Deletes expired sessions and request records, and what two calls in a row find unneeded of the logs of branches
  // left by rollbacks; the background thread calls it each sweep_interval.
  virtual absl::Status Sweep() = 0;
  virtual absl::Status Health() = 0;  // OK, or why the store does not write now
  virtual int64_t StoreFreeBytes() = 0;
  virtual SessionCounters counters() const = 0;
};

}  // namespace smt
