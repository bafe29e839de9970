// The envelope of stored records: what was sealed opens, what was changed since does not.
#include <algorithm>

#include "server/store/record_format.h"
#include "tests/fuzz/fuzz_target.h"

namespace smt::fuzz {
namespace {

constexpr RecordType kTypes[] = {RecordType::kSession, RecordType::kLog, RecordType::kRequest, RecordType::kSnapshot,
                                 RecordType::kReference};

void Run(std::string_view bytes) {
  Input in(bytes);
  const RecordType type = kTypes[in.Byte() % std::size(kTypes)];
  const size_t at = in.Number();
  const auto mask = in.Byte();
  const std::string_view key = in.Part(), payload = in.Rest();

  const auto raw = OpenRecord(type, 1, key, payload);  // hardly ever: the checksum would have to match
  FUZZ_CHECK(!raw.ok() || raw->payload.size() + kEnvelopeBytes == payload.size());

  std::string record = SealRecord(type, 1, key, payload);
  const auto opened = OpenRecord(type, 1, key, record);
  FUZZ_CHECK(opened.ok() && opened->version == 1 && opened->payload == payload);
  FUZZ_CHECK(absl::IsFailedPrecondition(OpenRecord(type, 1, key, SealRecord(type, 2, key, payload)).status()));
  FUZZ_CHECK(absl::IsDataLoss(OpenRecord(type, 1, std::string(key) + "x", record).status()));
  FUZZ_CHECK(
      absl::IsDataLoss(OpenRecord(type, 1, key, std::string_view(record).substr(0, at % record.size())).status()));
  if (mask != 0) {
    record[at % record.size()] = static_cast<char>(record[at % record.size()] ^ mask);
    FUZZ_CHECK(absl::IsDataLoss(OpenRecord(type, 1, key, record).status()));
  }

  // Fields in any order never read past the end.
  RecordReader reader(payload);
  for (size_t i = 0; i < 64 && reader.ok(); ++i) {
    switch ((at + i * mask) % 4) {
      case 0:
        reader.U64();
        break;
      case 1:
        reader.U32();
        break;
      case 2:
        reader.U8();
        break;
      default:
        FUZZ_CHECK(reader.Str().size() <= payload.size());
    }
  }
}

std::vector<std::string> Seeds() {
  using namespace std::string_literals;
  return {"\0\5\0\1key\0payload"s, "\3\x1f\0\x80\0"s,
          "\0\0\0\0\0"s + SealRecord(RecordType::kSession, 1, "", "payload")};
}

}  // namespace

extern const FuzzTarget record_target;
const FuzzTarget record_target = {"record", Run, Seeds};

}  // namespace smt::fuzz
