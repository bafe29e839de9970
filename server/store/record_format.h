// The envelope around every stored record, and the fields inside one. docs/formats.md describes the bytes.
//
// Envelope, little-endian:
//   0  magic     u8[3]   "SMT"
//   3  type      u8      RecordType
//   4  version   u16     of the payload's layout
//   6  reserved  u16     0
//   8  length    u64     of the payload
//  16  checksum  u64     XXH3-64 of the record's key, bytes 0..15 and the payload
//  24  payload
//
// The key is part of the checksum, so a record found in another's place is as bad as a damaged one.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace smt {

enum class RecordType : char {
  kSession = 'H',    // header of a session
  kLog = 'L',        // token ids
  kRequest = 'R',    // request record
  kSnapshot = 'S',   // state
  kReference = 'F',  // what a session reads of others
  kName = 'N',       // uid of an id, in a shared store
};

inline constexpr size_t kEnvelopeBytes = 24;

std::string SealRecord(RecordType type, uint16_t version, std::string_view key, std::string_view payload);

struct OpenedRecord {
  uint16_t version = 0;
  std::string_view payload;  // into the record
};
// DATA_LOSS saying what is wrong: too short, magic, type, length, checksum.
// FAILED_PRECONDITION naming both versions if the payload is newer than `max_version`.
absl::StatusOr<OpenedRecord> OpenRecord(RecordType type, uint16_t max_version, std::string_view key,
                                        std::string_view record);

uint64_t Xxh3(std::string_view bytes);

// Payload fields one after the other: fixed-width little-endian integers; strings as u32 length and bytes.
class RecordWriter {
 public:
  void U64(uint64_t v);
  void I64(int64_t v) { U64(static_cast<uint64_t>(v)); }
  void U32(uint32_t v);
  void U8(uint8_t v) { out_.push_back(static_cast<char>(v)); }
  void Str(std::string_view s);
  void Raw(std::string_view s) { out_.append(s); }
  std::string Take() { return std::move(out_); }

 private:
  std::string out_;
};

// Reads what RecordWriter wrote. Never past the end: after a short read ok() is false and every value is 0 or empty.
class RecordReader {
 public:
  explicit RecordReader(std::string_view in) : in_(in) {}
  uint64_t U64();
  int64_t I64() { return static_cast<int64_t>(U64()); }
  uint32_t U32();
  uint8_t U8();
  std::string_view Str();
  std::string_view Raw(uint64_t bytes);
  bool ok() const { return ok_; }
  bool done() const { return ok_ && in_.empty(); }

 private:
  std::string_view in_;
  bool ok_ = true;
};

// Big-endian, so that keys sort as numbers do.
void AppendBigEndian(std::string* key, uint64_t v);
uint64_t ReadBigEndian(std::string_view eight_bytes);

}  // namespace smt
