// Where a branch comes from: forks and rollbacks begin at a position of another branch and share its log up to there.
// A branch's own log holds what came since.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/store/session_store.h"

namespace smt {

// A piece of a log: the ids after the piece before it, up to `last`.
struct LogPiece {
  SessionKey owner;
  int64_t branch = 0;
  int64_t last = 0;
  friend bool operator==(const LogPiece&, const LogPiece&) = default;
};

// A snapshot that another branch, or another session, wrote.
struct StateName {
  SessionKey owner;
  int64_t branch = 0;
  int64_t position = 0;
  friend bool operator==(const StateName&, const StateName&) = default;
};

// The way to a position.
struct Lineage {
  std::vector<LogPiece> log;      // ascending: all ids up to end()
  std::vector<StateName> states;  // ascending: states on the way
  int64_t end() const { return log.empty() ? 0 : log.back().last; }
  friend bool operator==(const Lineage&, const Lineage&) = default;
};

// A branch as reading it needs it.
struct BranchView {
  SessionKey key;
  int64_t branch = 0;
  Lineage before;  // of the ids before its own log
};

// Shorter pieces are copied rather than shared, so that a lineage grows with its log and not with the number of forks
// and rollbacks. A segment's worth.
inline constexpr int64_t kMinSharedIds = 4096;

// The lineage of `view` up to `position`, its own log included. `own` are the branch's own snapshots. Of all states on
// the way it names the newest, and for each of `also` (positions) the newest up to there.
Lineage CutLineage(const BranchView& view, std::span<const SnapshotName> own, int64_t position,
                   std::span<const int64_t> also = {});

// Ids at first..last of the branch. DATA_LOSS names the position where they are damaged or missing.
absl::StatusOr<std::vector<int32_t>> ReadBranch(SessionStore& store, const BranchView& view, int64_t first,
                                                int64_t last);

// Takes a short last piece off the lineage and gives its ids, which belong at the beginning of the new branch's log.
absl::StatusOr<std::vector<int32_t>> TakeShortPiece(SessionStore& store, Lineage* lineage);

// What a session of `uid` refers to in others, for the store. Appends what is not in `out` yet.
void AddReferences(uint64_t uid, const Lineage& lineage, std::vector<StoreReference>* out);

}  // namespace smt
