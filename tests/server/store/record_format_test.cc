#include "server/store/record_format.h"

#include <gtest/gtest.h>

#include "absl/strings/escaping.h"
#include "tests/server/store/status_testing.h"

namespace smt {
namespace {

using testing::HasSubstr;

TEST(RecordFormatTest, BytesAreTheDocumentedOnes) {
  const std::string record = SealRecord(RecordType::kLog, 1, "key", std::string("\x01\x02\x03\x04", 4));
  EXPECT_EQ(absl::BytesToHexString(record.substr(0, 16)),
            "534d544c"
            "0100"
            "0000"
            "0400000000000000");
  EXPECT_EQ(absl::BytesToHexString(record.substr(24)), "01020304");
  // XXH3-64 of "key", bytes 0..15 and the payload, little-endian.
  EXPECT_EQ(absl::BytesToHexString(record.substr(16, 8)), "46c0fea8d1aaa56f");
}

TEST(RecordFormatTest, ReadsBackWhatWasSealed) {
  const std::string record = SealRecord(RecordType::kSession, 3, "k", "payload");
  const auto opened = OpenRecord(RecordType::kSession, 5, "k", record);
  ASSERT_OK(opened);
  EXPECT_EQ(opened->version, 3);
  EXPECT_EQ(opened->payload, "payload");
}

TEST(RecordFormatTest, EveryFlippedBitAndEveryCutIsDataLoss) {
  const std::string record = SealRecord(RecordType::kRequest, 1, "the key", "some payload");
  for (size_t bit = 0; bit < record.size() * 8; ++bit) {
    std::string bad = record;
    bad[bit / 8] ^= static_cast<char>(1 << bit % 8);
    EXPECT_THAT(OpenRecord(RecordType::kRequest, 1, "the key", bad),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("")))
        << bit;
  }
  for (size_t size = 0; size < record.size(); ++size) {
    EXPECT_THAT(OpenRecord(RecordType::kRequest, 1, "the key", record.substr(0, size)),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("")));
  }
  EXPECT_THAT(OpenRecord(RecordType::kRequest, 1, "the key", record + "x"),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("")));
}

TEST(RecordFormatTest, ARecordInAnothersPlaceOrOfAnotherTypeIsDataLoss) {
  const std::string record = SealRecord(RecordType::kLog, 1, "key 1", "ids");
  EXPECT_THAT(OpenRecord(RecordType::kLog, 1, "key 2", record),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("checksum")));
  EXPECT_THAT(OpenRecord(RecordType::kSnapshot, 1, "key 1", record),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("type 'L', expected 'S'")));
}

TEST(RecordFormatTest, ANewerVersionIsNamed) {
  const std::string record = SealRecord(RecordType::kLog, 7, "key", "ids");
  EXPECT_THAT(OpenRecord(RecordType::kLog, 2, "key", record),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("version 7, this server reads 1 to 2")));
}

TEST(RecordFormatTest, FieldsReadBackAndNeverPastTheEnd) {
  RecordWriter w;
  w.U8(7);
  w.U32(1u << 31);
  w.I64(-5);
  w.Str("text");
  w.Str("");
  const std::string bytes = w.Take();
  const auto read = [](std::string_view in) {
    RecordReader r(in);
    r.U8();
    r.U32();
    r.I64();
    r.Str();
    r.Str();
    return r.done();
  };
  EXPECT_TRUE(read(bytes));
  EXPECT_FALSE(read(bytes + "x"));
  for (size_t size = 0; size < bytes.size(); ++size) EXPECT_FALSE(read(bytes.substr(0, size))) << size;
  RecordReader r(bytes);
  EXPECT_EQ(r.U8(), 7);
  EXPECT_EQ(r.U32(), 1u << 31);
  EXPECT_EQ(r.I64(), -5);
  EXPECT_EQ(r.Str(), "text");
}

TEST(RecordFormatTest, BigEndianKeysSortAsNumbers) {
  std::string last;
  for (const uint64_t v : {uint64_t{0}, uint64_t{1}, uint64_t{255}, uint64_t{256}, uint64_t{1} << 40, UINT64_MAX}) {
    std::string key;
    AppendBigEndian(&key, v);
    EXPECT_EQ(ReadBigEndian(key), v);
    EXPECT_GE(key, last);
    last = key;
  }
}

}  // namespace
}  // namespace smt
