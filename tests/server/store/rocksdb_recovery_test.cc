// What a loss of power or a bad disk makes of the database's files: opened without losing what was synced, or refused
// with what to do.
#include <gmock/gmock.h>
#include <rocksdb/db.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "model/base/strings.h"
#include "server/store/rocksdb_repair.h"
#include "server/store/rocksdb_store.h"
#include "server/store/rocksdb_wal.h"
#include "tests/server/store/crash_file_system.h"
#include "tests/server/store/rocksdb_testing.h"
#include "tests/server/store/status_testing.h"

namespace smt {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;

constexpr int kSessions = 20;

absl::StatusOr<std::unique_ptr<SessionStore>> Open(const std::string& dir, rocksdb::Env* env = nullptr) {
  RocksDbStoreOptions options;
  options.dir = dir;
  options.env = env;
  options.min_free_bytes = 0;
  return OpenRocksDbStore(options);
}
absl::Status Create(SessionStore& store, uint64_t uid, std::vector<int32_t> ids, bool sync = true) {
  SessionWrite w;
  w.kind = SessionWrite::Kind::kCreate;
  w.key = {"s" + std::to_string(uid), uid};
  w.header = "header";
  w.position = 0;
  w.ids = std::move(ids);
  return store.Commit({&w, 1}, sync)[0];
}
absl::Status Append(SessionStore& store, uint64_t uid, int64_t position, std::vector<int32_t> ids, bool sync) {
  SessionWrite w;
  w.key = {"s" + std::to_string(uid), uid};
  w.position = position;
  w.ids = std::move(ids);
  return store.Commit({&w, 1}, sync)[0];
}
// Without a zero byte in them.
std::vector<int32_t> Ids(size_t n) { return std::vector<int32_t>(n, 0x01020304); }

std::string Read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}
void Write(const fs::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}
void CopyStore(const std::string& from, const std::string& to) {
  fs::copy(from, to, fs::copy_options::recursive | fs::copy_options::overwrite_existing);
}
// Those with this extension, by name; without empty ones.
std::vector<fs::path> Files(const std::string& dir, std::string_view extension) {
  std::vector<fs::path> out;
  for (const auto& e : fs::directory_iterator(dir + "/rocksdb")) {
    if (e.path().extension() == extension && fs::file_size(e.path()) > 0) out.push_back(e.path());
  }
  std::sort(out.begin(), out.end());
  return out;
}

// A store whose write-ahead log holds kSessions sessions and then `last`, all copied while it was open, as after a loss
// of power. `before` is the log's length without `last`.
class LogTest : public testing::TestWithParam<size_t> {
 protected:
  void SetUp() override {
    TempDir dir;
    auto store = *Open(dir.path());
    for (uint64_t uid = 1; uid <= kSessions; ++uid) ASSERT_OK(Create(*store, uid, Ids(100)));
    const fs::path log = Files(dir.path(), ".log").back();
    before_ = fs::file_size(log);
    ASSERT_OK(Create(*store, kSessions + 1, Ids(GetParam())));
    CopyStore(dir.path(), dir_.path());
    log_ = Files(dir_.path(), ".log").back();
    bytes_ = Read(log_);
    ASSERT_EQ(log_.filename(), log.filename());
    ASSERT_GT(bytes_.size(), before_ + 512);
  }
  // Opens a copy with this log. Where it is refused, the message holds `says`.
  absl::StatusOr<int64_t> CountWith(std::string_view log, const std::string& says = "") {
    TempDir copy;
    CopyStore(dir_.path(), copy.path());
    const fs::path path = fs::path(copy.path()) / "rocksdb" / log_.filename();
    Write(path, log);
    auto store = Open(copy.path());
    if (!store.ok()) {
      EXPECT_EQ(Read(path), log) << "what is refused is left as it was";
      EXPECT_THAT(store.status(),
                  StatusIs(StatusCode::kDataLoss, AllOf(HasSubstr(log_.filename().string()), HasSubstr(copy.path()),
                                                        HasSubstr("--repair_store"), HasSubstr(says))));
      return store.status();
    }
    for (uint64_t uid = 1; uid <= kSessions; ++uid) {
      EXPECT_EQ((*store)->ReadLog({"", uid}, 0, 1, 100).value_or(Ids(0)), Ids(100));
    }
    EXPECT_OK(Create(**store, 99, Ids(1)));
    return *(*store)->Count() - 1;
  }

