#include "server/store/record_format.h"

#include <bit>

#include "model/base/strings.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace smt {
namespace {

static_assert(std::endian::native == std::endian::little, "records are written with memcpy");

template <typename T>
void Put(std::string* out, T v) {
  char b[sizeof(T)];
  std::memcpy(b, &v, sizeof(T));
  out->append(b, sizeof(T));
}

template <typename T>
T Load(std::string_view in) {
  T v;
  std::memcpy(&v, in.data(), sizeof(T));
  return v;
}

uint64_t Checksum(std::string_view key, std::string_view head, std::string_view payload) {
  XXH3_state_t state;
  XXH3_INITSTATE(&state);
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, key.data(), key.size());
  XXH3_64bits_update(&state, head.data(), head.size());
  XXH3_64bits_update(&state, payload.data(), payload.size());
  return XXH3_64bits_digest(&state);
}

}  // namespace

uint64_t Xxh3(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::string SealRecord(RecordType type, uint16_t version, std::string_view key, std::string_view payload) {
  std::string out;
  out.reserve(kEnvelopeBytes + payload.size());
  out.append("SMT");
  out.push_back(static_cast<char>(type));
  Put<uint16_t>(&out, version);
  Put<uint16_t>(&out, 0);
  Put<uint64_t>(&out, payload.size());
  Put<uint64_t>(&out, Checksum(key, out, payload));
  out.append(payload);
  return out;
}

absl::StatusOr<OpenedRecord> OpenRecord(RecordType type, uint16_t max_version, std::string_view key,
                                        std::string_view record) {
  if (record.size() < kEnvelopeBytes) {
    return absl::DataLossError(
        StrCat("the record has ", record.size(), " bytes, less than an envelope's ", kEnvelopeBytes));
  }
  if (record.substr(0, 3) != "SMT") return absl::DataLossError("the record does not begin with \"SMT\"");
  const std::string_view payload = record.substr(kEnvelopeBytes);
  if (Load<uint64_t>(record.substr(8)) != payload.size()) {
    return absl::DataLossError(
        StrCat("the record says it holds ", Load<uint64_t>(record.substr(8)), " bytes and holds ", payload.size()));
  }
  if (Load<uint64_t>(record.substr(16)) != Checksum(key, record.substr(0, 16), payload)) {
    return absl::DataLossError("the record's checksum does not match its bytes");
  }
  // From here on the bytes are as they were written.
  if (record[3] != static_cast<char>(type)) {
    return absl::DataLossError(StrCat("the record is of type '", record.substr(3, 1), "', expected '",
                                      std::string(1, static_cast<char>(type)), "'"));
  }
  const uint16_t version = Load<uint16_t>(record.substr(4));
  if (version == 0 || version > max_version) {
    return absl::FailedPreconditionError(
        StrCat("the record has format version ", version, ", this server reads 1 to ", max_version));
  }
  return OpenedRecord{version, payload};
}

void RecordWriter::U64(uint64_t v) { Put(&out_, v); }
void RecordWriter::U32(uint32_t v) { Put(&out_, v); }
void RecordWriter::Str(std::string_view s) {
  U32(static_cast<uint32_t>(s.size()));
  out_.append(s);
}

std::string_view RecordReader::Raw(uint64_t bytes) {
  if (!ok_ || in_.size() < bytes) {
    ok_ = false;
    return {};
  }
  std::string_view out = in_.substr(0, bytes);
  in_.remove_prefix(bytes);
  return out;
}
uint64_t RecordReader::U64() {
  std::string_view b = Raw(8);
  return ok_ ? Load<uint64_t>(b) : 0;
}
uint32_t RecordReader::U32() {
  std::string_view b = Raw(4);
  return ok_ ? Load<uint32_t>(b) : 0;
}
uint8_t RecordReader::U8() {
  std::string_view b = Raw(1);
  return ok_ ? static_cast<uint8_t>(b[0]) : 0;
}
std::string_view RecordReader::Str() { return Raw(U32()); }

void AppendBigEndian(std::string* key, uint64_t v) {
  for (int shift = 56; shift >= 0; shift -= 8) key->push_back(static_cast<char>(v >> shift));
}
uint64_t ReadBigEndian(std::string_view b) {
  uint64_t v = 0;
  for (int i = 0; i < 8; ++i) v = v << 8 | static_cast<uint8_t>(b[i]);
  return v;
}

}  // namespace smt
