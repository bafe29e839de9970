// A session's state in host memory: flat bytes in the order of model/state_layout.h, 64-byte aligned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace smt {

class StateBuffer {
 public:
  explicit StateBuffer(size_t bytes)
      : bytes_(bytes), data_(static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)), &std::free) {}
  std::span<std::byte> span() { return {data_.get(), bytes_}; }
  std::span<const std::byte> span() const { return {data_.get(), bytes_}; }
  size_t size() const { return bytes_; }

 private:
  size_t bytes_;
  std::unique_ptr<std::byte, decltype(&std::free)> data_;
};

// A state to begin from, and the logged ids it has not absorbed yet.
struct RestoredState {
  std::shared_ptr<const StateBuffer> state;  // null: the empty state at position 0
  int64_t position = 0;                      // of `state`
  std::vector<int32_t> tail;                 // ids at positions position+1 .. head
  std::string tier;         // "store": a snapshot; "host": one still in memory; "log": the log alone; "new": empty
  std::string numerics_id;  // of `state`, as it was saved; empty without one
  bool foreign_numerics = false;  // not this server's: usable, but not bit for bit what this one would have made
  int32_t damaged_snapshots = 0;  // passed over
};

}  // namespace smt
