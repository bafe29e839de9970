#include "server/session/state_cache.h"

namespace smt {
namespace {

int64_t Bytes(const SnapshotRecord& s) { return static_cast<int64_t>(s.state->size()); }

}  // namespace

void StateCache::Erase(std::map<Key, Entries::iterator>::iterator at) {
  bytes_ -= Bytes(at->second->state);
  entries_.erase(at->second);
  by_key_.erase(at);
}

void StateCache::Put(uint64_t uid, const SnapshotRecord& state) {
  absl::MutexLock lock(&mu_);
  const Key key{uid, state.branch};
  if (const auto present = by_key_.find(key); present != by_key_.end()) Erase(present);
  if (Bytes(state) > max_bytes_) return;
  while (bytes_ + Bytes(state) > max_bytes_) Erase(by_key_.find(entries_.front().key));
  entries_.push_back({key, state});
  by_key_[key] = std::prev(entries_.end());
  bytes_ += Bytes(state);
}

std::optional<SnapshotRecord> StateCache::Find(uint64_t uid, int64_t branch, int64_t max_position) {
  absl::MutexLock lock(&mu_);
  const auto found = by_key_.find({uid, branch});
  if (found == by_key_.end() || found->second->state.position > max_position) return std::nullopt;
  entries_.splice(entries_.end(), entries_, found->second);
  return found->second->state;
}

void StateCache::Remove(uint64_t uid) {
  absl::MutexLock lock(&mu_);
  for (auto at = by_key_.lower_bound({uid, INT64_MIN}); at != by_key_.end() && at->first.first == uid;) Erase(at++);
}

void StateCache::Clear() {
  absl::MutexLock lock(&mu_);
  entries_.clear();
  by_key_.clear();
  bytes_ = 0;
}

int64_t StateCache::bytes() const {
  absl::MutexLock lock(&mu_);
  return bytes_;
}

}  // namespace smt
