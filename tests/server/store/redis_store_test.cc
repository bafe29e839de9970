// What a store in a Redis meets that others do not: connections that break, a Redis that is away, empty, another one,
// short of memory or not fit to hold sessions; and what servers leave half done.
#include "server/store/redis_store.h"

#include <gmock/gmock.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <thread>

#include "server/base/status_details.h"
#include "server/store/record_format.h"
#include "server/store/redis_keys.h"
#include "tests/server/store/redis_testing.h"
#include "tests/server/store/status_testing.h"

namespace smt {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using store_internal::RedisKeys;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Kind = SessionWrite::Kind;
using Settings = std::vector<std::string>;

const Settings kDurable = {"--appendonly", "yes", "--appendfsync", "always"};

SessionWrite Create(const std::string& id, uint64_t uid, std::vector<int32_t> ids = {}) {
  SessionWrite w;
  w.kind = Kind::kCreate;
  w.key = {id, uid};
  w.header = "header of " + id;
  w.position = 0;
  w.ids = std::move(ids);
  w.requests = {{"r", "record"}};
  return w;
}
SessionWrite Append(const std::string& id, uint64_t uid, int64_t position, std::vector<int32_t> ids) {
  SessionWrite w;
  w.key = {id, uid};
  w.position = position;
  w.ids = std::move(ids);
  return w;
}
SessionWrite Header(const std::string& id, uint64_t uid, std::string header) {
  SessionWrite w;
  w.key = {id, uid};
  w.header = std::move(header);
  return w;
}
SessionWrite Remove(const std::string& id, uint64_t uid) {
  SessionWrite w;
  w.kind = Kind::kRemove;
  w.key = {id, uid};
  return w;
}
StoreReference Log(const std::string& id, uint64_t uid, int64_t position, int64_t branch = 0) {
  return {StoreReference::Kind::kLog, {id, uid}, branch, position};
}
StoreReference Snapshot(const std::string& id, uint64_t uid, int64_t position) {
  return {StoreReference::Kind::kSnapshot, {id, uid}, 0, position};
}
absl::Status Commit(SessionStore& store, SessionWrite w, bool sync = true) { return store.Commit({&w, 1}, sync)[0]; }

MATCHER(IsReplaced, "is UNAVAILABLE because the store is another one") {
  *result_listener << StatusOf(arg).ToString();
  return absl::IsUnavailable(StatusOf(arg)) && GetDetails(StatusOf(arg)).reason == kStoreReplaced;
}

class RedisStoreTest : public testing::Test {
 protected:
  void SetUp() override { SMT_SKIP_WITHOUT_REDIS(); }
  void Serve(Settings settings = {}) { server_ = RedisServer::Start(std::move(settings)); }
  std::unique_ptr<RedisStore> Open() { return Open(server_->Options()); }
  static std::unique_ptr<RedisStore> Open(const RedisStoreOptions& options) {
    auto store = OpenRedisStore(options);
    EXPECT_OK(store);
    return store.ok() ? *std::move(store) : nullptr;
  }
  std::unique_ptr<RedisServer> server_;
  const RedisKeys keys_{"smt:"};
};

TEST_F(RedisStoreTest, EverythingIsThereAfterOpeningAgainAndForOthers) {
  Serve();
  auto other = Open();
  {
    auto store = Open();
    ASSERT_OK(Commit(*store, Create("a", 1, {5, 6})));
    ASSERT_OK(store->PutSnapshot({"a", 1}, {0, 2}, "state", {}));
  }
  auto again = Open();
  for (SessionStore* store : {static_cast<SessionStore*>(again.get()), static_cast<SessionStore*>(other.get())}) {
    EXPECT_EQ(*store->Find("a")->header, "header of a");
    EXPECT_THAT(*store->ReadLog({"a", 1}, 0, 1, 2), ElementsAre(5, 6));
    EXPECT_EQ(*store->GetRequest({"a", 1}, "r"), "record");
    EXPECT_EQ(*store->GetSnapshot({"a", 1}, {0, 2}), "state");
    EXPECT_EQ(store->List("", 10)->size(), 1u);
  }
}

TEST_F(RedisStoreTest, KeysOfASessionShareAHashTagAndPrefixesKeepStoresApart) {
  Serve();
  auto options = server_->Options();
  auto store = Open(options);
  options.prefix = "other:";
  auto other = Open(options);
  ASSERT_OK(Commit(*store, Create("a", 0x1f, {5, 6})));
  ASSERT_OK(store->PutSnapshot({"a", 0x1f}, {0, 2}, "state", {}));
  EXPECT_THAT(other->Find("a"), StatusIs(StatusCode::kNotFound, HasSubstr("'a'")));
  EXPECT_THAT(server_->Keys("smt:{*"),
              ElementsAre("smt:{000000000000001f}:S", "smt:{000000000000001f}:e", "smt:{000000000000001f}:h:a",
                          "smt:{000000000000001f}:i:0", "smt:{000000000000001f}:l:0:0", "smt:{000000000000001f}:m",
                          "smt:{000000000000001f}:q", "smt:{000000000000001f}:s:0:2"));
}

TEST_F(RedisStoreTest, ARemovedSessionLeavesOnlyAMarkThatExpires) {
  Serve();
  {
    auto store = Open();
    ASSERT_OK(Commit(*store, Create("a", 1, {5, 6})));
    ASSERT_OK(store->PutSnapshot({"a", 1}, {0, 2}, "state", {}));
    ASSERT_OK(Commit(*store, Remove("a", 1)));
    EXPECT_EQ(*store->Count(), 0);
  }
  EXPECT_THAT(server_->Keys(), ElementsAre("smt:format", keys_.Meta(1)));
  EXPECT_GT(server_->Do({"TTL", keys_.Meta(1)}).number, 0);
}

TEST_F(RedisStoreTest, DamageIsToldWithTheSessionsNameAndOthersGoOn) {
  Serve();
  auto store = Open();
  ASSERT_OK(Commit(*store, Create("b", 99, {7})));
  const auto damaged = StatusIs(StatusCode::kDataLoss, HasSubstr("session 'a'"));
  uint64_t uid = 0;
  for (const char* at : {"0", "5", "9", "17", "24"}) {
    for (const std::string what : {"header", "log", "snapshot", "name", "request"}) {
      const SessionKey key{"a", ++uid};
      ASSERT_OK(Commit(*store, Create("a", uid, {5, 6})));
      ASSERT_OK(store->PutSnapshot(key, {0, 2}, "state", {}));
      if (what == "request") {
        std::string record = server_->Do({"HGET", keys_.Requests(uid), "r"}).text;
        record[static_cast<size_t>(std::atoi(at))] ^= 0x10;
        server_->Do({"HSET", keys_.Requests(uid), "r", record});
        EXPECT_THAT(store->GetRequest(key, "r"), damaged);
      } else {
        const std::string redis_key = what == "header"     ? keys_.Header(key)
                                      : what == "log"      ? keys_.Segment(uid, 0, 0)
                                      : what == "snapshot" ? keys_.Snapshot(uid, {0, 2})
                                                           : keys_.Name("a");
        const std::string byte = server_->Do({"GETRANGE", redis_key, at, at}).text;
        server_->Do({"SETRANGE", redis_key, at, std::string(1, static_cast<char>(byte[0] ^ 0x10))});
      }
      if (what == "header" || what == "name") {
        EXPECT_THAT(store->Find("a")->header, damaged) << what << at;
        EXPECT_THAT(store->List("", 1)->at(0).header, damaged) << what << at;
      }
      if (what == "log") {
        EXPECT_THAT(store->ReadLog(key, 0, 1, 2), damaged);
        EXPECT_THAT(store->LogEnd(key, 0), damaged);
      }
      if (what == "snapshot") {
        EXPECT_THAT(store->GetSnapshot(key, {0, 2}), damaged);
      }
      EXPECT_EQ(*store->Find("b")->header, "header of b");
      EXPECT_EQ(store->Find("a")->key, key);
      ASSERT_OK(Commit(*store, Remove("a", uid)));
      ASSERT_OK(Commit(*store, Header("b", 99, "header of b")));
      EXPECT_THAT(store->Find("a"), StatusIs(StatusCode::kNotFound, HasSubstr("'a'"))) << what;
    }
  }
}

TEST_F(RedisStoreTest, AKilledRedisIsUnavailableAndKeepsWhatWasSyncedWhenItIsBack) {
  Serve(kDurable);
  auto store = Open();
  EXPECT_TRUE(store->durable_sync());
  ASSERT_OK(Commit(*store, Create("a", 1, {5, 6})));
  server_->Kill();
  EXPECT_THAT(Commit(*store, Append("a", 1, 2, {7})), StatusIs(StatusCode::kUnavailable, HasSubstr("not reached")));
  EXPECT_THAT(store->Find("a"), StatusIs(StatusCode::kUnavailable, HasSubstr("redis.sock")));
  EXPECT_FALSE(store->Health().ok());
  server_->Restart();
  EXPECT_OK(store->Health());
  ASSERT_OK(Commit(*store, Append("a", 1, 2, {7})));
  EXPECT_THAT(*store->ReadLog({"a", 1}, 0, 1, 3), ElementsAre(5, 6, 7));
}

TEST_F(RedisStoreTest, ARedisThatComesBackEmptyIsAnotherStore) {
  Serve();
  auto store = Open();
  ASSERT_OK(Commit(*store, Create("a", 1, {5, 6})));
  server_->Kill();
  server_->Restart();
  EXPECT_THAT(Commit(*store, Append("a", 1, 2, {7})), IsReplaced());
  EXPECT_THAT(Commit(*store, Create("b", 2)), IsReplaced());
  EXPECT_THAT(store->PutSnapshot({"a", 1}, {0, 2}, "state", {}), IsReplaced());
  EXPECT_THAT(store->Find("a"), IsReplaced());
  EXPECT_THAT(store->Health(), IsReplaced());
  EXPECT_THAT(server_->Keys(), IsEmpty());
  ASSERT_OK(store->AdoptReplacedStore());
  EXPECT_THAT(store->Find("a"), StatusIs(StatusCode::kNotFound, HasSubstr("'a'")));
  ASSERT_OK(Commit(*store, Create("b", 2)));
  EXPECT_OK(store->Health());
}

TEST_F(RedisStoreTest, AnEmptiedRedisIsNoticedOnTheOpenConnection) {
  Serve();
  auto store = Open();
  ASSERT_OK(Commit(*store, Create("a", 1, {5, 6})));
  server_->Do({"FLUSHALL"});
  EXPECT_THAT(Commit(*store, Create("b", 2)), IsReplaced());
  EXPECT_THAT(store->Find("b"), IsReplaced());
  EXPECT_TRUE(server_->Keys("smt:name:*").empty());
}

TEST_F(RedisStoreTest, ARedisThatLostAcknowledgedWritesIsAnotherStoreForAll) {
  Serve(kDurable);
  auto loser = Open(), other = Open();
  ASSERT_OK(Commit(*loser, Create("a", 1, {5, 6})));
  ASSERT_OK(Commit(*other, Create("b", 2)));
  const std::string copy = server_->dir() + "/copy";
  fs::copy(server_->dir() + "/appendonlydir", copy, fs::copy_options::recursive);
  ASSERT_OK(Commit(*loser, Append("a", 1, 2, {7})));
  server_->Kill();
  fs::remove_all(server_->dir() + "/appendonlydir");
  fs::rename(copy, server_->dir() + "/appendonlydir");
  server_->Restart();
  EXPECT_OK(other->Health());  // it lost nothing
  EXPECT_THAT(Commit(*loser, Append("a", 1, 3, {8})), IsReplaced());
  EXPECT_THAT(Commit(*other, Header("b", 2, "new")), IsReplaced());
  ASSERT_OK(loser->AdoptReplacedStore());
  EXPECT_EQ(*loser->LogEnd({"a", 1}, 0), 2);
  ASSERT_OK(Commit(*loser, Append("a", 1, 2, {9})));
}

TEST_F(RedisStoreTest, ACommandWithoutAnAnswerIsAppliedOnceAndItsOutcomeTold) {
  Serve();
  auto options = server_->Options();
  options.command_timeout = absl::Milliseconds(100);
  options.connect_timeout = absl::Milliseconds(100);
  auto store = Open(options);
  ASSERT_OK(Commit(*store, Create("a", 1)));
  for (int32_t round = 0; round < 3; ++round) {
    std::thread sleep([&] { server_->Do({"DEBUG", "SLEEP", "0.4"}); });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    // Both get no answer at first: what is in the old connection's buffers is carried out later, before or after.
    EXPECT_OK(Commit(*store, Append("a", 1, 2 * round, {round, -round})));
    EXPECT_THAT(Commit(*store, Append("a", 1, 2 * round, {9})), StatusIs(StatusCode::kAborted, HasSubstr("'a'")));
    sleep.join();
    EXPECT_EQ(*store->LogEnd({"a", 1}, 0), 2 * round + 2);
  }
  EXPECT_THAT(*store->ReadLog({"a", 1}, 0, 1, 6), ElementsAre(0, 0, 1, -1, 2, -2));
}

TEST_F(RedisStoreTest, CreationsAndRemovalsSurviveLostAnswersToo) {
  Serve();
  auto options = server_->Options();
  options.command_timeout = absl::Milliseconds(100);
  options.connect_timeout = absl::Milliseconds(100);
  auto store = Open(options);
  std::atomic<bool> stop{false};
  std::thread breaker([&] {
    while (!stop) {
      server_->Do({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"});
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  // It may not even get a connection. Then nothing was written, and it can be tried again.
  const auto commit = [&](const SessionWrite& w) {
    for (;;) {
      const absl::Status status = Commit(*store, w);
      if (!absl::IsUnavailable(status)) return status;
      EXPECT_THAT(status, StatusIs(StatusCode::kUnavailable, testing::Not(HasSubstr("may or may not"))));
    }
  };
  for (uint64_t i = 1; i <= 60; ++i) {
    const std::string id = "s" + std::to_string(i % 7);
    EXPECT_OK(commit(Create(id, i, {1, 2})));
    EXPECT_OK(commit(Append(id, i, 2, {3})));
    EXPECT_OK(commit(Remove(id, i)));
  }
  stop = true;
  breaker.join();
  EXPECT_THAT(*store->List("", 10), IsEmpty());
  EXPECT_EQ(*store->Count(), 0);
  EXPECT_THAT(server_->Keys("smt:name:*"), IsEmpty());
}

TEST_F(RedisStoreTest, AnOutcomeThatStaysOpenIsSaidToBe) {
  Serve();
  auto options = server_->Options();
  options.command_timeout = options.connect_timeout = absl::Milliseconds(50);
  options.recover_timeout = absl::Milliseconds(100);
  auto store = Open(options);
  ASSERT_OK(Commit(*store, Create("a", 1)));
  std::thread sleep([&] { server_->Do({"DEBUG", "SLEEP", "0.5"}); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_THAT(Commit(*store, Append("a", 1, 0, {7})), StatusIs(StatusCode::kUnavailable, HasSubstr("may or may not")));
  sleep.join();
  EXPECT_OK(store->Health());
}

TEST_F(RedisStoreTest, AReplicaIsRefusedAndWritesToOneAreUnavailableUntilItIsMaster) {
  Serve();
  auto store = Open();
  ASSERT_OK(Commit(*store, Create("a", 1)));
  server_->Do({"REPLICAOF", "127.0.0.1", "1"});
  EXPECT_THAT(Commit(*store, Append("a", 1, 0, {7})), StatusIs(StatusCode::kUnavailable, HasSubstr("replica")));
  EXPECT_THAT(store->Find("a"), StatusIs(StatusCode::kUnavailable, HasSubstr("replica of 127.0.0.1:1")));
  EXPECT_THAT(OpenRedisStore(server_->Options()),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("replica of 127.0.0.1:1")));
  server_->Do({"REPLICAOF", "NO", "ONE"});
  EXPECT_OK(Commit(*store, Append("a", 1, 0, {7})));
}

TEST_F(RedisStoreTest, SyncIsDurableOnlyWhereEveryAnswerWaitsForTheDisk) {
  struct Case {
    Settings settings;
    bool waits;  // where there is WAITAOF: Redis 7.2
  };
  for (const Case& c :
       {Case{{}, false}, Case{{"--appendonly", "yes", "--appendfsync", "everysec"}, true},
        Case{{"--appendonly", "yes", "--appendfsync", "no"}, false},
        Case{{"--appendonly", "yes", "--appendfsync", "always", "--no-appendfsync-on-rewrite", "yes"}, true}}) {
    Serve(c.settings);
    auto store = Open();
    const bool waits = c.waits && !server_->Do({"COMMAND", "INFO", "WAITAOF"}).elements.at(0).is_nil();
    EXPECT_EQ(store->durable_sync(), waits) << store->Description();
    EXPECT_OK(Commit(*store, Create("a", 1), true));
    EXPECT_OK(Commit(*store, Append("a", 1, 0, {7}), false));
    const std::string calls = server_->Do({"INFO", "commandstats"}).text;
    EXPECT_EQ(calls.find("cmdstat_waitaof:calls=1,") != std::string::npos, waits) << store->Description();
  }
  Serve(kDurable);
  EXPECT_TRUE(Open()->durable_sync());
}

TEST_F(RedisStoreTest, ARedisThatEvictsIsRefused) {
  Serve({"--maxmemory-policy", "allkeys-lru"});
  EXPECT_THAT(OpenRedisStore(server_->Options()),
              StatusIs(StatusCode::kFailedPrecondition, AllOf(HasSubstr("allkeys-lru"), HasSubstr("noeviction"))));
}

TEST_F(RedisStoreTest, ARedisThatBeginsToEvictIsWrittenToNoMore) {
  Serve(kDurable);
  auto store = Open();
  const auto wait_until = [&](auto holds) {
    for (int i = 0; i < 1000 && !holds(store->Health()); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
  };
  ASSERT_OK(Commit(*store, Create("a", 1)));
  server_->Do({"CONFIG", "SET", "maxmemory-policy", "allkeys-lru"});
  wait_until([](const absl::Status& health) { return !health.ok(); });
  const auto evicts = StatusIs(StatusCode::kUnavailable, AllOf(HasSubstr("allkeys-lru"), HasSubstr("noeviction")));
  EXPECT_THAT(store->Health(), evicts);
  EXPECT_THAT(Commit(*store, Append("a", 1, 0, {7})), evicts);
  server_->Do({"CONFIG", "SET", "maxmemory-policy", "noeviction"});
  wait_until([](const absl::Status& health) { return health.ok(); });
  EXPECT_OK(Commit(*store, Append("a", 1, 0, {7})));

  EXPECT_TRUE(store->durable_sync());
  server_->Do({"CONFIG", "SET", "appendfsync", "everysec", "no-appendfsync-on-rewrite", "yes"});
  const bool waits = !server_->Do({"COMMAND", "INFO", "WAITAOF"}).elements.at(0).is_nil();
  wait_until([&](const absl::Status&) { return store->Description().find("everysec") != std::string::npos; });
  EXPECT_EQ(store->durable_sync(), waits) << store->Description();
}

TEST_F(RedisStoreTest, WithoutMemoryNothingIsWrittenAndRemovalStillWorks) {
  Serve();
  auto store = Open();
  ASSERT_OK(Commit(*store, Create("a", 1, {5, 6})));
  ASSERT_OK(Commit(*store, Create("b", 2)));
  server_->Do({"CONFIG", "SET", "maxmemory", "1"});
  const auto full = StatusIs(StatusCode::kResourceExhausted, HasSubstr("memory"));
  EXPECT_THAT(Commit(*store, Append("a", 1, 2, {7})), full);
  EXPECT_THAT(Commit(*store, Header("a", 1, "new")), full);
  EXPECT_THAT(Commit(*store, Create("c", 3)), full);
  EXPECT_THAT(store->PutSnapshot({"a", 1}, {0, 2}, "state", {}), full);
  EXPECT_EQ(*store->Find("a")->header, "header of a");
  EXPECT_EQ(store->FreeBytes(), 0);
  EXPECT_OK(Commit(*store, Remove("b", 2)));
  server_->Do({"CONFIG", "SET", "maxmemory", "0"});
  EXPECT_EQ(store->FreeBytes(), -1);
  EXPECT_OK(Commit(*store, Append("a", 1, 2, {7})));
  EXPECT_OK(Commit(*store, Create("c", 3)));
  EXPECT_EQ(*store->Count(), 2);
}

TEST_F(RedisStoreTest, ForgottenScriptsAreLoadedAgain) {
  Serve();
  auto store = Open();
  ASSERT_OK(Commit(*store, Create("a", 1)));
  server_->Do({"SCRIPT", "FLUSH"});
  EXPECT_OK(Commit(*store, Append("a", 1, 0, {7})));
  EXPECT_EQ(*store->LogEnd({"a", 1}, 0), 1);
}

TEST_F(RedisStoreTest, APasswordIsReadFromItsFileAtEachConnection) {
  Serve();
  server_->Do({"CONFIG", "SET", "requirepass", "first"});
  auto options = server_->Options();
  EXPECT_THAT(OpenRedisStore(options), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("NOAUTH")));
  options.password_file = server_->dir() + "/password";
  EXPECT_THAT(OpenRedisStore(options), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("/password")));
  std::ofstream(options.password_file) << "wrong\n";
  EXPECT_THAT(OpenRedisStore(options), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("WRONGPASS")));
  std::ofstream(options.password_file) << "first\n";
  auto store = Open(options);
  ASSERT_OK(Commit(*store, Create("a", 1)));
}

TEST_F(RedisStoreTest, ARedisThatIsDownAtTheStartIsAnErrorOrWaitedFor) {
  Serve();
  auto options = server_->Options();
  server_->Kill();
  EXPECT_THAT(OpenRedisStore(options), StatusIs(StatusCode::kUnavailable, HasSubstr("is not reached")));
  options.wait_at_start = absl::Seconds(30);
  absl::StatusOr<std::unique_ptr<RedisStore>> store = absl::UnknownError("");
  std::thread open([&] { store = OpenRedisStore(options); });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  server_->Restart();
  open.join();
  EXPECT_OK(store);
}

TEST_F(RedisStoreTest, AStoreOfANewerFormatOrWithoutItsFormatIsRefused) {
  Serve();
  {
    auto store = Open();
    ASSERT_OK(Commit(*store, Create("a", 1)));
  }
  server_->Do({"SET", "smt:format", "smt-session-store 2 something"});
  EXPECT_THAT(OpenRedisStore(server_->Options()), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("version 2")));
  for (const char* text : {"", "else", "smt-session-store", "smt-session-store x y", "smt-session-store 1 short"}) {
    server_->Do({"SET", "smt:format", text});
    EXPECT_THAT(OpenRedisStore(server_->Options()), StatusIs(StatusCode::kDataLoss, HasSubstr("smt:format"))) << text;
  }
  server_->Do({"DEL", "smt:format"});
  EXPECT_THAT(OpenRedisStore(server_->Options()), StatusIs(StatusCode::kDataLoss, HasSubstr("holds sessions")));
}

TEST_F(RedisStoreTest, ManyShortAppendsTakeFewKeysAndReadBackInAnyRange) {
  Serve();
  auto store = Open();
  ASSERT_OK(Commit(*store, Create("a", 1)));
  constexpr int32_t kIds = 6000;
  for (int32_t i = 0; i < kIds; ++i) ASSERT_OK(Commit(*store, Append("a", 1, i, {i}), false));
  EXPECT_LT(server_->Keys(keys_.Of(1, "l:*")).size(), 70u);
  EXPECT_EQ(*store->LogEnd({"a", 1}, 0), kIds);
  for (const auto& [first, last] : {std::pair{1, kIds}, {64, 65}, {4090, 4100}, {5999, 6000}, {1, 1}}) {
    std::vector<int32_t> expected(static_cast<size_t>(last - first + 1));
    std::iota(expected.begin(), expected.end(), first - 1);
    EXPECT_EQ(*store->ReadLog({"a", 1}, 0, first, last), expected);
  }
  EXPECT_THAT(store->ReadLog({"a", 1}, 0, 1, kIds + 1), StatusIs(StatusCode::kDataLoss, HasSubstr("position 6001")));
  server_->Do({"DEL", keys_.Segment(1, 0, 0)});
  EXPECT_THAT(store->ReadLog({"a", 1}, 0, 1, 2), StatusIs(StatusCode::kDataLoss, HasSubstr("session 'a'")));
}

TEST_F(RedisStoreTest, LongSegmentsAreLeftAsTheyAre) {
  Serve();
  auto store = Open();
  ASSERT_OK(Commit(*store, Create("a", 1)));
  constexpr int32_t kLong = 4096 * 70;
  ASSERT_OK(Commit(*store, Append("a", 1, 0, std::vector<int32_t>(kLong, 7))));
  EXPECT_EQ(server_->Do({"HGET", keys_.Ends(1), "t0"}).text, "0");
  for (int32_t i = 0; i < 64; ++i) ASSERT_OK(Commit(*store, Append("a", 1, kLong + i, {i}), false));
  EXPECT_EQ(server_->Keys(keys_.Of(1, "l:*")).size(), 71u);
  EXPECT_EQ(server_->Do({"STRLEN", keys_.Segment(1, 0, kLong)}).number, 24 + 64 * 4);
  // A short one after a long one has none to join with: it is not tried at each append.
  ASSERT_OK(Commit(*store, Append("a", 1, kLong + 64, std::vector<int32_t>(4096, 8))));
  server_->Do({"HSET", keys_.Ends(1), "t0", "63"});
  ASSERT_OK(Commit(*store, Append("a", 1, kLong + 64 + 4096, {1})));
  EXPECT_EQ(server_->Do({"HGET", keys_.Ends(1), "t0"}).text, "0");
  EXPECT_EQ(store->ReadLog({"a", 1}, 0, 1, kLong + 64 + 4097)->size(), static_cast<size_t>(kLong + 64 + 4097));
}

TEST_F(RedisStoreTest, OfTwoServersThatMakeTheSameIdOneDoes) {
  Serve();
  auto one = Open(), two = Open();
  for (uint64_t i = 0; i < 50; ++i) {
    const std::string id = "s" + std::to_string(i);
    absl::Status first, second;
    std::thread racer([&] { first = Commit(*one, Create(id, 2 * i + 1, {1})); });
    second = Commit(*two, Create(id, 2 * i + 2, {1, 2}));
    racer.join();
    EXPECT_NE(first.ok(), second.ok());
    EXPECT_THAT(first.ok() ? second : first, StatusIs(StatusCode::kAlreadyExists, HasSubstr(id)));
    const uint64_t uid = first.ok() ? 2 * i + 1 : 2 * i + 2, gone = first.ok() ? 2 * i + 2 : 2 * i + 1;
    EXPECT_EQ(one->Find(id)->key.uid, uid);
    EXPECT_EQ(*two->LogEnd({id, uid}, 0), first.ok() ? 1 : 2);
    EXPECT_EQ(*two->LogEnd({id, gone}, 0), 0);
  }
  EXPECT_EQ(one->List("", 100)->size(), 50u);
}

TEST_F(RedisStoreTest, AForkKeepsWhatItReadsOfItsParentAndNothingElse) {
  Serve();
  auto store = Open();
  SessionWrite parent = Create("parent", 1, {1, 2, 3});
  ASSERT_OK(Commit(*store, parent));
  SessionWrite branch = Append("parent", 1, 2, {9});
  branch.branch = 1;
  branch.log_begin = 2;
  ASSERT_OK(Commit(*store, branch));
  for (const int64_t position : {1, 2, 3}) ASSERT_OK(store->PutSnapshot({"parent", 1}, {0, position}, "state", {}));

  SessionWrite child = Create("child", 2);
  child.ids = {7};
  child.position = 3;
  child.log_begin = 3;
  child.references = {Log("parent", 1, 3), Snapshot("parent", 1, 2)};
  ASSERT_OK(Commit(*store, child));
  // Dropped by its session, kept for the other.
  ASSERT_OK(store->PutSnapshot({"parent", 1}, {0, 4}, "state", std::vector<SnapshotName>{{0, 1}, {0, 2}}));
  EXPECT_THAT(store->GetSnapshot({"parent", 1}, {0, 1}), StatusIs(StatusCode::kNotFound, HasSubstr("parent")));
  EXPECT_EQ(*store->GetSnapshot({"parent", 1}, {0, 2}), "state");

  ASSERT_OK(Commit(*store, Remove("parent", 1)));
  EXPECT_THAT(store->Find("parent"), StatusIs(StatusCode::kNotFound, HasSubstr("parent")));
  EXPECT_THAT(*store->ReadLog({"parent", 1}, 0, 1, 3), ElementsAre(1, 2, 3));
  EXPECT_EQ(*store->LogEnd({"parent", 1}, 1), 0);
  EXPECT_THAT(*store->ListSnapshots({"parent", 1}), ElementsAre(SnapshotName{0, 2}));
  EXPECT_THAT(*store->ReadLog({"child", 2}, 0, 4, 4), ElementsAre(7));
  // The id is free, and what is made under it has nothing to do with what is kept.
  ASSERT_OK(Commit(*store, Create("parent", 3)));
  EXPECT_EQ(*store->LogEnd({"parent", 3}, 0), 0);

  SessionWrite less = Header("child", 2, "less");
  less.references = {Log("parent", 1, 3)};
  ASSERT_OK(Commit(*store, less));
  EXPECT_THAT(*store->ListSnapshots({"parent", 1}), IsEmpty());
  EXPECT_THAT(*store->ReadLog({"parent", 1}, 0, 1, 3), ElementsAre(1, 2, 3));
  ASSERT_OK(Commit(*store, Remove("child", 2)));
  EXPECT_EQ(*store->LogEnd({"parent", 1}, 0), 0);
  for (const uint64_t uid : {1, 2}) EXPECT_THAT(server_->Keys(keys_.Of(uid, "*")), ElementsAre(keys_.Meta(uid)));
}

TEST_F(RedisStoreTest, AReferenceToWhatIsNotThereIsNamedAndNothingIsKept) {
  Serve();
  auto store = Open();
  ASSERT_OK(Commit(*store, Create("parent", 1, {1, 2, 3})));
  for (const auto& [reference, text] : {std::pair{Log("parent", 1, 4), "position 4"},
                                        {Log("parent", 1, 1, 5), "branch 5"},
                                        {Snapshot("parent", 1, 2), "snapshot at position 2"},
                                        {Log("nobody", 9, 1), "nobody"}}) {
    SessionWrite child = Create("child", 2);
    child.references = {Log("parent", 1, 3), reference};
    EXPECT_THAT(Commit(*store, child), StatusIs(StatusCode::kNotFound, HasSubstr(text)));
    EXPECT_THAT(store->Find("child"), StatusIs(StatusCode::kNotFound, HasSubstr("child")));
  }
  EXPECT_THAT(server_->Keys(keys_.Referrers(1)), IsEmpty());
  EXPECT_THAT(server_->Keys(keys_.References(2)), IsEmpty());
  ASSERT_OK(Commit(*store, Remove("parent", 1)));
  EXPECT_EQ(*store->LogEnd({"parent", 1}, 0), 0);
  // Refused for another reason: the same.
  ASSERT_OK(Commit(*store, Create("parent", 3, {1, 2, 3})));
  SessionWrite child = Create("parent", 4);
  child.references = {Log("parent", 3, 3)};
  EXPECT_THAT(Commit(*store, child), StatusIs(StatusCode::kAlreadyExists, HasSubstr("parent")));
  EXPECT_THAT(server_->Keys(keys_.Referrers(3)), IsEmpty());
}

class RedisSweepTest : public RedisStoreTest {
 protected:
  void SetUp() override {
    RedisStoreTest::SetUp();
    if (IsSkipped()) return;
    Serve();
    auto options = server_->Options();
    options.sweep_grace = absl::ZeroDuration();
    store_ = Open(options);
  }
  void MarkPending(const SessionKey& key) { server_->Do({"ZADD", keys_.Pending(), "1", RedisKeys::Member(key)}); }
  void SweepTwice() {
    ASSERT_OK(store_->Sweep());
    ASSERT_OK(store_->Sweep());
    EXPECT_THAT(server_->Keys(keys_.Pending()), IsEmpty());
  }
  std::unique_ptr<RedisStore> store_;
};

TEST_F(RedisSweepTest, ACreationThatWasCutShortLeavesNothing) {
  ASSERT_OK(Commit(*store_, Create("parent", 1, {1, 2, 3})));
  SessionWrite child = Create("child", 2, {5});
  child.references = {Log("parent", 1, 3)};
  ASSERT_OK(Commit(*store_, child));
  // As if the server had died before it claimed the id.
  server_->Do({"DEL", keys_.Name("child")});
  MarkPending({"child", 2});
  EXPECT_EQ(store_->List("", 10)->size(), 1u);
  ASSERT_OK(store_->Sweep());
  EXPECT_EQ(*store_->LogEnd({"child", 2}, 0), 1);  // only noticed: it may be under way
  SweepTwice();
  EXPECT_EQ(*store_->LogEnd({"child", 2}, 0), 0);
  EXPECT_THAT(server_->Keys(keys_.Referrers(1)), IsEmpty());
  EXPECT_EQ(*store_->Count(), 1);
  EXPECT_EQ(*store_->LogEnd({"parent", 1}, 0), 3);
}

TEST_F(RedisSweepTest, ARemovalThatWasCutShortIsFinished) {
  const std::string name = "smt:name:a";
  ASSERT_OK(Commit(*store_, Create("a", 1, {1, 2, 3})));
  const std::string record = server_->Do({"GET", name}).text;
  ASSERT_OK(Commit(*store_, Remove("a", 1)));
  ASSERT_OK(Commit(*store_, Create("other", 9)));  // takes along what was put off
  server_->Do({"SET", name, record});
  server_->Do({"ZADD", keys_.IndexOf("a"), "0", RedisKeys::Member({"a", 1})});
  MarkPending({"a", 1});
  EXPECT_THAT(store_->Find("a"), StatusIs(StatusCode::kNotFound, HasSubstr("'a'")));
  EXPECT_EQ(store_->List("", 10)->size(), 1u);
  SweepTwice();
  EXPECT_THAT(server_->Keys(name), IsEmpty());
  EXPECT_EQ(*store_->Count(), 1);
  // Nor does anyone have to wait for it.
  server_->Do({"SET", name, record});
  ASSERT_OK(Commit(*store_, Create("a", 2)));
  EXPECT_EQ(store_->Find("a")->key.uid, 2u);
}

TEST_F(RedisSweepTest, ReferencesThatWereNeverCommittedAreForgottenAndOthersStay) {
  ASSERT_OK(Commit(*store_, Create("parent", 1, {1, 2, 3})));
  SessionWrite child = Create("child", 2, {5});
  child.references = {Log("parent", 1, 3)};
  ASSERT_OK(Commit(*store_, child));
  const std::string uid1 = store_internal::UidText(1), uid2 = store_internal::UidText(2);
  server_->Do({"HSET", keys_.References(2), uid1 + ":L:0:2", "p"});
  server_->Do({"HSET", keys_.Referrers(1), uid2 + ":L:0:2", ""});
  MarkPending({"child", 2});
  SweepTwice();
  EXPECT_EQ(server_->Do({"HLEN", keys_.Referrers(1)}).number, 1);
  EXPECT_EQ(server_->Do({"HLEN", keys_.References(2)}).number, 1);
  ASSERT_OK(Commit(*store_, Remove("parent", 1)));
  EXPECT_EQ(*store_->LogEnd({"parent", 1}, 0), 3);
}

TEST_F(RedisStoreTest, TlsIsVerifiedBothWays) {
  if (FindProgram("openssl").empty()) GTEST_SKIP() << "openssl is not installed";
  TempDir dir;
  const std::string& d = dir.path();
  const std::string make =
      "cd " + d +
      " && exec >log 2>&1 && "
      "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.pem -days 2 "
      "-subj /CN=ca && cp ca.pem other.pem && "
      "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout x.key -out other.pem -days 2 "
      "-subj /CN=other && "
      "openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout s.key -out s.csr -subj /CN=s && "
      "printf 'subjectAltName=DNS:localhost,IP:127.0.0.1' >ext && "
      "openssl x509 -req -in s.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out s.pem";
  ASSERT_EQ(std::system(make.c_str()), 0);
  const std::string port = std::to_string(FreePort());
  Serve({"--tls-port", port, "--tls-cert-file", d + "/s.pem", "--tls-key-file", d + "/s.key", "--tls-ca-cert-file",
         d + "/ca.pem", "--tls-auth-clients", "yes"});
  auto options = server_->Options();
  options.address = "rediss://localhost:" + port;
  options.tls_ca = d + "/ca.pem";
  EXPECT_FALSE(OpenRedisStore(options).ok());  // it wants a certificate
  options.tls_cert = d + "/s.pem";
  options.tls_key = d + "/s.key";
  auto store = Open(options);
  const std::string big(3 << 20, 'x');
  ASSERT_OK(Commit(*store, Create("a", 1, std::vector<int32_t>(100000, 7))));
  ASSERT_OK(store->PutSnapshot({"a", 1}, {0, 2}, big, {}));
  EXPECT_EQ(*store->GetSnapshot({"a", 1}, {0, 2}), big);
  EXPECT_EQ(store->ReadLog({"a", 1}, 0, 1, 100000)->size(), 100000u);
  options.address = "127.0.0.1:" + port;  // TLS for its files' sake, its certificate names the address too
  EXPECT_OK(OpenRedisStore(options));
  options.address = "rediss://ip6-localhost:" + port;
  EXPECT_FALSE(OpenRedisStore(options).ok());
  options.address = "rediss://localhost:" + port;
  options.tls_ca = d + "/other.pem";
  EXPECT_THAT(OpenRedisStore(options), StatusIs(StatusCode::kUnavailable, HasSubstr("not trusted")));
  options.tls_ca = d + "/none.pem";
  EXPECT_THAT(OpenRedisStore(options), StatusIs(StatusCode::kInvalidArgument, HasSubstr("none.pem")));
}

TEST_F(RedisStoreTest, SentinelsSayWhereTheMasterIs) {
  const int port = FreePort(), first = FreePort(), silent = FreePort();
  Serve({"--port", std::to_string(first)});
  const auto sentinel = RedisServer::StartSentinel(port, first);
  RedisStoreOptions options;
  options.address = "redis://127.0.0.1:" + std::to_string(silent) + ",127.0.0.1:" + std::to_string(port);
  options.sentinel_master = "sessions";
  auto store = Open(options);
  ASSERT_OK(Commit(*store, Create("a", 1)));
  EXPECT_FALSE(store->durable_sync());
  options.sentinel_master = "others";
  EXPECT_THAT(OpenRedisStore(options), StatusIs(StatusCode::kUnavailable, HasSubstr("'others'")));
  // Another master, which never had what the first one acknowledged.
  const int second = FreePort();
  const auto other = RedisServer::Start({"--port", std::to_string(second)});
  sentinel->Do({"SENTINEL", "REMOVE", "sessions"});
  sentinel->Do({"SENTINEL", "MONITOR", "sessions", "127.0.0.1", std::to_string(second), "1"});
  server_->Kill();
  EXPECT_THAT(Commit(*store, Append("a", 1, 0, {7})), IsReplaced());
}

TEST_F(RedisStoreTest, AFailoverToAReplicaThatHasEverythingGoesOn) {
  const int port = FreePort(), second = FreePort();
  Serve({"--port", std::to_string(port), "--repl-diskless-sync-delay", "0"});
  auto store = Open();
  ASSERT_OK(Commit(*store, Create("a", 1, {5})));
  const auto replica = RedisServer::Start({"--port", std::to_string(second)});
  replica->Do({"REPLICAOF", "127.0.0.1", std::to_string(port)});
  const std::string counter = server_->Keys("smt:writer:*").at(0);
  for (int i = 0; i < 2000 && replica->Do({"GET", counter}).is_nil(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ASSERT_OK(Commit(*store, Append("a", 1, 1, {6})));
  // WAIT would answer for what its own connection has written. The counter changes with every commit.
  const std::string last = server_->Do({"GET", counter}).text;
  for (int i = 0; i < 2000 && replica->Do({"GET", counter}).text != last; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  server_->Kill();
  replica->Do({"REPLICAOF", "NO", "ONE"});
  fs::remove(server_->socket());
  fs::create_symlink(replica->socket(), server_->socket());
  ASSERT_OK(Commit(*store, Append("a", 1, 2, {7})));
  EXPECT_THAT(*store->ReadLog({"a", 1}, 0, 1, 3), ElementsAre(5, 6, 7));
}

TEST_F(RedisStoreTest, AFailoverToAReplicaThatLacksWritesIsAnotherStore) {
  const int port = FreePort(), second = FreePort();
  Settings settings = kDurable;
  settings.insert(settings.end(), {"--port", std::to_string(port), "--repl-diskless-sync-delay", "0"});
  Serve(settings);
  auto store = Open(), other = Open();
  EXPECT_TRUE(store->durable_sync());
  ASSERT_OK(Commit(*store, Create("a", 1, {5})));
  ASSERT_OK(Commit(*other, Create("b", 2, {5})));
  const auto replica = RedisServer::Start({"--port", std::to_string(second)});
  replica->Do({"REPLICAOF", "127.0.0.1", std::to_string(port)});
  for (int i = 0; i < 2000 && replica->Keys() != server_->Keys(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_FALSE(Open()->durable_sync()) << "a replica could take over";
  replica->Do({"REPLICAOF", "NO", "ONE"});
  ASSERT_OK(Commit(*store, Append("a", 1, 1, {6})));  // acknowledged, and lost with the master
  server_->Kill();
  fs::remove(server_->socket());
  fs::create_symlink(replica->socket(), server_->socket());
  EXPECT_THAT(Commit(*store, Append("a", 1, 2, {7})), IsReplaced());
  EXPECT_THAT(*replica->Keys("smt:*:l:0:*").begin(), HasSubstr("0000000000000001"));
  // Nothing was lost of what this one had acknowledged, but of another's.
  EXPECT_THAT(Commit(*other, Append("b", 2, 1, {6})), IsReplaced());
  auto anew = Open();
  EXPECT_THAT(*anew->ReadLog({"a", 1}, 0, 1, 1), ElementsAre(5));
  EXPECT_EQ(*anew->LogEnd({"a", 1}, 0), 1) << "no id after the lost one";
}

TEST(RedisStoreOptionsTest, EveryViolationIsNamed) {
  RedisStoreOptions options;
  options.address = "redis://a,b";
  options.tls_cert = "cert";
  options.prefix = "{x}";
  options.connections = 0;
  options.command_timeout = absl::ZeroDuration();
  EXPECT_THAT(options.Validate(), ElementsAre(HasSubstr("address"), HasSubstr("tls_cert"), HasSubstr("prefix"),
                                              HasSubstr("connections"), HasSubstr("command_timeout")));
  EXPECT_THAT(OpenRedisStore(options), StatusIs(StatusCode::kInvalidArgument, HasSubstr("connections")));
}

}  // namespace
}  // namespace smt
