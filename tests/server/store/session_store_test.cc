// The contract of SessionStore, over every implementation.
#include "server/store/session_store.h"

#include <gmock/gmock.h>

#include <atomic>
#include <numeric>
#include <thread>

#include "server/store/rocksdb_store.h"
#include "tests/server/store/memory_store.h"
#include "tests/server/store/redis_testing.h"
#include "tests/server/store/rocksdb_testing.h"
#include "tests/server/store/status_testing.h"

namespace smt {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Kind = SessionWrite::Kind;

struct StoreFactory {
  const char* name;
  std::unique_ptr<SessionStore> (*make)(const std::string& dir);
};
std::unique_ptr<SessionStore> MakeMemory(const std::string&) { return std::make_unique<MemoryStore>(); }
std::unique_ptr<SessionStore> MakeRocksDb(const std::string& dir) {
  RocksDbStoreOptions options;
  options.dir = dir;
  return *OpenRocksDbStore(options);
}
// A store of its own in the test program's server. Null where there is no redis-server.
std::unique_ptr<SessionStore> MakeRedis(const std::string&) {
  static const std::unique_ptr<RedisServer> server = RedisServer::Start();
  if (server == nullptr) return nullptr;
  static int stores = 0;
  RedisStoreOptions options = server->Options();
  options.prefix = "store" + std::to_string(stores++) + ":";
  return *OpenRedisStore(options);
}

SessionWrite Create(std::string id, uint64_t uid, std::string header = "h") {
  SessionWrite w;
  w.kind = Kind::kCreate;
  w.key = {std::move(id), uid};
  w.header = std::move(header);
  return w;
}
SessionWrite Append(std::string id, uint64_t uid, int64_t position, std::vector<int32_t> ids, int64_t branch = 0) {
  SessionWrite w;
  w.key = {std::move(id), uid};
  w.position = position;
  w.branch = branch;
  w.ids = std::move(ids);
  return w;
}
SessionWrite Remove(std::string id, uint64_t uid) {
  SessionWrite w;
  w.kind = Kind::kRemove;
  w.key = {std::move(id), uid};
  return w;
}
std::vector<int32_t> Iota(int n, int32_t first = 0) {
  std::vector<int32_t> out(static_cast<size_t>(n));
  std::iota(out.begin(), out.end(), first);
  return out;
}

class SessionStoreTest : public testing::TestWithParam<StoreFactory> {
 protected:
  void SetUp() override {
    store_ = GetParam().make(dir_.path());
    if (store_ == nullptr) GTEST_SKIP() << "redis-server is not installed: run scripts/setup";
  }
  absl::Status Commit(SessionWrite w, bool sync = false) { return store_->Commit({&w, 1}, sync)[0]; }
  TempDir dir_;
  std::unique_ptr<SessionStore> store_;
};

TEST_P(SessionStoreTest, AHeaderIsFoundAsItWasWritten) {
  const std::string header("\0binary\xff", 8);
  ASSERT_OK(Commit(Create("a", 1, header), true));
  const auto found = store_->Find("a");
  ASSERT_OK(found);
  EXPECT_EQ(found->key, (SessionKey{"a", 1}));
  EXPECT_EQ(*found->header, header);
  EXPECT_THAT(store_->Find("b"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("'b'")));
}

TEST_P(SessionStoreTest, ATakenIdIsNotMadeAgain) {
  ASSERT_OK(Commit(Create("a", 1)));
  EXPECT_THAT(Commit(Create("a", 2)), StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("'a'")));
  EXPECT_EQ(store_->Find("a")->key.uid, 1u);
}

