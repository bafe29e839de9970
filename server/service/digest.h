// The running digest of a generation: an XXH3-64 chain that begins with hash(branch, request_id) and takes one id at a
// time. Eight bytes, little-endian, on the wire.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace smt {

class RunningDigest {
 public:
  RunningDigest(int64_t branch, std::string_view request_id);
  void Add(int32_t id);
  std::string bytes() const;

 private:
  uint64_t value_;
};

}  // namespace smt
