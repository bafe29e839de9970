// Sessions: a token log, a fixed-size state that can always be rebuilt from a snapshot and the log's tail, and the rules of
// who may write. Values only: no protobuf, no LibTorch.
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
#include "server/store/session_store.h"

namespace smt {

// What a client sees of a session.
struct SessionInfo {
  std::string id;                 // [a-z0-9]([a-z0-9-_.]{0,62}); "sessions/{id}" in the API
  int64_t position = 0;           // ids in the log
  int64_t branch = 0;             // positions belong to a branch
  absl::Time create_time, update_time;
  absl::Time expire_time = absl::InfiniteFuture();
  absl::Duration ttl = absl::InfiniteDuration();
  std::map<std::string, std::string> labels;
  std::string etag;               // changes with every change of the session
  std::string model_fingerprint;
  bool active = false;            // a request writes it now
};

enum class Durability { kNone, kTurn, kToken };

enum class RequestState { kRunning, kFinished, kCancelled, kInterrupted, kFailed };

// The durable record of one generation request.
struct RequestRecord {
  std::string request_id;
  std::string semantic_hash;      // of the fields that change what the request means
  std::string params;             // the service's serialised, resolved request (opaque here)
  RequestState state = RequestState::kRunning;
  int64_t branch = 0;
  int64_t start_position = 0;     // head before the prompt
  int64_t prompt_tokens = 0;
  int64_t end_position = 0;       // of the log, when ended
  uint64_t seed = 0;
  Durability durability = Durability::kTurn;
  std::string outcome;            // the service's serialised outcome (opaque here): finish reason, usage
  absl::Time create_time, end_time;
};

struct TurnSpec {
  std::string session_id;
  std::string request_id;                  // empty: none
  std::string semantic_hash, params;
  std::optional<int64_t> expected_position;
  std::optional<std::string> etag;
  std::vector<int32_t> prompt;             // appended whole, with the record, before BeginTurn returns
  uint64_t seed = 0;
  Durability durability = Durability::kTurn;
  bool wait = false;                       // for the present writer to end, until `deadline`; else ABORTED at once
  absl::Time deadline = absl::InfiniteFuture();
};

// One writer's hold on a session, until destruction. Methods are called by one thread at a time.
class Turn {
 public:
  virtual ~Turn() = default;
  virtual const SessionInfo& session() const = 0;   // as it was when the turn began: position = head before the prompt
  virtual std::span<const int32_t> recent() const = 0;  // the last <= m ids before the prompt
  // For EngineRequest::restore: newest good snapshot and the log after it, up to the head before the prompt. May be called on any
  // thread while the turn lives. DATA_LOSS names the last good checkpoint; FAILED_PRECONDITION: another model's state.
  virtual absl::StatusOr<RestoredState> Restore() = 0;
  // Adds generated ids to the log; returns at once, written in order by the manager's writer thread.
  virtual void Append(std::span<const int32_t> ids) = 0;
  // A copy of the state at `position`, to be kept as a snapshot; returns at once.
  virtual void Snapshot(int64_t position, std::shared_ptr<const StateBuffer> state) = 0;
  // Log position known to be on disk (fdatasync returned).
  virtual int64_t durable_position() const = 0;
  // Ends the turn: outcome recorded, log durable unless kNone, then `done` (writer thread) with the durable position.
  // At most once. A turn destroyed without it is recorded as kInterrupted at the end of its log.
  virtual void Finish(RequestState state, std::string outcome, std::function<void(absl::Status, int64_t)> done) = 0;
};

class SessionManager {
 public:
  struct Options {
    std::string model_fingerprint;
    std::string numerics_id;
    int64_t state_bytes = 0;
    int64_t input_tokens = 0;                        // m
    absl::Duration request_ttl = absl::Hours(24);
    int64_t max_sessions = 0;                        // 0: no limit
    std::function<absl::Time()> now = absl::Now;     // fake clock in tests
    std::function<void(std::string_view session_key)> on_removed;  // Engine::Discard
  };

  static absl::StatusOr<std::unique_ptr<SessionManager>> Open(Options options, std::unique_ptr<SessionStore> store);
  virtual ~SessionManager() = default;

  // ALREADY_EXISTS; INVALID_ARGUMENT for a bad id. An empty id is drawn by the server.
  virtual absl::StatusOr<SessionInfo> Create(std::string id, absl::Duration ttl, std::map<std::string, std::string> labels) = 0;
  virtual absl::StatusOr<SessionInfo> Get(std::string_view id) = 0;  // NOT_FOUND when unknown or expired
  struct Page { std::vector<SessionInfo> sessions; std::string next_page_token; };
  virtual absl::StatusOr<Page> List(int32_t page_size, const std::string& page_token) = 0;  // ordered by id
  struct Update {
    std::optional<absl::Duration> ttl;
    std::optional<std::map<std::string, std::string>> labels;
    std::optional<std::string> etag;
  };
  virtual absl::StatusOr<SessionInfo> UpdateSession(std::string_view id, const Update& update) = 0;
  // ABORTED while a request writes it (unless `force`), or when `etag` differs.
  virtual absl::Status Delete(std::string_view id, std::optional<std::string> etag) = 0;

  // NOT_FOUND, ABORTED (busy, expected_position, etag), FAILED_PRECONDITION (another model's), DATA_LOSS,
  // UNAVAILABLE (store). The record and the prompt are durable on return unless kNone.
  virtual absl::StatusOr<std::unique_ptr<Turn>> BeginTurn(TurnSpec spec) = 0;
  virtual absl::StatusOr<RequestRecord> GetRequest(std::string_view session_id, std::string_view request_id) = 0;
  // Ids at positions first..last (1-based, inclusive) of the session's log.
  virtual absl::StatusOr<std::vector<int32_t>> ReadLog(std::string_view id, int64_t first, int64_t last) = 0;
  // The state at the session's head for reading only (Score): snapshot and log tail.
  virtual absl::StatusOr<RestoredState> ReadState(std::string_view id, SessionInfo* info) = 0;

  // Engine::Options::on_evicted.
  virtual void SaveEvicted(const std::string& session_key, int64_t position, std::shared_ptr<const StateBuffer> state) = 0;
  // Writes and syncs everything handed over so far.
  virtual absl::Status Flush() = 0;
};

}  // namespace smt
