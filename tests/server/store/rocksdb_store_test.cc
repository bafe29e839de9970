// What only a store on disk can do: come back, be copied, be unusable.
#include <gmock/gmock.h>
#include <rocksdb/db.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <thread>

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

TEST(RocksDbStoreTest, EverythingIsThereAfterOpeningAgain) {
  TempDir dir;
  {
    auto store = *Open(dir.path());
    ASSERT_OK(Create(*store, "a", 1, {5, 6}));
    ASSERT_OK(store->PutSnapshot({"a", 1}, {0, 2}, "state", {}));
  }
  auto store = *Open(dir.path());
  EXPECT_EQ(*store->Find("a")->header, "header of a");
  EXPECT_THAT(*store->ReadLog({"a", 1}, 0, 1, 2), ElementsAre(5, 6));
  EXPECT_EQ(*store->GetRequest({"a", 1}, "r"), "record");
  EXPECT_EQ(*store->GetSnapshot({"a", 1}, {0, 2}), "state");
}

TEST(RocksDbStoreTest, ABackupIsAStoreOfItsOwn) {
  TempDir dir, backups;
  auto store = *Open(dir.path());
  const std::string state(10'000, 's'), backup = backups.path() + "/all/first";
  ASSERT_OK(Create(*store, "a", 1, {5, 6}, false));
  ASSERT_OK(store->PutSnapshot({"a", 1}, {0, 2}, state, {}));
  ASSERT_OK(store->Backup(backup));
  ASSERT_OK(Append(*store, "a", 1, 2, {7}));
  ASSERT_OK(Create(*store, "b", 2));
  EXPECT_THAT(store->Backup(backup), StatusIs(StatusCode::kAlreadyExists, HasSubstr(backup)));
  EXPECT_EQ(std::distance(fs::directory_iterator(backups.path() + "/all"), {}), 1) << "nothing is left over";
  {
    auto copy = *Open(backup);
    EXPECT_EQ(*copy->Count(), 1);
    EXPECT_EQ(*copy->LogEnd({"a", 1}, 0), 2);
    EXPECT_THAT(*copy->ReadLog({"a", 1}, 0, 1, 2), ElementsAre(5, 6));
    EXPECT_EQ(*copy->GetSnapshot({"a", 1}, {0, 2}), state);
    EXPECT_EQ(*copy->GetRequest({"a", 1}, "r"), "record");
    ASSERT_OK(Append(*copy, "a", 1, 2, {8}));
  }
  EXPECT_THAT(*store->ReadLog({"a", 1}, 0, 1, 3), ElementsAre(5, 6, 7)) << "they share files, not what they write";
  store.reset();
  fs::remove_all(dir.path());
  EXPECT_THAT(*(*Open(backup))->ReadLog({"a", 1}, 0, 1, 3), ElementsAre(5, 6, 8));
}

TEST(RocksDbStoreTest, ABackupAmidWritesHasWhatWasAcknowledgedBefore) {
  TempDir dir, backups;
  auto store = *Open(dir.path());
  ASSERT_OK(Create(*store, "a", 1));
  std::atomic<int32_t> acknowledged = 0;
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    for (int32_t i = 0; !stop; ++i) {
      ASSERT_OK(Append(*store, "a", 1, i, {i}));
      if (i % 50 == 0) store->PutSnapshot({"a", 1}, {0, i}, std::string(300'000, 's'), {}).IgnoreError();
      acknowledged = i + 1;
    }
  });
  std::vector<int32_t> before;
  for (int i = 0; i < 5; ++i) {
    while (acknowledged < 60 * i) std::this_thread::yield();
    before.push_back(acknowledged);
    EXPECT_OK(store->Backup(backups.path() + "/" + std::to_string(i)));
  }
  stop = true;
  writer.join();
  for (size_t i = 0; i < before.size(); ++i) {
    auto copy = Open(backups.path() + "/" + std::to_string(i));
    ASSERT_OK(copy);
    const int64_t end = *(*copy)->LogEnd({"a", 1}, 0);
    EXPECT_GE(end, before[i]);
    std::vector<int32_t> want(static_cast<size_t>(end));
    std::iota(want.begin(), want.end(), 0);
    EXPECT_EQ(*(*copy)->ReadLog({"a", 1}, 0, 1, end), want);
  }
}

TEST(RocksDbStoreTest, ABackupThatCannotBeMadeLeavesNothing) {
  TempDir dir;
  auto store = *Open(dir.path());
  ASSERT_OK(Create(*store, "a", 1));
  EXPECT_THAT(store->Backup("/dev/null/first"), StatusIs(StatusCode::kUnavailable, HasSubstr("/dev/null/first")));
  TempDir other;
  fs::create_directories(other.path() + "/first.partial");
  EXPECT_THAT(store->Backup(other.path() + "/first"), StatusIs(StatusCode::kAlreadyExists, HasSubstr("first.partial")));
  EXPECT_FALSE(fs::exists(other.path() + "/first"));
  EXPECT_OK(store->Backup(other.path() + "/second"));
  EXPECT_OK(Append(*store, "a", 1, 0, {1}));
}

TEST(RocksDbStoreTest, WhatWasSyncedSurvivesAKilledProcess) {
  TempDir dir;
  int pipe_fd[2];
  ASSERT_EQ(::pipe(pipe_fd), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    auto store = Open(dir.path());
    if (!store.ok() || !Create(**store, "a", 1).ok()) ::_exit(1);
    for (int32_t i = 0;; ++i) {
      if (!Append(**store, "a", 1, i, {i}).ok()) ::_exit(1);
      if (::write(pipe_fd[1], &i, 4) != 4) ::_exit(1);
    }
  }
  ::close(pipe_fd[1]);
  int32_t acknowledged = -1;
  for (int n = 0; n < 200; ++n) ASSERT_EQ(::read(pipe_fd[0], &acknowledged, 4), 4);
  ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  for (int32_t i; ::read(pipe_fd[0], &i, 4) == 4;) acknowledged = i;
  ::close(pipe_fd[0]);
  ASSERT_TRUE(WIFSIGNALED(status));

  auto store = *Open(dir.path());
  const int64_t end = *store->LogEnd({"a", 1}, 0);
  EXPECT_GE(end, acknowledged + 1);
  EXPECT_LE(end, acknowledged + 2);
  const auto ids = *store->ReadLog({"a", 1}, 0, 1, end);
  for (int32_t i = 0; i < end; ++i) EXPECT_EQ(ids[static_cast<size_t>(i)], i);
}

TEST(RocksDbStoreTest, IdsThatComeOneByOneShareRecords) {
  TempDir dir;
  std::vector<int32_t> all;
  for (const int count : {100, 5, 40}) {  // the store is opened anew for each
    auto store = *Open(dir.path());
    if (all.empty()) {
      ASSERT_OK(Create(*store, "a", 1));
    }
    for (int i = 0; i < count; ++i) {
      ASSERT_OK(Append(*store, "a", 1, static_cast<int64_t>(all.size()), {i}));
      all.push_back(i);
      ASSERT_EQ(*store->LogEnd({"a", 1}, 0), static_cast<int64_t>(all.size()));
      ASSERT_EQ(*store->ReadLog({"a", 1}, 0, 1, static_cast<int64_t>(all.size())), all);
    }
  }
  EXPECT_EQ(CountRecords(dir.path(), "log"), 4 + 1 + 2);
  auto store = *Open(dir.path());
  for (const int more : {31, 1, 1, 31, 32, 33, 5000, 1}) {  // with what comes before: up to 32, or a record of its own
    const auto position = static_cast<int64_t>(all.size());
    const std::vector<int32_t> ids(static_cast<size_t>(more), more);
    ASSERT_OK(Append(*store, "a", 1, position, ids));
    all.insert(all.end(), ids.begin(), ids.end());
    ASSERT_EQ(*store->ReadLog({"a", 1}, 0, 1, static_cast<int64_t>(all.size())), all) << more;
  }
  store.reset();
  EXPECT_EQ(CountRecords(dir.path(), "log"), 7 + 1 + 1 + 1 + 1 + 2 + 1);
}

TEST(RocksDbStoreTest, AnAppendThatIsRefusedAddsNothingToTheLastRecord) {
  TempDir dir;
  auto store = *Open(dir.path());
  ASSERT_OK(Create(*store, "a", 1, {5}));
  std::vector<SessionWrite> group(3);
  for (SessionWrite& w : group) w.key = {"a", 1};
  group[0].position = 1;
  group[0].ids = {6};
  group[1].position = 1;  // the log ends at 2 by then
  group[1].ids = {9};
  group[2].position = 2;
  group[2].ids = {7};
  const auto statuses = store->Commit(group, true);
  EXPECT_OK(statuses[0]);
  EXPECT_THAT(statuses[1], StatusIs(StatusCode::kAborted, HasSubstr("ends at position 2")));
  EXPECT_OK(statuses[2]);
  EXPECT_THAT(*store->ReadLog({"a", 1}, 0, 1, 3), ElementsAre(5, 6, 7));
}

TEST(RocksDbStoreTest, UnusableDirectoriesAreRefusedWithTheReason) {
  TempDir dir;
  const std::string file = dir.path() + "/file";
  std::ofstream(file) << "x";
  EXPECT_THAT(Open(file), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("is not a directory")));
  EXPECT_THAT(Open(file + "/below"), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("cannot be")));
  EXPECT_THAT(Open(""), StatusIs(StatusCode::kInvalidArgument, HasSubstr("empty path")));
  EXPECT_OK(Open(dir.path() + "/made/with/parents"));
}

