// The host tier: states that left their slots, in memory, the least recently used given up first. What is here is in
// the store too, or on its way there, so that nothing is lost with it.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/session/session_record.h"

namespace smt {

class StateCache {
 public:
  explicit StateCache(int64_t max_bytes) : max_bytes_(max_bytes) {}

  // Replaces the one of this session's branch. One of more than the whole bound is not kept.
  void Put(uint64_t uid, const SnapshotRecord& state);
  // The one of this branch if its position is at most `max_position`; it was used now.
  std::optional<SnapshotRecord> Find(uint64_t uid, int64_t branch, int64_t max_position);
  void Remove(uint64_t uid);  // of all branches
  void Clear();

  int64_t bytes() const;

 private:
  using Key = std::pair<uint64_t, int64_t>;  // uid, branch
  struct Entry {
    Key key;
    SnapshotRecord state;
  };
  using Entries = std::list<Entry>;
  void Erase(std::map<Key, Entries::iterator>::iterator at) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const int64_t max_bytes_;
  mutable absl::Mutex mu_;
  int64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
  Entries entries_ ABSL_GUARDED_BY(mu_);  // least recently used first
  std::map<Key, Entries::iterator> by_key_ ABSL_GUARDED_BY(mu_);
};

}  // namespace smt