TEST_P(SessionStoreTest, AppendsOnlyWhereTheLogEnds) {
  ASSERT_OK(Commit(Create("a", 1)));
  ASSERT_OK(Commit(Append("a", 1, 0, {7, 8})));
  EXPECT_THAT(Commit(Append("a", 1, 0, {9})), StatusIs(absl::StatusCode::kAborted, HasSubstr("position 2")));
  EXPECT_THAT(Commit(Append("a", 1, 3, {9})), StatusIs(absl::StatusCode::kAborted, HasSubstr("expects 3")));
  EXPECT_THAT(Commit(Append("a", 1, 1, {})), StatusIs(absl::StatusCode::kAborted, HasSubstr("")));
  ASSERT_OK(Commit(Append("a", 1, 2, {9})));
  EXPECT_EQ(*store_->LogEnd({"a", 1}, 0), 3);
  EXPECT_THAT(*store_->ReadLog({"a", 1}, 0, 1, 3), ElementsAre(7, 8, 9));
  EXPECT_THAT(*store_->ReadLog({"a", 1}, 0, 2, 2), ElementsAre(8));
}

TEST_P(SessionStoreTest, ARefusedWriteChangesNothingAndOthersOfItsGroupGoOn) {
  ASSERT_OK(Commit(Create("a", 1, "old")));
  SessionWrite bad = Append("a", 1, 5, {1});
  bad.header = "new";
  bad.requests = {{"r", "record"}};
  const std::vector<SessionWrite> group = {bad, Create("b", 2), Append("b", 2, 0, {4, 5}), Append("b", 2, 2, {6})};
  const auto statuses = store_->Commit(group, true);
  ASSERT_EQ(statuses.size(), 4u);
  EXPECT_THAT(statuses[0], StatusIs(absl::StatusCode::kAborted, HasSubstr("'a'")));
  for (int i = 1; i < 4; ++i) EXPECT_OK(statuses[static_cast<size_t>(i)]);
  EXPECT_EQ(*store_->Find("a")->header, "old");
  EXPECT_THAT(store_->GetRequest({"a", 1}, "r"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("")));
  EXPECT_THAT(*store_->ReadLog({"b", 2}, 0, 1, 3), ElementsAre(4, 5, 6));
}

TEST_P(SessionStoreTest, LongAppendsReadBackInAnyRange) {
  ASSERT_OK(Commit(Create("a", 1)));
  const std::vector<int32_t> ids = Iota(20000);
  ASSERT_OK(Commit(Append("a", 1, 0, ids)));
  ASSERT_OK(Commit(Append("a", 1, 20000, {-1})));
  EXPECT_EQ(*store_->LogEnd({"a", 1}, 0), 20001);
  for (const auto& [first, last] : {std::pair{1, 20001}, {4096, 4097}, {4097, 4097}, {8190, 16400}, {20001, 20001}}) {
    const auto read = *store_->ReadLog({"a", 1}, 0, first, last);
    ASSERT_EQ(read.size(), static_cast<size_t>(last - first + 1));
    EXPECT_EQ(read.front(), first == 20001 ? -1 : first - 1);
    EXPECT_EQ(read.back(), last == 20001 ? -1 : last - 1);
  }
  EXPECT_THAT(store_->ReadLog({"a", 1}, 0, 19999, 20002),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("position 20002")));
  EXPECT_THAT(*store_->ReadLog({"a", 1}, 0, 5, 4), IsEmpty());
}

TEST_P(SessionStoreTest, BranchesHaveTheirOwnLogsThatBeginWhereTheirWriterSays) {
  ASSERT_OK(Commit(Create("a", 1)));
  ASSERT_OK(Commit(Append("a", 1, 0, {1, 2, 3})));
  SessionWrite branch = Append("a", 1, 2, {9}, 1);
  EXPECT_THAT(Commit(branch), StatusIs(absl::StatusCode::kAborted, HasSubstr("ends at position 0")));
  branch.log_begin = 2;
  ASSERT_OK(Commit(branch));
  branch.position = 3;
  ASSERT_OK(Commit(branch));
  EXPECT_EQ(*store_->LogEnd({"a", 1}, 0), 3);
  EXPECT_EQ(*store_->LogEnd({"a", 1}, 1), 4);
  EXPECT_EQ(*store_->LogEnd({"a", 1}, 2), 0);
  EXPECT_THAT(*store_->ReadLog({"a", 1}, 1, 3, 4), ElementsAre(9, 9));
  EXPECT_THAT(store_->ReadLog({"a", 1}, 1, 2, 3), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("position 2")));
}

