#include "server/service/digest.h"

#include <xxhash.h>

#include "model/base/strings.h"

namespace smt {

RunningDigest::RunningDigest(int64_t branch, std::string_view request_id) {
  const std::string start = StrCat(branch, "/", request_id);
  value_ = XXH3_64bits(start.data(), start.size());
}

void RunningDigest::Add(int32_t id) {
  const auto bits = static_cast<uint32_t>(id);
  const unsigned char bytes[4] = {static_cast<unsigned char>(bits), static_cast<unsigned char>(bits >> 8),
                                  static_cast<unsigned char>(bits >> 16), static_cast<unsigned char>(bits >> 24)};
  value_ = XXH3_64bits_withSeed(bytes, sizeof(bytes), value_);
}

std::string RunningDigest::bytes() const {
  std::string out(8, '\0');
  for (int i = 0; i < 8; ++i) out[i] = static_cast<char>(value_ >> (8 * i));
  return out;
}

}  // namespace smt
