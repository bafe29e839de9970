#include "server/session/session_table.h"

#include <algorithm>

namespace smt {

void SessionEntry::Release(LeaseKeeper* leases) {
  if (makes && !in_turn) loaded = false;  // its turn was refused
  busy = in_turn = makes = false;
  if (leases != nullptr) {
    if (!lease.empty()) leases->Release(key, lease);
    lease.clear();
    stale = true;  // others may write it from now on
  }
  turn.reset();
  request = {};
  if (stale) loaded = stale = false;
}

SessionInfo SessionEntry::Info() const {
  SessionInfo info = MakeInfo(key, header);
  info.position = log_end();
  info.active = in_turn;
  return info;
}

std::shared_ptr<SessionEntry> SessionTable::Acquire(std::string_view id) {
  absl::MutexLock lock(&mu_);
  auto& slot = entries_[std::string(id)];
  if (slot == nullptr) slot = std::make_shared<SessionEntry>(id);
  std::shared_ptr<SessionEntry> entry = slot;
  if (entries_.size() > trim_at_) Trim();
  return entry;
}

std::shared_ptr<SessionEntry> SessionTable::Peek(std::string_view id) {
  absl::MutexLock lock(&mu_);
  auto it = entries_.find(std::string(id));
  return it == entries_.end() ? nullptr : it->second;
}

std::vector<std::shared_ptr<SessionEntry>> SessionTable::All() {
  absl::MutexLock lock(&mu_);
  std::vector<std::shared_ptr<SessionEntry>> out;
  for (const auto& [id, entry] : entries_) out.push_back(entry);
  return out;
}

void SessionTable::Trim() {
  // Others copy a pointer only under mu_, or from one they hold: a count of 1 stays 1.
  std::erase_if(entries_, [](const auto& item) { return item.second.use_count() == 1; });
  trim_at_ = std::max(max_idle_, 2 * entries_.size());
}

}  // namespace smt