TEST_P(SessionStoreTest, WhoeverHoldsAnOldUidWritesNothing) {
  ASSERT_OK(Commit(Create("a", 1)));
  ASSERT_OK(Commit(Append("a", 1, 0, {1})));
  ASSERT_OK(store_->PutSnapshot({"a", 1}, {0, 1}, "state", {}));
  ASSERT_OK(Commit(Remove("a", 1)));
  ASSERT_OK(Commit(Create("a", 2)));
  EXPECT_THAT(Commit(Append("a", 1, 1, {2})), StatusIs(absl::StatusCode::kNotFound, HasSubstr("")));
  EXPECT_THAT(Commit(Remove("a", 1)), StatusIs(absl::StatusCode::kNotFound, HasSubstr("")));
  EXPECT_THAT(store_->PutSnapshot({"a", 1}, {0, 1}, "state", {}), StatusIs(absl::StatusCode::kNotFound, HasSubstr("")));
  EXPECT_EQ(*store_->LogEnd({"a", 2}, 0), 0);
  EXPECT_THAT(*store_->ListSnapshots({"a", 2}), IsEmpty());
}

TEST_P(SessionStoreTest, RemovalTakesEverythingWithItAndNothingElse) {
  for (const uint64_t uid : {1, 2, 3}) {
    const std::string id(1, static_cast<char>('a' + uid));
    ASSERT_OK(Commit(Create(id, uid)));
    SessionWrite w = Append(id, uid, 0, {1, 2});
    w.requests = {{"r", "record"}};
    ASSERT_OK(Commit(w));
    ASSERT_OK(store_->PutSnapshot({id, uid}, {0, 2}, "state", {}));
  }
  ASSERT_OK(Commit(Remove("c", 2), true));
  EXPECT_THAT(store_->Find("c"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("")));
  EXPECT_EQ(*store_->LogEnd({"c", 2}, 0), 0);
  EXPECT_THAT(store_->GetRequest({"c", 2}, "r"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("")));
  EXPECT_THAT(*store_->ListSnapshots({"c", 2}), IsEmpty());
  for (const SessionKey& key : {SessionKey{"b", 1}, SessionKey{"d", 3}}) {
    EXPECT_EQ(*store_->LogEnd(key, 0), 2);
    EXPECT_EQ(*store_->GetRequest(key, "r"), "record");
    EXPECT_EQ(store_->ListSnapshots(key)->size(), 1u);
  }
}

TEST_P(SessionStoreTest, RemovalCoversEarlierWritesOfItsOwnGroup) {
  ASSERT_OK(Commit(Create("a", 1)));
  SessionWrite w = Append("a", 1, 0, {1, 2});
  w.requests = {{"r", "record"}};
  for (const auto& s : store_->Commit(std::vector<SessionWrite>{w, Remove("a", 1), Create("a", 2)}, true)) EXPECT_OK(s);
  EXPECT_EQ(store_->Find("a")->key.uid, 2u);
  EXPECT_EQ(*store_->LogEnd({"a", 1}, 0), 0);
  EXPECT_THAT(store_->GetRequest({"a", 1}, "r"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("")));
}

TEST_P(SessionStoreTest, ListsInOrderOfIdAndOnePageAfterTheOther) {
  uint64_t uid = 1;
  for (const char* id : {"b", "a", "a-b", "a.b", "ab", "a_b", "0"}) ASSERT_OK(Commit(Create(id, uid++)));
  std::vector<std::string> ids;
  std::string after;
  for (;;) {
    const auto page = *store_->List(after, 2);
    for (const auto& s : page) ids.push_back(s.key.id);
    if (page.size() < 2) break;
    after = ids.back();
  }
  EXPECT_THAT(ids, ElementsAre("0", "a", "a-b", "a.b", "a_b", "ab", "b"));
  EXPECT_EQ(*store_->Count(), 7);
}

