// What servers leave half done in a Redis.
#include "tests/server/store/redis_store_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using store_internal::RedisKeys;
using testing::HasSubstr;
using testing::IsEmpty;

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

}  // namespace
}  // namespace smt
