// What a store in a Redis meets that others do not: connections that break, a Redis that is away, empty, another one,
// short of memory or not fit to hold sessions.
#include <atomic>
#include <filesystem>
#include <thread>

#include "tests/server/store/redis_store_testing.h"

namespace smt {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class RedisFaultsTest : public RedisStoreTest {};

TEST_F(RedisFaultsTest, AKilledRedisIsUnavailableAndKeepsWhatWasSyncedWhenItIsBack) {
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

TEST_F(RedisFaultsTest, ARedisThatComesBackEmptyIsAnotherStore) {
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

TEST_F(RedisFaultsTest, AnEmptiedRedisIsNoticedOnTheOpenConnection) {
  Serve();
  auto store = Open();
  ASSERT_OK(Commit(*store, Create("a", 1, {5, 6})));
  server_->Do({"FLUSHALL"});
  EXPECT_THAT(Commit(*store, Create("b", 2)), IsReplaced());
  EXPECT_THAT(store->Find("b"), IsReplaced());
  EXPECT_TRUE(server_->Keys("smt:name:*").empty());
}

TEST_F(RedisFaultsTest, ARedisThatLostAcknowledgedWritesIsAnotherStoreForAll) {
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

TEST_F(RedisFaultsTest, ACommandWithoutAnAnswerIsAppliedOnceAndItsOutcomeTold) {
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

TEST_F(RedisFaultsTest, CreationsAndRemovalsSurviveLostAnswersToo) {
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

TEST_F(RedisFaultsTest, AnOutcomeThatStaysOpenIsSaidToBe) {
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

TEST_F(RedisFaultsTest, AReplicaIsRefusedAndWritesToOneAreUnavailableUntilItIsMaster) {
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

TEST_F(RedisFaultsTest, SyncIsDurableOnlyWhereEveryAnswerWaitsForTheDisk) {
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

TEST_F(RedisFaultsTest, ARedisThatEvictsIsRefused) {
  Serve({"--maxmemory-policy", "allkeys-lru"});
  EXPECT_THAT(OpenRedisStore(server_->Options()),
              StatusIs(StatusCode::kFailedPrecondition, AllOf(HasSubstr("allkeys-lru"), HasSubstr("noeviction"))));
}

TEST_F(RedisFaultsTest, ARedisThatBeginsToEvictIsWrittenToNoMore) {
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

TEST_F(RedisFaultsTest, WithoutMemoryNothingIsWrittenAndRemovalStillWorks) {
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

}  // namespace
}  // namespace smt
