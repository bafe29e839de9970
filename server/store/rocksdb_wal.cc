#include "server/store/rocksdb_wal.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include "model/base/strings.h"

namespace smt::store_internal {
namespace {

constexpr size_t kBlock = 32768, kHeader = 7;
constexpr uint8_t kFull = 1, kFirst = 2, kLastType = 4;  // and middle, last
constexpr size_t kHoleBytes = 128;                       // fewer zeros are nothing to speak of

uint32_t Crc32c(std::string_view bytes) {
  static const auto table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < t.size(); ++i) {
      uint32_t c = i;
      for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ ((c & 1) != 0 ? 0x82f63b78U : 0U);
      t[i] = c;
    }
    return t;
  }();
  uint32_t crc = ~0U;
  for (const char byte : bytes) crc = (crc >> 8) ^ table[(crc ^ static_cast<uint8_t>(byte)) & 0xff];
  return ~crc;
}

uint32_t Byte(std::string_view bytes, size_t at) { return static_cast<uint8_t>(bytes[at]); }

// Of the piece that `bytes` begins with; 0: it does not read.
size_t PieceLength(std::string_view bytes) {
  if (bytes.size() < kHeader) return 0;
  const uint32_t masked = Byte(bytes, 0) | Byte(bytes, 1) << 8 | Byte(bytes, 2) << 16 | Byte(bytes, 3) << 24;
  const size_t length = kHeader + (Byte(bytes, 4) | Byte(bytes, 5) << 8);
  const uint32_t type = Byte(bytes, 6);
  if (type < 1 || type > kLastType || length > bytes.size()) return 0;
  const uint32_t crc = Crc32c(bytes.substr(6, length - 6));
  return masked == ((crc >> 15 | crc << 17) + 0xa282ead8U) ? length : 0;
}

}  // namespace

std::optional<WalDamage> FindWalDamage(std::string_view log) {
  for (size_t block = 0; block < log.size(); block += kBlock) {
    const std::string_view bytes = log.substr(block, kBlock);
    size_t at = 0;
    while (at + kHeader <= bytes.size()) {
      const size_t length = PieceLength(bytes.substr(at));
      if (length == 0) break;
      at += length;
    }
    const bool last = block + bytes.size() == log.size();
    if (at == bytes.size() ||
        (at + kHeader > bytes.size() && (last || bytes.find_first_not_of('\0', at) == bytes.npos))) {
      continue;
    }
    WalDamage damage{.record = block + at};
    for (size_t i = damage.record, end = block + bytes.size(); i < end;) {
      const size_t zero = std::min(log.find('\0', i), end);
      const size_t other = std::min(log.find_first_not_of('\0', zero), end);
      if (other - zero > damage.zeros_end - damage.zeros) damage.zeros = zero, damage.zeros_end = other;
      i = std::max(other, zero + 1);
    }
    return damage;
  }
  return std::nullopt;
}

std::optional<size_t> FindWalGroupAfter(std::string_view log, uint64_t sequence) {
  size_t begin = 0;   // of the record
  std::string bytes;  // its first ones, which may be in two pieces
  for (size_t at = 0; at < log.size();) {
    const size_t left = kBlock - at % kBlock;
    if (left < kHeader) {
      at += left;
      continue;
    }
    const std::string_view piece = log.substr(at, left);
    const size_t length = PieceLength(piece);
    if (length == 0) break;
    const uint32_t type = Byte(piece, 6);
    if (type == kFull || type == kFirst) {
      begin = at;
      bytes.clear();
    }
    const bool known = bytes.size() >= sizeof(uint64_t);
    bytes +=
        piece.substr(kHeader, std::min(length - kHeader, sizeof(uint64_t) - std::min(bytes.size(), sizeof(uint64_t))));
    if (!known && bytes.size() >= sizeof(uint64_t)) {
      uint64_t first = 0;
      for (size_t i = sizeof(first); i-- > 0;) first = first << 8 | Byte(bytes, i);
      if (first > sequence) return begin;
    }
    at += length;
  }
  return std::nullopt;
}

std::string DescribeWalDamage(std::string_view log) {
  const std::optional<WalDamage> damage = FindWalDamage(log);
  if (!damage) return "";
  std::string out = StrCat("at byte ", damage->record);
  if (damage->zeros_end - damage->zeros >= kHoleBytes) {
    out += StrCat(" (bytes ", damage->zeros, " to ", damage->zeros_end - 1, " are zeros)");
  }
  return out;
}

}  // namespace smt::store_internal
