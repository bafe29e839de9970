// The running digest of a generation: an XXH3-64 chain that begins with hash(branch, request_id) and takes one id at a
// time, and in the end the tail, if there is one: text before a stop string that begins inside an id, which is not
// sent. So it tells a reader that has the tail from one at the same position that has not. Eight bytes, little-endian,
// on the wire.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace smt {

class RunningDigest {
 public:
  RunningDigest(int64_t branch, std::string_view request_id);
  void Add(int32_t id);
  void AddTail() { Add(-1); }
  std::string bytes() const;

 private:
  uint64_t value_;
};

}  // namespace smt