  // Where the piece of a record begins that this byte is in, by the lengths in the log.
  size_t PieceAround(size_t at) const {
    constexpr size_t kBlock = 32768, kHeader = 7;
    size_t piece = 0;
    for (size_t next = 0; next <= at;) {
      piece = next;
      next += kHeader + static_cast<uint8_t>(bytes_[next + 4]) + 256 * static_cast<uint8_t>(bytes_[next + 5]);
      if (next % kBlock > kBlock - kHeader) next += kBlock - next % kBlock;
    }
    return piece;
  }

  TempDir dir_;
  fs::path log_;
  std::string bytes_;
  size_t before_ = 0;
};

TEST_P(LogTest, ATailOfZerosThatWasNeverSyncedIsCutOff) {
  EXPECT_EQ(*CountWith(bytes_), kSessions + 1);
  size_t tried = 0;
  const size_t step = 512 * std::max<size_t>(1, (bytes_.size() - before_) / 512 / 16);
  for (size_t zeros = (before_ + 511) / 512 * 512; zeros < bytes_.size(); zeros += step, ++tried) {
    for (const size_t more : {size_t{0}, size_t{100}, size_t{70'000}}) {
      SCOPED_TRACE(testing::Message() << zeros << " of " << bytes_.size() << " and " << more << " after it");
      EXPECT_EQ(CountWith(bytes_.substr(0, zeros) + std::string(bytes_.size() - zeros + more, '\0')).value_or(-1),
                kSessions);
    }
  }
  EXPECT_GT(tried, 3u);
}

TEST_P(LogTest, ATornLastRecordIsNoDamage) {
  for (const size_t missing : {size_t{1}, size_t{3}, (bytes_.size() - before_) / 2, bytes_.size() - before_ - 1}) {
    EXPECT_EQ(CountWith(bytes_.substr(0, bytes_.size() - missing)).value_or(-1), kSessions) << missing;
  }
}

TEST_P(LogTest, DamageBeforeOrInADurableRecordIsRefused) {
  const std::string name = log_.filename().string();
  for (const size_t at : {before_ / 3, before_ + 100, bytes_.size() - 20}) {
    std::string flipped = bytes_;
    flipped[at] = static_cast<char>(flipped[at] ^ 4);
    EXPECT_FALSE(CountWith(flipped, StrCat(name, " does not read at byte ", PieceAround(at), ";")).ok()) << at;
    // Zeros behind do not make it a tail.
    if (at < before_) {
      EXPECT_FALSE(CountWith(flipped + std::string(5000, '\0')).ok()) << at;
    }
  }
  std::string hole = bytes_;
  std::fill_n(hole.begin() + 1024, 512, '\0');
  hole[1023] = hole[1536] = 'x';  // as of the records around it
  const std::string says =
      StrCat(name, " does not read at byte ", PieceAround(1024), " (bytes 1024 to 1535 are zeros);");
  EXPECT_FALSE(CountWith(hole, says).ok());
}

// In one block of the log, and in several: RocksDB writes a record that crosses blocks of 32 KiB in pieces.
INSTANTIATE_TEST_SUITE_P(LastRecord, LogTest, testing::Values(1000, 30'000));

// Nothing of a log with a torn end was acknowledged after that end, but the next log may have been written already.
TEST(RocksDbRecoveryTest, ATornLogWithASuccessorLeavesNoHole) {
  TempDir dir;
  int64_t recovered = 0, operations = 0;
  const auto script = [&](CrashDisk& disk) {
    const auto env = disk.NewEnv();
    auto store = Open(dir.path(), env.get());
    if (!store.ok()) return;
    if (!Create(**store, 1, Ids(10)).ok()) return;
    int64_t position = 10;
    const std::string state(300'000, 's');
    for (int i = 0; i < 8; ++i) {  // a megabyte of snapshots begins a new log
      for (int n = 0; n < 4; ++n, position += 64) {
        if (!Append(**store, 1, position, Ids(64), false).ok()) return;
      }
      (*store)->PutSnapshot({"s1", 1}, {0, position}, state, {}).IgnoreError();
    }
  };
  {
    CrashDisk disk;
    script(disk);
    operations = disk.operations();
  }
  for (int64_t at = 1; at <= operations && !testing::Test::HasFailure(); ++at) {
    CrashDisk disk;
    disk.Inject(CrashDisk::Fault::kStop, at);
    script(disk);
    for (uint64_t seed = 0; seed < 4; ++seed) {
      const auto left = disk.AfterPowerCut(CrashDisk::Left::kPart, 4 * static_cast<uint64_t>(at) + seed);
      if (left->HoldsOrphanTables()) continue;
      const auto env = left->NewEnv();
      auto store = Open(dir.path(), env.get());
      ASSERT_OK(store) << "stopped at operation " << at << " of " << operations;
      const int64_t end = *(*store)->LogEnd({"s1", 1}, 0);
      ASSERT_OK((*store)->ReadLog({"s1", 1}, 0, 1, end)) << "stopped at operation " << at << " of " << operations;
      recovered += end > 10;
    }
  }
  EXPECT_GT(recovered, 20);
}

TEST(RocksDbRecoveryTest, ALogThatLostASyncedEndIsToldThoughItLooksTorn) {
  TempDir dir, copy;
  {
    auto store = *Open(dir.path());
    ASSERT_OK(Create(*store, 1, Ids(1000)));
    for (int64_t i = 1; Files(dir.path(), ".log").size() < 2; ++i) {
      ASSERT_LT(i, 100);
      ASSERT_OK(store->PutSnapshot({"s1", 1}, {0, i}, std::string(300'000, 's'), {}));
    }
    ASSERT_OK(Append(*store, 1, 1000, Ids(10), true));
    CopyStore(dir.path(), copy.path());
  }
  const auto logs = Files(copy.path(), ".log");
  ASSERT_GE(logs.size(), 2u);
  {
    TempDir whole;
    CopyStore(copy.path(), whole.path());
    EXPECT_EQ(*(*Open(whole.path()))->LogEnd({"s1", 1}, 0), 1010);
  }
  fs::resize_file(logs[0], fs::file_size(logs[0]) - 1000);
  EXPECT_THAT(Open(copy.path()).status(), StatusIs(StatusCode::kDataLoss, HasSubstr("WAL")));
}

// A flipped bit on disk fails RocksDB's checksum of the block, and with it whatever looks at that block.
TEST(RocksDbRecoveryTest, ADamagedBlockIsDataLossOfItsOwnPieceOfTheLogOnly) {
  TempDir dir;
  {
    auto store = *Open(dir.path());
    ASSERT_OK(Create(*store, 1, Ids(100)));
    ASSERT_OK(Append(*store, 1, 100, Ids(100), true));
    ASSERT_OK(Append(*store, 1, 200, Ids(100), true));
    ASSERT_OK(Create(*store, 2, Ids(100)));
  }
  // Behind the key of the second piece: uid, branch, position.
  const std::string key{"\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x64", 24};
  int flipped = 0;
  for (const fs::path& table : Files(dir.path(), ".sst")) {
    std::string bytes = Read(table);
    const size_t at = bytes.find(key);
    if (at == std::string::npos || bytes.compare(at + 32, 4, "SMTL") != 0) continue;
    bytes[at + 100] = static_cast<char>(bytes[at + 100] ^ 1);
    Write(table, bytes);
    ++flipped;
  }
  ASSERT_EQ(flipped, 1);
  auto store = *Open(dir.path());
  for (const auto& [first, last] :
       {std::pair<int64_t, int64_t>{1, 100}, {50, 60}, {100, 100}, {201, 300}, {250, 260}}) {
    const auto ids = store->ReadLog({"s1", 1}, 0, first, last);
    EXPECT_EQ(ids.value_or(Ids(0)), Ids(static_cast<size_t>(last - first + 1))) << first << " " << ids.status();
  }
  for (const auto& [first, last] : {std::pair<int64_t, int64_t>{1, 101}, {150, 150}, {200, 201}, {1, 300}}) {
    EXPECT_THAT(store->ReadLog({"s1", 1}, 0, first, last), StatusIs(StatusCode::kDataLoss, HasSubstr("'s1'"))) << first;
  }
  EXPECT_EQ(*store->ReadLog({"s2", 2}, 0, 1, 100), Ids(100));
}

// Damages a copy of a closed store in a way, repairs it, and looks at what is left.
class RepairTest : public testing::Test {
 protected:
  void SetUp() override {
    auto store = *Open(dir_.path());
    for (uint64_t uid = 1; uid <= kSessions; ++uid) {
      ASSERT_OK(Create(*store, uid, Ids(100)));
      ASSERT_OK(store->PutSnapshot({"s" + std::to_string(uid), uid}, {0, 100}, std::string(5000, 's'), {}));
    }
    CopyStore(dir_.path(), open_.path());
  }
  static absl::StatusOr<StoreRepair> Repair(const std::string& dir) {
    RocksDbStoreOptions options;
    options.dir = dir;
    options.min_free_bytes = 0;
    return RepairRocksDbStore(options);
  }
  static int64_t Readable(SessionStore& store) {
    int64_t n = 0;
    for (uint64_t uid = 1; uid <= kSessions; ++uid) {
      const auto ids = store.ReadLog({"", uid}, 0, 1, 100);
      n += ids.ok() && *ids == Ids(100);
    }
    return n;
  }

  TempDir dir_;   // closed: everything is in tables
  TempDir open_;  // copied while it was open: everything is in the log
};

TEST_F(RepairTest, AfterDamageInTheLogTheStoreIsAsItWasBefore) {
  const fs::path log = Files(open_.path(), ".log").back();
  std::string bytes = Read(log);
  bytes[bytes.size() / 2] ^= 1;
  Write(log, bytes);
  EXPECT_THAT(Open(open_.path()).status(), StatusIs(StatusCode::kDataLoss, HasSubstr("--repair_store")));
  const auto repair = Repair(open_.path());
  ASSERT_OK(repair);
  EXPECT_TRUE(repair->one_moment);
  EXPECT_EQ(Read(fs::path(repair->damaged_path) / log.filename()), bytes) << "kept as it was";
  auto store = Open(open_.path());
  ASSERT_OK(store);
  EXPECT_EQ(*(*store)->Count(), repair->sessions);
  EXPECT_GT(repair->sessions, kSessions / 4);
  EXPECT_LT(repair->sessions, kSessions);
  EXPECT_EQ(Readable(**store), repair->sessions);
  EXPECT_THAT(Repair(open_.path()).status(), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("move it away")));
}

TEST_F(RepairTest, ATableThatCannotBeReadIsLeftOutAndTheRestIsKept) {
  // A session more, in tables of its own.
  {
    auto store = *Open(dir_.path());
    ASSERT_OK(Create(*store, 50, Ids(100)));
  }
  const auto tables = Files(dir_.path(), ".sst");
  int refused = 0;
  for (const fs::path& table : tables) {
    SCOPED_TRACE(table);
    TempDir copy;
    CopyStore(dir_.path(), copy.path());
    const fs::path path = fs::path(copy.path()) / "rocksdb" / table.filename();
    std::string bytes = Read(path);
    std::fill(bytes.end() - 200, bytes.end(), 'x');  // where its index is found
    Write(path, bytes);
    const absl::Status status = Open(copy.path()).status();
    EXPECT_THAT(status, StatusIs(StatusCode::kDataLoss,
                                 AllOf(HasSubstr(table.filename().string()), HasSubstr("--repair_store"))));
    refused += !status.ok();
    const auto repair = Repair(copy.path());
    ASSERT_OK(repair);
    EXPECT_FALSE(repair->one_moment);
    auto store = Open(copy.path());
    ASSERT_OK(store);
    // Each table holds one kind of record, of the first sessions or of the last one.
    const bool logs_left = Readable(**store) == kSessions || (*store)->ReadLog({"", 50}, 0, 1, 100).ok();
    EXPECT_TRUE(logs_left);
    EXPECT_EQ(*(*store)->Count(), repair->sessions);
    EXPECT_THAT((*store)->ListSnapshots({"s1", 1}),
                testing::AnyOf(StatusIs(StatusCode::kNotFound, HasSubstr("")),
                               testing::Truly([](const auto& names) { return names.ok() && names->empty(); })));
    ASSERT_OK(Create(**store, 60, Ids(1)));
    ASSERT_OK((*store)->PutSnapshot({"s60", 60}, {0, 1}, std::string(5000, 't'), {}));
    EXPECT_EQ((*store)->GetSnapshot({"s60", 60}, {0, 1}).value_or(""), std::string(5000, 't'));
  }
  EXPECT_EQ(refused, static_cast<int>(tables.size()));
}

TEST_F(RepairTest, WithoutItsBookkeepingEverythingIsFoundAgain) {
  TempDir copy;
  { auto store = *Open(dir_.path()); }
  CopyStore(dir_.path(), copy.path());
  for (const auto& e : fs::directory_iterator(copy.path() + "/rocksdb")) {
    if (e.path().filename().string().starts_with("MANIFEST")) Write(e.path(), "garbage");
  }
  EXPECT_THAT(Open(copy.path()).status(), StatusIs(StatusCode::kDataLoss, HasSubstr("--repair_store")));
  const auto repair = Repair(copy.path());
  ASSERT_OK(repair);
  EXPECT_EQ(repair->sessions, kSessions);
  EXPECT_EQ(repair->damaged, 0);
  auto store = Open(copy.path());
  ASSERT_OK(store);
  EXPECT_EQ(Readable(**store), kSessions);
}

TEST_F(RepairTest, AStoreInUseIsLeftAlone) {
  auto store = *Open(dir_.path());
  EXPECT_THAT(Repair(dir_.path()).status(), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("another server")));
  EXPECT_THAT(Repair(dir_.path() + "/none").status(),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("there is no store")));
}

// RocksDB's own log, of groups of all sizes, in pieces at all places of its blocks.
TEST(RocksDbRecoveryTest, AGroupOfWritesIsFoundInTheLogByItsNumber) {
  TempDir dir;
  rocksdb::Options options;
  options.create_if_missing = true;
  rocksdb::DB* opened = nullptr;
  ASSERT_TRUE(rocksdb::DB::Open(options, dir.path(), &opened).ok());
  const std::unique_ptr<rocksdb::DB> db(opened);
  std::mt19937 random(1);
  std::vector<std::pair<uint64_t, size_t>> groups;  // what is before each: sequence number, bytes of the log
  const auto log = [&] {
    for (const auto& e : fs::directory_iterator(dir.path())) {
      if (e.path().extension() == ".log") return Read(e.path());
    }
    return std::string();
  };
  for (int i = 0; i < 300; ++i) {
    groups.emplace_back(db->GetLatestSequenceNumber(), log().size());
    rocksdb::WriteBatch batch;
    for (uint32_t keys = 1 + random() % 3; keys-- > 0;) {
      batch.Put(std::to_string(random()), std::string(random() % (i % 10 == 0 ? 70000 : 900), 'x'));
    }
    ASSERT_TRUE(db->Write(rocksdb::WriteOptions(), &batch).ok());
  }
  const std::string bytes = log();
  for (const auto& [sequence, end] : groups) {
    const std::optional<size_t> found = store_internal::FindWalGroupAfter(bytes, sequence);
    ASSERT_TRUE(found.has_value());
    EXPECT_GE(*found, end);
    EXPECT_LT(*found, end + 7) << "but for what is left free at the end of a block";
  }
  EXPECT_EQ(store_internal::FindWalGroupAfter(bytes, db->GetLatestSequenceNumber()), std::nullopt);
}

TEST(RocksDbRecoveryTest, WhatIsRefusedBecauseItsSyncFoundNoSpaceStaysAway) {
  for (int at = 1; at <= 2; ++at) {  // the write, its sync
    TempDir dir;
    CrashDisk disk;
    const std::unique_ptr<rocksdb::Env> env = disk.NewEnv();
    auto store = *Open(dir.path(), env.get());
    ASSERT_OK(Create(*store, 1, Ids(10)));
    ASSERT_OK(Append(*store, 1, 10, Ids(1), false));  // acknowledged, not synced
    disk.Inject(CrashDisk::Fault::kFull, disk.operations() + at);
    EXPECT_THAT(Append(*store, 1, 11, Ids(5), true), StatusIs(StatusCode::kResourceExhausted, HasSubstr("no space")));
    EXPECT_GT(disk.struck_at(), 0);
    disk.Heal();
    ASSERT_OK(Append(*store, 1, 11, Ids(2), true)) << "at " << at;
    EXPECT_EQ(*store->LogEnd({"s1", 1}, 0), 13);
    store.reset();
    store = *Open(dir.path(), env.get());
    EXPECT_EQ(*store->LogEnd({"s1", 1}, 0), 13);
  }
}

}  // namespace
}  // namespace smt
