// Which session's state is in which slot, and which idle one to give up next. Engine thread only.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace smt {

struct Request;

struct Slot {
  std::string key;                  // the session's; empty: ephemeral or free
  int64_t position = 0;             // ids absorbed by work whose results are known
  std::vector<int32_t> unappended;  // ids after `position` that the session's log holds already
  int64_t snapshot_position = 0;    // of the last state saved or restored
  Request* request = nullptr;       // who uses it now
  bool forget = false;              // Discard was called while it was in use

  int64_t log_position() const { return position + static_cast<int64_t>(unappended.size()); }
};

class SlotTable {
 public:
  explicit SlotTable(int32_t slots);

  Slot& at(int32_t slot) { return slots_[slot]; }
  int32_t free_count() const { return static_cast<int32_t>(free_.size()); }
  int32_t idle_count() const { return static_cast<int32_t>(idle_.size()); }
  int32_t active_count() const { return static_cast<int32_t>(slots_.size()) - free_count() - idle_count(); }

  int32_t Find(std::string_view key) const;  // idle or in use; -1: none
  int32_t TakeFree(Request* request);        // -1: none
  void TakeIdle(int32_t slot, Request* request);
  int32_t LeastRecentlyUsed() const;  // of the idle ones; -1: none
  // In use → idle under its key, as the most recently used.
  void MakeIdle(int32_t slot);
  // In use or idle → free and empty.
  void Free(int32_t slot);
  // A slot in use stands for this session from now on.
  void SetKey(int32_t slot, const std::string& key);

 private:
  std::vector<Slot> slots_;
  std::vector<int32_t> free_;
  std::list<int32_t> idle_;                                // least recently used first
  std::vector<std::list<int32_t>::iterator> idle_places_;  // idle_.end() where not idle
  absl::flat_hash_map<std::string, int32_t> by_key_;
};

}  // namespace smt
