#include "server/service/utf8.h"

#include <cstdint>

namespace smt {
namespace {

struct Sequence {
  size_t length = 1;  // bytes looked at: of the sequence, or of the maximal ill-formed part
  bool valid = false;
  bool truncated = false;  // well-formed so far, but the bytes ended
};

// The sequence at the start of `bytes` (not empty). Ranges of the second byte are Unicode's table 3-7.
Sequence Decode(std::string_view bytes) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {1, true, false};
  size_t need;
  uint8_t low = 0x80, high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    need = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    need = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    need = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {1, false, false};
  }
  for (size_t i = 1; i < need; ++i) {
    if (i == bytes.size()) return {i, false, true};
    if (byte(i) < low || byte(i) > high) return {i, false, false};
    low = 0x80;
    high = 0xBF;
  }
  return {need, true, false};
}

}  // namespace

bool IsValidUtf8(std::string_view bytes) {
  while (!bytes.empty()) {
    const Sequence sequence = Decode(bytes);
    if (!sequence.valid) return false;
    bytes.remove_prefix(sequence.length);
  }
  return true;
}

void AppendSanitizedUtf8(std::string_view bytes, std::string* out) {
  while (!bytes.empty()) {
    const Sequence sequence = Decode(bytes);
    if (sequence.valid) {
      out->append(bytes.substr(0, sequence.length));
    } else {
      out->append("\xEF\xBF\xBD");
    }
    bytes.remove_prefix(sequence.length);
  }
}

size_t IncompleteUtf8Suffix(std::string_view bytes) {
  for (size_t back = 1; back <= 3 && back <= bytes.size(); ++back) {
    const std::string_view tail = bytes.substr(bytes.size() - back);
    const auto lead = static_cast<uint8_t>(tail[0]);
    if (lead >= 0xC0) return Decode(tail).truncated ? back : 0;
    if (lead < 0x80) return 0;
  }
  return 0;
}

}  // namespace smt