TEST_P(SessionStoreTest, ASnapshotDropsThoseItNames) {
  ASSERT_OK(Commit(Create("a", 1)));
  const SessionKey key{"a", 1};
  for (const int64_t position : {100, 300, 200}) {
    ASSERT_OK(store_->PutSnapshot(key, {0, position}, "state " + std::to_string(position), {}));
  }
  const std::string big(3 << 20, 'x');
  const std::vector<SnapshotName> drop = {{0, 100}, {0, 200}, {0, 500}, {1, 300}};
  ASSERT_OK(store_->PutSnapshot(key, {0, 500}, big, drop));
  EXPECT_THAT(*store_->ListSnapshots(key), ElementsAre(SnapshotName{0, 500}, SnapshotName{0, 300}));
  EXPECT_EQ(*store_->GetSnapshot(key, {0, 300}), "state 300");
  EXPECT_THAT(store_->GetSnapshot(key, {0, 200}), StatusIs(absl::StatusCode::kNotFound, HasSubstr("200")));
  EXPECT_EQ(*store_->GetSnapshot(key, {0, 500}), big);
}

StoreReference LogOf(std::string id, uint64_t uid, int64_t branch, int64_t position) {
  return {StoreReference::Kind::kLog, {std::move(id), uid}, branch, position};
}
StoreReference SnapshotOf(std::string id, uint64_t uid, int64_t branch, int64_t position) {
  return {StoreReference::Kind::kSnapshot, {std::move(id), uid}, branch, position};
}

TEST_P(SessionStoreTest, WhatIsReferredToOutlivesItsSession) {
  ASSERT_OK(Commit(Create("parent", 1)));
  ASSERT_OK(Commit(Append("parent", 1, 0, Iota(6000))));
  SessionWrite other_branch = Append("parent", 1, 0, {1}, 3);
  ASSERT_OK(Commit(other_branch));
  for (const int64_t position : {1000, 2000}) ASSERT_OK(store_->PutSnapshot({"parent", 1}, {0, position}, "state", {}));
  for (const uint64_t uid : {2, 3}) {
    SessionWrite fork = Create("child" + std::to_string(uid), uid);
    fork.references = {LogOf("parent", 1, 0, 5000), SnapshotOf("parent", 1, 0, 1000)};
    ASSERT_OK(Commit(fork, true));
  }
  const std::vector<SnapshotName> drop = {{0, 1000}, {0, 2000}};
  ASSERT_OK(store_->PutSnapshot({"parent", 1}, {0, 3000}, "state", drop));
  EXPECT_THAT(*store_->ListSnapshots({"parent", 1}), ElementsAre(SnapshotName{0, 3000}, SnapshotName{0, 1000}));

  ASSERT_OK(Commit(Remove("parent", 1), true));
  EXPECT_THAT(store_->Find("parent"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("")));
  EXPECT_EQ(*store_->ReadLog({"parent", 1}, 0, 1, 5000), Iota(5000));
  EXPECT_EQ(*store_->LogEnd({"parent", 1}, 3), 0) << "nobody reads this branch";
  EXPECT_THAT(*store_->ListSnapshots({"parent", 1}), ElementsAre(SnapshotName{0, 1000}));
  // The name can be taken again meanwhile.
  ASSERT_OK(Commit(Create("parent", 9)));
  ASSERT_OK(Commit(Append("parent", 9, 0, {7})));

  ASSERT_OK(Commit(Remove("child2", 2)));
  EXPECT_EQ(*store_->ReadLog({"parent", 1}, 0, 1, 5000), Iota(5000));
  ASSERT_OK(Commit(Remove("child3", 3)));
  EXPECT_EQ(*store_->LogEnd({"parent", 1}, 0), 0);
  EXPECT_THAT(*store_->ListSnapshots({"parent", 1}), IsEmpty());
  EXPECT_THAT(*store_->ReadLog({"parent", 9}, 0, 1, 1), ElementsAre(7));
}