TEST(RocksDbStoreTest, AStoreThatIsOpenIsNotOpenedTwice) {
  TempDir dir;
  auto first = *Open(dir.path());
  EXPECT_THAT(Open(dir.path()), StatusIs(StatusCode::kFailedPrecondition,
                                         AllOf(HasSubstr(dir.path()), HasSubstr("another server holds it"))));
  first.reset();
  EXPECT_OK(Open(dir.path()));
}

TEST(RocksDbStoreTest, ANewerFormatIsRefusedNamingBothVersions) {
  TempDir dir;
  ASSERT_OK(Open(dir.path()));
  std::ofstream(dir.path() + "/FORMAT") << "smt-session-store 9\n";
  EXPECT_THAT(Open(dir.path()),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("version 9, this server reads up to version 2")));
  std::ofstream(dir.path() + "/FORMAT") << "garbage";
  EXPECT_THAT(Open(dir.path()), StatusIs(StatusCode::kDataLoss, HasSubstr("FORMAT must read")));
  fs::remove(dir.path() + "/FORMAT");
  EXPECT_THAT(Open(dir.path()), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("not a session store")));
}

TEST(RocksDbStoreTest, AStoreOfTheFirstFormatIsRaised) {
  TempDir dir;
  {
    auto store = *Open(dir.path());
    SessionWrite create;
    create.kind = SessionWrite::Kind::kCreate;
    create.key = {"a", 1};
    create.header = "header";
    ASSERT_OK(store->Commit({&create, 1}, true)[0]);
    ASSERT_OK(store->PutSnapshot({"a", 1}, {0, 2}, "state", {}));
  }
  {  // It had no references.
    std::vector<std::string> names;
    ASSERT_TRUE(rocksdb::DB::ListColumnFamilies({}, dir.path() + "/rocksdb", &names).ok());
    std::vector<rocksdb::ColumnFamilyDescriptor> families;
    for (const auto& name : names) families.emplace_back(name, rocksdb::ColumnFamilyOptions());
    std::vector<rocksdb::ColumnFamilyHandle*> handles;
    rocksdb::DB* db = nullptr;
    ASSERT_TRUE(rocksdb::DB::Open({}, dir.path() + "/rocksdb", families, &handles, &db).ok());
    for (auto* handle : handles) {
      if (handle->GetName() == "references") {
        ASSERT_TRUE(db->DropColumnFamily(handle).ok());
      }
      ASSERT_TRUE(db->DestroyColumnFamilyHandle(handle).ok());
    }
    delete db;
    std::ofstream(dir.path() + "/FORMAT") << "smt-session-store 1\n";
  }
  auto store = *Open(dir.path());
  EXPECT_EQ(*store->Find("a")->header, "header");
  EXPECT_THAT(*store->ListSnapshots({"a", 1}), testing::ElementsAre(SnapshotName{0, 2}));
  EXPECT_EQ(*store->GetSnapshot({"a", 1}, {0, 2}), "state");
  std::string format;
  std::getline(std::ifstream(dir.path() + "/FORMAT"), format);
  EXPECT_EQ(format, "smt-session-store 2");
}

TEST(RocksDbStoreTest, TablesWithoutCurrentAreNotReplacedByAnEmptyStore) {
  TempDir dir;
  ASSERT_OK(Create(**Open(dir.path()), "a", 1));
  fs::remove(dir.path() + "/rocksdb/CURRENT");
  EXPECT_THAT(Open(dir.path()), StatusIs(StatusCode::kDataLoss, HasSubstr("CURRENT is missing")));
}

TEST(RocksDbStoreTest, AReadOnlyDirectoryIsRefused) {
  TempDir dir;
  fs::permissions(dir.path(), fs::perms::owner_read | fs::perms::owner_exec | fs::perms::others_read |
                                  fs::perms::others_exec | fs::perms::group_read | fs::perms::group_exec);
  const pid_t child = ::fork();  // root may write anywhere: try as nobody
  if (child == 0) {
    if (::geteuid() == 0 && (::setegid(65534) != 0 || ::setreuid(65534, 65534) != 0)) ::_exit(2);
    const auto store = Open(dir.path());
    ::_exit(absl::IsFailedPrecondition(store.status()) &&
                    std::string(store.status().message()).find("must be readable and writable") != std::string::npos
                ? 0
                : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  fs::permissions(dir.path(), fs::perms::owner_all);
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace smt
