// Where sessions live: bytes in, bytes out. Embedded (RocksDB) today; a shared store is another implementation.
//
// A session is a header, a token log per branch, snapshots and request records. What is inside headers, requests and
// snapshots is the session layer's business; the store keeps each intact or says DATA_LOSS.
//
// The uid is drawn when a session is created and never again: whoever still holds an old one (a session deleted and
// made anew under the same name) writes nothing. A shared store checks a lease's fencing token in the same place.
//
// Thread-safe. Blocks on I/O, so the engine thread never calls it. Errors of every call:
//   DATA_LOSS           stored bytes fail their checksum; the message names the session
//   RESOURCE_EXHAUSTED  no space left: nothing was written; works again when there is room
//   UNAVAILABLE         the store has failed (a sync did): all calls, until it is opened again
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace smt {

struct SessionKey {
  std::string id;    // no NUL
  uint64_t uid = 0;  // below 2^63
  friend bool operator==(const SessionKey&, const SessionKey&) = default;
};

struct StoredSession {
  SessionKey key;
  absl::StatusOr<std::string> header;  // DATA_LOSS when damaged; the session can still be removed
};

struct StoredRequest {
  uint64_t uid = 0;
  std::string request_id;
  absl::StatusOr<std::string> record;
};

struct SnapshotName {
  int64_t branch = 0;
  int64_t position = 0;
  friend bool operator==(const SnapshotName&, const SnapshotName&) = default;
};

// What a session reads of another one, a fork of its parent for one: kept until nobody names it, whatever becomes of
// the other session.
struct StoreReference {
  enum class Kind : uint8_t { kLog, kSnapshot };
  Kind kind = Kind::kLog;
  SessionKey owner;      // of the log or snapshot
  int64_t branch = 0;    // of the owner
  int64_t position = 0;  // kLog: ids up to here are read; kSnapshot: its position
  friend bool operator==(const StoreReference&, const StoreReference&) = default;
};

// Changes of one session that become visible, and durable, together.
struct SessionWrite {
  enum class Kind {
    kUpdate,
    kCreate,  // ALREADY_EXISTS if the id is taken
    kRemove,  // with its log, snapshots and requests, but what others refer to; uses key, lease and removal
  };
  Kind kind = Kind::kUpdate;
  SessionKey key;                     // NOT_FOUND (kUpdate, kRemove) unless the id exists with this uid
  std::optional<std::string> header;  // replaces the header
  // Where the branch's log must end: ABORTED, writing nothing, where it does not. Unset: not looked at, and no ids.
  std::optional<int64_t> position;
  int64_t branch = 0;
  int64_t log_begin = 0;                                      // where the branch's log begins: an empty one ends there
  std::vector<int32_t> ids;                                   // appended there
  std::vector<std::pair<std::string, std::string>> requests;  // request id, record
  // In a shared store, the token under which its holder writes (lease_store.h): UNAVAILABLE with reason LEASE_LOST, and
  // nothing written, when it is not the present one. Empty: not looked at, as in an embedded store.
  std::string lease;
  // Replaces what the session refers to. NOT_FOUND naming the one that is not there (any more).
  std::optional<std::vector<StoreReference>> references;
  // Of the session's branches below one, which ids of their logs are still read, by branch up to a position. The others
  // are removed, by whole segments, unless another session refers to them.
  struct KeptLogs {
    int64_t below = 0;
    std::map<int64_t, int64_t> logs;
    friend bool operator==(const KeptLogs&, const KeptLogs&) = default;
  };
  std::optional<KeptLogs> kept_logs;  // kUpdate, alone
  // kRemove: what is remembered of it, by the id, when the session is gone: GetRemoval. A shared store may write it a
  // moment before.
  struct Removal {
    std::string request_id, record;
    absl::Duration keep;  // at least; an embedded store keeps it until RemoveRequests, uid 0
  };
  std::optional<Removal> removal;
};

class SessionStore {
 public:
  virtual ~SessionStore() = default;

  // Each write is atomic and has its own status; they are applied in order and a later one sees the earlier ones.
  // With `sync` everything committed so far is on disk on return: one sync for the whole group.
  virtual std::vector<absl::Status> Commit(std::span<const SessionWrite> writes, bool sync) = 0;

  virtual absl::StatusOr<StoredSession> Find(std::string_view id) = 0;  // NOT_FOUND
  // Up to `limit` sessions with ids after `after`, ordered by id.
  virtual absl::StatusOr<std::vector<StoredSession>> List(std::string_view after, size_t limit) = 0;
  virtual absl::StatusOr<int64_t> Count() = 0;  // reads every name: for start-up, where a limit asks for it

  // Where the branch's log ends; 0 when it has none. This and the reads below take keys of removed sessions too, while
  // another refers to what they read; of the key they look at the uid, and take the id for messages.
  virtual absl::StatusOr<int64_t> LogEnd(const SessionKey& key, int64_t branch) = 0;
  // Ids at positions first..last (1-based, inclusive). DATA_LOSS names the position where they are damaged or missing.
  virtual absl::StatusOr<std::vector<int32_t>> ReadLog(const SessionKey& key, int64_t branch, int64_t first,
                                                       int64_t last) = 0;

  virtual absl::StatusOr<std::string> GetRequest(const SessionKey& key, std::string_view request_id) = 0;  // NOT_FOUND
  // The record of a SessionWrite::Removal of the session that had this id.
  virtual absl::StatusOr<std::string> GetRemoval(std::string_view id, std::string_view request_id) = 0;  // NOT_FOUND
  // Up to `limit` requests of all sessions after `cursor` (empty: from the first); moves it, empty at the end.
  virtual absl::StatusOr<std::vector<StoredRequest>> ListRequests(std::string* cursor, size_t limit) = 0;
  // Those whose record is still the one given.
  virtual absl::Status RemoveRequests(std::span<const StoredRequest> requests) = 0;

  // Not synced: a lost snapshot costs time, not text. NOT_FOUND unless the session exists with this uid.
  // Those of the session named in `drop` are removed with it, unless another session refers to them.
  virtual absl::Status PutSnapshot(const SessionKey& key, const SnapshotName& name, std::string_view bytes,
                                   std::span<const SnapshotName> drop) = 0;
  // By branch, then position, newest first.
  virtual absl::StatusOr<std::vector<SnapshotName>> ListSnapshots(const SessionKey& key) = 0;
  virtual absl::StatusOr<std::string> GetSnapshot(const SessionKey& key, const SnapshotName& name) = 0;  // NOT_FOUND

  // Copies what is committed, as it is at one moment, to the new folder `dir`, from which a store can be opened. Writes
  // go on meanwhile. ALREADY_EXISTS; on failure there is no `dir`. UNIMPLEMENTED where the store has its own tools.
  virtual absl::Status Backup(const std::string& dir) {
    return absl::UnimplementedError("sessions are in a shared store, which is backed up with its own tools");
  }

  virtual absl::Status Health() = 0;  // OK, or why the store does not write now
  virtual int64_t FreeBytes() = 0;    // on the store's file system; -1 when unknown
};

}  // namespace smt