TEST_P(SessionStoreTest, OfFormerBranchesWhatIsKeptOrReferredToStays) {
  ASSERT_OK(Commit(Create("a", 1)));
  for (const int64_t branch : {0, 1, 2, 3, 4}) ASSERT_OK(Commit(Append("a", 1, 0, Iota(9000), branch)));
  SessionWrite fork = Create("child", 2);
  fork.references = {LogOf("a", 1, 1, 5000)};
  ASSERT_OK(Commit(fork));
  SessionWrite trim;
  trim.key = {"a", 1};
  trim.kept_logs = {.below = 4, .logs = {{0, 4000}, {1, 10}}};
  for (int again = 0; again < 2; ++again) {
    ASSERT_OK(Commit(trim));
    // By whole segments.
    EXPECT_THAT(*store_->LogEnd({"a", 1}, 0), testing::AllOf(testing::Ge(4000), testing::Le(4096)));
    EXPECT_EQ(*store_->ReadLog({"a", 1}, 0, 1, 4000), Iota(4000));
    EXPECT_THAT(*store_->LogEnd({"a", 1}, 1), testing::AllOf(testing::Ge(5000), testing::Le(8192)));
    EXPECT_EQ(*store_->ReadLog({"a", 1}, 1, 1, 5000), Iota(5000));
    EXPECT_EQ(*store_->LogEnd({"a", 1}, 2), 0);
    EXPECT_EQ(*store_->LogEnd({"a", 1}, 3), 0);
    EXPECT_EQ(*store_->ReadLog({"a", 1}, 4, 1, 9000), Iota(9000)) << "the present one";
  }
  // What is gone cannot be referred to, in the same group either.
  SessionWrite late = Create("late", 3);
  late.references = {LogOf("a", 1, 0, 3000)};
  trim.kept_logs = {.below = 4, .logs = {}};
  const std::vector<SessionWrite> group = {trim, late};
  EXPECT_THAT(store_->Commit(group, true)[1], StatusIs(absl::StatusCode::kNotFound, HasSubstr("")));
  EXPECT_EQ(*store_->LogEnd({"a", 1}, 0), 0);
  ASSERT_OK(Commit(Remove("child", 2)));
  ASSERT_OK(Commit(trim));
  EXPECT_EQ(*store_->LogEnd({"a", 1}, 1), 0);
  ASSERT_OK(Commit(Append("a", 1, 9000, {7}, 4)));
}

TEST_P(SessionStoreTest, ReferencesAreReplacedAndMustLeadSomewhere) {
  ASSERT_OK(Commit(Create("a", 1)));
  ASSERT_OK(Commit(Append("a", 1, 0, {1, 2, 3})));
  ASSERT_OK(store_->PutSnapshot({"a", 1}, {0, 2}, "state", {}));
  SessionWrite fork = Create("b", 2);
  for (const StoreReference& bad : {LogOf("a", 1, 0, 4), LogOf("a", 1, 1, 1), LogOf("a", 7, 0, 1),
                                    SnapshotOf("a", 1, 0, 3), SnapshotOf("a", 7, 0, 2)}) {
    fork.references = {LogOf("a", 1, 0, 3), bad};
    EXPECT_THAT(Commit(fork), StatusIs(absl::StatusCode::kNotFound, HasSubstr("'a'")));
    EXPECT_THAT(store_->Find("b"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("")));
  }
  fork.references = {LogOf("a", 1, 0, 3), SnapshotOf("a", 1, 0, 2)};
  ASSERT_OK(Commit(fork));
  ASSERT_OK(Commit(Remove("a", 1)));
  SessionWrite less;
  less.key = {"b", 2};
  less.references = {LogOf("a", 1, 0, 3)};
  ASSERT_OK(Commit(less));
  EXPECT_THAT(*store_->ListSnapshots({"a", 1}), IsEmpty());
  EXPECT_EQ(*store_->LogEnd({"a", 1}, 0), 3);
  less.references = std::vector<StoreReference>();
  ASSERT_OK(Commit(less));
  EXPECT_EQ(*store_->LogEnd({"a", 1}, 0), 0);
}

