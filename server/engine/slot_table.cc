#include "server/engine/slot_table.h"

namespace smt {

SlotTable::SlotTable(int32_t slots) : slots_(static_cast<size_t>(slots)), idle_places_(slots_.size(), idle_.end()) {
  for (int32_t slot = slots; slot-- > 0;) free_.push_back(slot);
}

int32_t SlotTable::Find(std::string_view key) const {
  const auto it = by_key_.find(absl::string_view(key.data(), key.size()));
  return it == by_key_.end() ? -1 : it->second;
}

int32_t SlotTable::TakeFree(Request* request) {
  if (free_.empty()) return -1;
  const int32_t slot = free_.back();
  free_.pop_back();
  slots_[slot].request = request;
  return slot;
}

void SlotTable::TakeIdle(int32_t slot, Request* request) {
  idle_.erase(idle_places_[slot]);
  idle_places_[slot] = idle_.end();
  slots_[slot].request = request;
}

int32_t SlotTable::LeastRecentlyUsed() const { return idle_.empty() ? -1 : idle_.front(); }

void SlotTable::MakeIdle(int32_t slot) {
  slots_[slot].request = nullptr;
  idle_places_[slot] = idle_.insert(idle_.end(), slot);
}

void SlotTable::Free(int32_t slot) {
  if (idle_places_[slot] != idle_.end()) {
    idle_.erase(idle_places_[slot]);
    idle_places_[slot] = idle_.end();
  }
  if (!slots_[slot].key.empty()) by_key_.erase(slots_[slot].key);
  slots_[slot] = Slot();
  free_.push_back(slot);
}

void SlotTable::SetKey(int32_t slot, const std::string& key) {
  slots_[slot].key = key;
  if (!key.empty()) by_key_[key] = slot;
}

}  // namespace smt
