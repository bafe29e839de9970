// The payloads of a session's records (docs/formats.md), and the rules of names. Decoders take hostile bytes.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/session/lineage.h"
#include "server/session/session_manager.h"
#include "server/session/state_buffer.h"

namespace smt {

struct StoredCheckpoint {
  CheckpointInfo info;
  // Set once its branch was left behind: all that is needed to return to it. Unset: it lies on the present branch.
  std::optional<Lineage> lineage;
};

// Payload of a session's header record.
struct SessionHeader {
  uint64_t revision = 0;  // one more with each change; the etag
  int64_t branch = 0;
  int64_t position = 0;          // end of the log when written; while a turn runs the log may be longer
  int64_t durable_position = 0;  // up to here a sync has returned
  bool turn_open = false;        // a turn ran when this was written: after a crash the log's end is the head
  std::string open_request_id;   // of that turn; may be empty
  std::string model_fingerprint;
  absl::Time create_time, update_time;
  absl::Time expire_time = absl::InfiniteFuture();
  absl::Duration ttl = absl::InfiniteDuration();
  std::map<std::string, std::string> labels;
  Lineage before;                             // what precedes the branch's own log
  std::vector<StoredCheckpoint> checkpoints;  // by position, branch, id
};

std::string EncodeHeader(const SessionHeader& header);
absl::StatusOr<SessionHeader> DecodeHeader(std::string_view payload);  // DATA_LOSS

std::string EncodeRequest(const RequestRecord& record);
absl::StatusOr<RequestRecord> DecodeRequest(std::string_view payload);  // DATA_LOSS

// A state and what it is of.
struct SnapshotRecord {
  int64_t branch = 0;
  int64_t position = 0;
  std::string model_fingerprint;
  std::string numerics_id;
  uint64_t digest = 0;  // XXH3-64 of the state
  std::shared_ptr<const StateBuffer> state;
};
std::string EncodeSnapshot(const SnapshotRecord& record);                 // computes the digest
absl::StatusOr<SnapshotRecord> DecodeSnapshot(std::string_view payload);  // DATA_LOSS; copies the state

// INVALID_ARGUMENT naming the value and what is allowed.
absl::Status CheckSessionId(std::string_view id);
absl::Status CheckRequestId(std::string_view id);  // empty is allowed: none
absl::Status CheckTtl(absl::Duration ttl);
absl::Status CheckLabels(const std::map<std::string, std::string>& labels);

std::string Etag(uint64_t uid, const SessionHeader& header);
std::string SessionStateKey(const SessionKey& key, int64_t branch);  // SessionInfo::key
struct ParsedStateKey {
  SessionKey key;
  int64_t branch = 0;
};
absl::StatusOr<ParsedStateKey> ParseSessionStateKey(std::string_view state_key);
// Adds it where it belongs in the order.
void AddCheckpoint(SessionHeader* header, StoredCheckpoint checkpoint);
const StoredCheckpoint* FindCheckpoint(const SessionHeader& header, std::string_view id);  // null: none
BranchView ViewOf(const SessionKey& key, const SessionHeader& header);
// All that the session refers to in others.
std::vector<StoreReference> ReferencesOf(const SessionKey& key, const SessionHeader& header);
// Which of the session's own snapshots nothing needs once there is one at `position` of the present branch: all but the
// newest two of it, what the branch began with, and for each checkpoint the newest before it.
std::vector<SnapshotName> SuperfluousSnapshots(const SessionKey& key, const SessionHeader& header, int64_t position,
                                               std::span<const SnapshotName> present);
SessionInfo MakeInfo(const SessionKey& key, const SessionHeader& header);

}  // namespace smt