TEST_P(SessionStoreTest, ForkAndRemovalOfTheParentInOneGroup) {
  ASSERT_OK(Commit(Create("a", 1)));
  SessionWrite fork = Create("b", 2);
  fork.references = {LogOf("a", 1, 0, 2)};
  SessionWrite grandchild = Create("c", 3);
  grandchild.references = {LogOf("a", 1, 0, 1)};
  const std::vector<SessionWrite> group = {Append("a", 1, 0, {1, 2}), fork, Remove("a", 1), grandchild, Remove("b", 2)};
  for (const auto& s : store_->Commit(group, true)) EXPECT_OK(s);
  EXPECT_THAT(*store_->ReadLog({"a", 1}, 0, 1, 1), ElementsAre(1));
  ASSERT_OK(Commit(Remove("c", 3)));
  EXPECT_EQ(*store_->LogEnd({"a", 1}, 0), 0);
}

TEST_P(SessionStoreTest, RequestsAreListedAcrossSessionsAndRemovedOnlyIfUnchanged) {
  for (const uint64_t uid : {1, 2}) {
    SessionWrite w = Create(std::string(1, static_cast<char>('a' + uid)), uid);
    w.requests = {{"r1", "1"}, {"r2", "2"}, {"r3", "3"}};
    ASSERT_OK(Commit(w));
  }
  std::string cursor;
  std::vector<StoredRequest> all;
  do {
    auto page = *store_->ListRequests(&cursor, 4);
    for (auto& r : page) all.push_back(std::move(r));
  } while (!cursor.empty());
  ASSERT_EQ(all.size(), 6u);
  EXPECT_EQ(all[4].request_id, "r2");
  EXPECT_EQ(*all[4].record, "2");
  SessionWrite change;
  change.key = {"b", 1};
  change.requests = {{"r1", "changed"}};
  ASSERT_OK(Commit(change));
  ASSERT_OK(store_->RemoveRequests(std::span(all).first(2)));
  EXPECT_EQ(*store_->GetRequest({"b", 1}, "r1"), "changed");
  EXPECT_THAT(store_->GetRequest({"b", 1}, "r2"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("r2")));
}

TEST_P(SessionStoreTest, ARemovalIsRememberedByTheIdOfTheSessionThatIsGone) {
  ASSERT_OK(Commit(Create("a", 1)));
  EXPECT_THAT(store_->GetRemoval("a", "r"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("'a'")));
  SessionWrite remove = Remove("a", 1);
  remove.removal = SessionWrite::Removal{"r", "gone", absl::Hours(1)};
  ASSERT_OK(Commit(remove, true));
  EXPECT_THAT(store_->Find("a"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("'a'")));
  EXPECT_EQ(store_->GetRemoval("a", "r").value_or(""), "gone");
  EXPECT_THAT(store_->GetRemoval("a", "other"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("other")));
  EXPECT_THAT(store_->GetRemoval("b", "r"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("'b'")));
  ASSERT_OK(Commit(Create("a", 2)));
  EXPECT_EQ(store_->GetRemoval("a", "r").value_or(""), "gone");
}

TEST_P(SessionStoreTest, OfManyWritersAtOnePositionOneWins) {
  ASSERT_OK(Commit(Create("a", 1)));
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> won{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] { won += Commit(Append("a", 1, round, {i}), true).ok(); });
    }
    for (auto& t : threads) t.join();
    EXPECT_EQ(won, 1);
  }
  EXPECT_EQ(*store_->LogEnd({"a", 1}, 0), 20);
}

INSTANTIATE_TEST_SUITE_P(AllStores, SessionStoreTest,
                         testing::Values(StoreFactory{"Memory", &MakeMemory}, StoreFactory{"RocksDb", &MakeRocksDb},
                                         StoreFactory{"Redis", &MakeRedis}),
                         [](const auto& p) { return p.param.name; });

}  // namespace
}  // namespace smt
