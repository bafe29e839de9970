// Stores on disk that are damaged, cannot write or run full.
#include <gmock/gmock.h>
#include <sys/mount.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/time/clock.h"
#include "tests/server/store/rocksdb_store_testing.h"
#include "tests/server/store/rocksdb_testing.h"
#include "tests/server/store/status_testing.h"

namespace smt {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(RocksDbFaultsTest, DamageIsToldWithTheSessionsNameAndOthersGoOn) {
  const auto all = [](std::string_view) { return true; };
  for (const int64_t at : {0, 5, 9, 17, -1}) {
    for (const char* family : {"sessions", "log", "requests", "snapshots"}) {
      TempDir dir;
      {
        auto store = *Open(dir.path());
        ASSERT_OK(Create(*store, "a", 1, {5, 6}));
        ASSERT_OK(store->PutSnapshot({"a", 1}, {0, 2}, "state", {}));
      }
      ASSERT_EQ(DamageRecords(dir.path(), family, all, at), 1);
      auto store = *Open(dir.path());
      ASSERT_OK(Create(*store, "b", 2, {7}));
      const auto damaged = StatusIs(StatusCode::kDataLoss, HasSubstr("session 'a'"));
      const std::string_view f = family;
      if (f == "sessions") {
        EXPECT_THAT(store->Find("a")->header, damaged);
      }
      if (f == "log") {
        EXPECT_THAT(store->ReadLog({"a", 1}, 0, 1, 2), damaged);
        EXPECT_THAT(store->LogEnd({"a", 1}, 0), damaged);
        EXPECT_THAT(Append(*store, "a", 1, 2, {1}), damaged);
      }
      if (f == "requests") {
        EXPECT_THAT(store->GetRequest({"a", 1}, "r"), damaged);
      }
      if (f == "snapshots") {
        EXPECT_THAT(store->GetSnapshot({"a", 1}, {0, 2}), damaged);
      }
      EXPECT_THAT(*store->ReadLog({"b", 2}, 0, 1, 1), ElementsAre(7));
      SessionWrite remove;
      remove.kind = SessionWrite::Kind::kRemove;
      remove.key = store->Find("a")->key;
      EXPECT_OK(store->Commit({&remove, 1}, true)[0]);
      EXPECT_THAT(store->Find("a"), StatusIs(StatusCode::kNotFound, HasSubstr("")));
    }
  }
}

TEST(RocksDbFaultsTest, ADamagedWriteAheadLogIsToldNotSkipped) {
  TempDir dir, copy;
  {
    auto store = *Open(dir.path());
    for (uint64_t i = 1; i <= 50; ++i) ASSERT_OK(Create(*store, "s" + std::to_string(i), i, {1, 2, 3}));
    fs::copy(dir.path(), copy.path(), fs::copy_options::recursive | fs::copy_options::overwrite_existing);
  }
  fs::path log;  // of the copy, taken while the store was open: as after a power cut
  for (const auto& e : fs::directory_iterator(copy.path() + "/rocksdb")) {
    if (e.path().extension() == ".log" && (log.empty() || fs::file_size(e.path()) > fs::file_size(log))) log = e.path();
  }
  const auto size = fs::file_size(log);
  ASSERT_GT(size, 1000u);
  {
    TempDir torn;  // a torn last record is what a crash leaves
    fs::copy(copy.path(), torn.path(), fs::copy_options::recursive | fs::copy_options::overwrite_existing);
    fs::resize_file(torn.path() + "/rocksdb/" + log.filename().string(), size - 3);
    auto store = Open(torn.path());
    ASSERT_OK(store);
    EXPECT_EQ(*(*store)->Count(), 49);
  }
  std::fstream f(log, std::ios::in | std::ios::out | std::ios::binary);
  f.seekp(static_cast<std::streamoff>(size / 2));
  f.put('\x5a');
  f.put('\x5a');
  f.close();
  EXPECT_THAT(Open(copy.path()), StatusIs(StatusCode::kDataLoss, HasSubstr(copy.path())));
}

TEST(RocksDbFaultsTest, AFailedSyncClosesTheStoreForGood) {
  TempDir dir;
  Faults faults;
  const auto env = NewFaultEnv(&faults);
  {
    auto store = *Open(dir.path(), env.get());
    ASSERT_OK(Create(*store, "a", 1, {1}));
    faults.fail_sync = true;
    EXPECT_THAT(Append(*store, "a", 1, 1, {2}),
                StatusIs(StatusCode::kUnavailable, HasSubstr("has failed and is closed")));
    faults.fail_sync = false;
    const int64_t syncs = faults.log_syncs;
    EXPECT_THAT(Append(*store, "a", 1, 1, {2}), StatusIs(StatusCode::kUnavailable, HasSubstr("closed")));
    EXPECT_THAT(store->Find("a"), StatusIs(StatusCode::kUnavailable, HasSubstr("closed")));
    EXPECT_THAT(store->Health(), StatusIs(StatusCode::kUnavailable, HasSubstr("closed")));
    EXPECT_EQ(faults.log_syncs, syncs) << "a failed sync must not be retried";
  }
  auto store = *Open(dir.path(), env.get());
  EXPECT_EQ(store->ReadLog({"a", 1}, 0, 1, 1)->at(0), 1);
}

// RocksDB syncs the log before the present one in the background, and would sync it again for a write that waits.
TEST(RocksDbFaultsTest, AFailedSyncInTheBackgroundClosesTheStoreToo) {
  for (const bool writes : {false, true}) {
    SCOPED_TRACE(writes);
    TempDir dir;
    Faults faults;
    const auto env = NewFaultEnv(&faults);
    std::atomic<int64_t> acknowledged{1};
    {
      auto store = *Open(dir.path(), env.get());
      ASSERT_OK(Create(*store, "a", 1, {1}));
      std::atomic<bool> stop{false};
      std::thread writer([&] {
        while (writes && !stop && Append(*store, "a", 1, acknowledged, {2}).ok()) ++acknowledged;
      });
      // A megabyte of snapshots begins a new log and has the one before it synced.
      const absl::Time limit = absl::Now() + absl::Seconds(20);
      for (int64_t i = 1; store->Health().ok() && absl::Now() < limit; ++i) {
        if (i == 20) faults.fail_closed_sync = true;
        store->PutSnapshot({"a", 1}, {0, i}, std::string(300'000, 's'), {}).IgnoreError();
      }
      stop = true;
      writer.join();
      EXPECT_THAT(store->Health(), StatusIs(StatusCode::kUnavailable, HasSubstr("has failed and is closed")));
      EXPECT_THAT(Append(*store, "a", 1, acknowledged, {3}), StatusIs(StatusCode::kUnavailable, HasSubstr("closed")));
      EXPECT_THAT(store->Find("a"), StatusIs(StatusCode::kUnavailable, HasSubstr("closed")));
    }
    faults.fail_closed_sync = false;
    auto store = *Open(dir.path(), env.get());
    EXPECT_OK(store->ReadLog({"a", 1}, 0, 1, acknowledged));
  }
}

TEST(RocksDbFaultsTest, NoSpaceRefusesWritesAndGoesOnWhenThereIsRoom) {
  TempDir dir;
  Faults faults;
  const auto env = NewFaultEnv(&faults);
  auto store = *Open(dir.path(), env.get());
  ASSERT_OK(Create(*store, "a", 1, {1}));
  faults.fail_append = true;
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(Append(*store, "a", 1, 1, {2}), StatusIs(StatusCode::kResourceExhausted, HasSubstr("no space left")));
  }
  EXPECT_THAT(*store->ReadLog({"a", 1}, 0, 1, 1), ElementsAre(1));
  faults.fail_append = false;
  ASSERT_OK(Append(*store, "a", 1, 1, {3}));
  store.reset();
  store = *Open(dir.path(), env.get());
  EXPECT_THAT(*store->ReadLog({"a", 1}, 0, 1, 2), ElementsAre(1, 3));
}

TEST(RocksDbFaultsTest, AStoreThatCannotBeOpenedAgainSaysWhetherItIsForWantOfSpace) {
  TempDir dir;
  Faults faults;
  const auto env = NewFaultEnv(&faults);
  auto store = *Open(dir.path(), env.get());
  ASSERT_OK(Create(*store, "a", 1, {1}));
  faults.fail_append = true;
  EXPECT_THAT(Append(*store, "a", 1, 1, {2}), StatusIs(StatusCode::kResourceExhausted, HasSubstr("no space left")));
  faults.fail_open = true;
  for (int i = 0; i < 2; ++i) {
    const auto broken = StatusIs(StatusCode::kUnavailable, AllOf(HasSubstr(dir.path()), HasSubstr("injected")));
    EXPECT_THAT(Append(*store, "a", 1, 1, {2}), broken);
    EXPECT_THAT(store->ReadLog({"a", 1}, 0, 1, 1), broken);
    EXPECT_THAT(store->Health(), broken);
  }
  faults.fail_open = false;
  EXPECT_THAT(Append(*store, "a", 1, 1, {2}), StatusIs(StatusCode::kResourceExhausted, HasSubstr("no space left")));
  faults.fail_append = false;
  ASSERT_OK(Append(*store, "a", 1, 1, {3}));
  EXPECT_THAT(*store->ReadLog({"a", 1}, 0, 1, 2), ElementsAre(1, 3));
}

TEST(RocksDbFaultsTest, BelowTheReserveNothingIsWritten) {
  TempDir dir;
  auto store = *Open(dir.path(), nullptr, INT64_MAX);
  EXPECT_THAT(Create(*store, "a", 1), StatusIs(StatusCode::kResourceExhausted, HasSubstr("nothing was written")));
  EXPECT_THAT(store->Health(), StatusIs(StatusCode::kResourceExhausted, HasSubstr(dir.path())));
  EXPECT_EQ(*store->Count(), 0);
}

// On a file system that is really full, where mounting one is permitted.
TEST(RocksDbFaultsTest, AFullDiskRefusesWritesAndGoesOnWhenThereIsRoom) {
  TempDir dir;
  if (::mount("tmpfs", dir.path().c_str(), "tmpfs", 0, "size=96m") != 0) GTEST_SKIP() << "cannot mount a tmpfs here";
  struct Unmount {
    std::string path;
    ~Unmount() { ::umount2(path.c_str(), MNT_DETACH); }
  } unmount{dir.path()};
  {
    auto store = *Open(dir.path() + "/store");
    ASSERT_OK(Create(*store, "a", 1, {1}));
    std::ofstream ballast(dir.path() + "/ballast");
    const std::string chunk(1 << 16, 'x');
    while (ballast.write(chunk.data(), static_cast<std::streamsize>(chunk.size())).flush()) {
    }
    ballast.close();
    int64_t end = 1;
    absl::Status s;
    for (int i = 0; i < 1000 && s.ok(); ++i) {
      s = Append(*store, "a", 1, end, std::vector<int32_t>(50000, i));
      if (s.ok()) end += 50000;
    }
    ASSERT_THAT(s, StatusIs(StatusCode::kResourceExhausted, HasSubstr("no space left")));
    fs::remove(dir.path() + "/ballast");
    ASSERT_OK(Append(*store, "a", 1, end, {42}));
    EXPECT_EQ(*store->LogEnd({"a", 1}, 0), end + 1);
    store.reset();
    store = *Open(dir.path() + "/store");
    EXPECT_EQ(*store->LogEnd({"a", 1}, 0), end + 1);
  }
}

}  // namespace
}  // namespace smt
