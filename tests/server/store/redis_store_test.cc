// What a store in a Redis is made of: keys, scripts, settings, segments, references.
#include "server/store/redis_store.h"

#include <fstream>
#include <numeric>
#include <thread>

#include "tests/server/store/redis_store_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

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
