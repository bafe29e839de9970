// Leases: who holds one writes, nobody else does, and it passes on.
#include <gmock/gmock.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "server/base/status_details.h"
#include "server/store/lease_store.h"
#include "server/store/redis_keys.h"
#include "tests/server/store/redis_testing.h"
#include "tests/server/store/status_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

MATCHER(IsLeaseLost, "is UNAVAILABLE because the lease was lost") {
  *result_listener << StatusOf(arg).ToString();
  return absl::IsUnavailable(StatusOf(arg)) && GetDetails(StatusOf(arg)).reason == kLeaseLost;
}

void Sleep(absl::Duration d) { std::this_thread::sleep_for(absl::ToChronoMilliseconds(d)); }

class RedisLeaseTest : public testing::Test {
 protected:
  void SetUp() override {
    SMT_SKIP_WITHOUT_REDIS();
    server_ = RedisServer::Start();
    a_ = *OpenRedisStore(server_->Options());
    b_ = *OpenRedisStore(server_->Options());
    SessionWrite w = Write(0, {});
    w.kind = SessionWrite::Kind::kCreate;
    ASSERT_OK(a_->Commit({&w, 1}, true)[0]);
  }
  SessionWrite Write(int64_t position, std::vector<int32_t> ids, std::string lease = "") const {
    SessionWrite w;
    w.key = key_;
    w.position = position;
    w.ids = std::move(ids);
    w.header = "header";
    w.requests = {{"r", "record"}};
    w.lease = std::move(lease);
    return w;
  }
  static absl::Status Commit(SessionStore& store, const SessionWrite& w) { return store.Commit({&w, 1}, true)[0]; }
  std::string Take(RedisStore& store, std::string_view owner, absl::Duration ttl = absl::Minutes(1)) const {
    const auto lease = store.Acquire(key_, owner, ttl);
    EXPECT_OK(lease);
    EXPECT_TRUE(lease->acquired) << lease->holder;
    EXPECT_EQ(lease->holder, owner);
    return lease->token;
  }

  const SessionKey key_{"s", 7};
  std::unique_ptr<RedisServer> server_;
  std::unique_ptr<RedisStore> a_, b_;
};

TEST_F(RedisLeaseTest, OneHoldsItAndTheOtherIsToldWhoAndForHowLong) {
  Take(*a_, "a");
  const auto refused = *b_->Acquire(key_, "b", absl::Minutes(1));
  EXPECT_FALSE(refused.acquired);
  EXPECT_EQ(refused.token, "");
  EXPECT_EQ(refused.holder, "a");
  EXPECT_GT(refused.remaining, absl::Seconds(30));
  EXPECT_LE(refused.remaining, absl::Minutes(1));
}

TEST_F(RedisLeaseTest, OfManyOwnersRacingExactlyOneWins) {
  for (int round = 0; round < 30; ++round) {
    std::atomic<int> won{0};
    std::vector<std::thread> racers;
    for (RedisStore* store : {a_.get(), b_.get()}) {
      for (int i = 0; i < 2; ++i) {
        racers.emplace_back([&, store, i] {
          const std::string owner = (store == a_.get() ? "a" : "b") + std::to_string(i);
          const auto lease = store->Acquire(key_, owner, absl::Minutes(1));
          if (!lease->acquired) return;
          ++won;
          EXPECT_OK(store->Release(std::vector<HeldLease>{{key_, lease->token}}));
        });
      }
    }
    for (auto& t : racers) t.join();
    EXPECT_GE(won, 1);
  }
  std::atomic<int> won{0};
  std::thread racer([&] { won += a_->Acquire(key_, "a", absl::Minutes(1))->acquired; });
  won += b_->Acquire(key_, "b", absl::Minutes(1))->acquired;
  racer.join();
  EXPECT_EQ(won, 1);
}

TEST_F(RedisLeaseTest, AWriterThatLostItsLeaseChangesNothing) {
  const std::string ghost = Take(*a_, "a", absl::Milliseconds(50));
  ASSERT_OK(Commit(*a_, Write(0, {1, 2}, ghost)));
  ASSERT_OK(a_->PutSnapshotLeased(key_, ghost, {0, 1}, "state", {}));
  Sleep(absl::Milliseconds(100));
  EXPECT_THAT(Commit(*a_, Write(2, {3}, ghost)), IsLeaseLost());  // nobody else holds it yet
  const std::string owner = Take(*b_, "b");
  EXPECT_NE(owner, ghost);
  ASSERT_OK(Commit(*b_, Write(2, {3}, owner)));

  SessionWrite w = Write(3, {9}, ghost);
  w.header = "ghost's";
  w.requests = {{"r", "ghost's"}, {"g", "ghost's"}};
  EXPECT_THAT(Commit(*a_, w), IsLeaseLost());
  EXPECT_THAT(Commit(*a_, w), StatusIs(StatusCode::kUnavailable, HasSubstr("'b' has it now")));
  w.kind = SessionWrite::Kind::kRemove;
  EXPECT_THAT(Commit(*a_, w), IsLeaseLost());
  EXPECT_THAT(a_->PutSnapshotLeased(key_, ghost, {0, 3}, "ghost's", std::vector<SnapshotName>{{0, 1}}), IsLeaseLost());
  EXPECT_THAT(a_->Renew(std::vector<HeldLease>{{key_, ghost}}, absl::Minutes(1))[0], IsLeaseLost());
  EXPECT_OK(a_->Release(std::vector<HeldLease>{{key_, ghost}}));

  EXPECT_THAT(*b_->ReadLog(key_, 0, 1, 3), ElementsAre(1, 2, 3));
  EXPECT_EQ(*b_->Find("s")->header, "header");
  EXPECT_EQ(*b_->GetRequest(key_, "r"), "record");
  EXPECT_THAT(b_->GetRequest(key_, "g"), StatusIs(StatusCode::kNotFound, HasSubstr("'g'")));
  EXPECT_THAT(*b_->ListSnapshots(key_), ElementsAre(SnapshotName{0, 1}));
  ASSERT_OK(Commit(*b_, Write(3, {4}, owner)));
}

TEST_F(RedisLeaseTest, AnOwnersNewTokenEndsItsOldOne) {
  const std::string first = Take(*a_, "a"), second = Take(*a_, "a");
  EXPECT_NE(first, second);
  EXPECT_THAT(Commit(*a_, Write(0, {1}, first)), IsLeaseLost());
  EXPECT_OK(Commit(*a_, Write(0, {1}, second)));
}

TEST_F(RedisLeaseTest, TokensAreComparedForEqualityNotOrder) {
  const std::string token = Take(*a_, "a");
  // A later epoch of the same owner, as a store that went back in time would meet.
  const size_t colon = token.find(':');
  const std::string later = token.substr(0, colon) + ":999:a";
  EXPECT_THAT(Commit(*a_, Write(0, {1}, later)), IsLeaseLost());
  EXPECT_OK(Commit(*a_, Write(0, {1}, token)));
}

TEST_F(RedisLeaseTest, ALeaseTakenWithoutAnAnswerIsTheOneThatHolds) {
  auto options = server_->Options();
  options.command_timeout = options.connect_timeout = absl::Milliseconds(100);
  auto store = *OpenRedisStore(options);
  ASSERT_OK(store->Find("s"));  // so that there is a connection
  std::thread sleep([&] { server_->Do({"DEBUG", "SLEEP", "0.5"}); });
  Sleep(absl::Milliseconds(50));
  const std::string token = Take(*store, "a");  // sent several times: the others are carried out before or after
  sleep.join();
  EXPECT_OK(Commit(*store, Write(0, {1}, token)));
  EXPECT_OK(store->Renew(std::vector<HeldLease>{{key_, token}}, absl::Minutes(1))[0]);
}

TEST_F(RedisLeaseTest, RenewalKeepsManyAndTellsWhichAreLost) {
  std::vector<HeldLease> held;
  for (uint64_t uid = 100; uid < 200; ++uid) {
    const SessionKey key{"x" + std::to_string(uid), uid};
    held.push_back({key, a_->Acquire(key, "a", absl::Milliseconds(200))->token});
  }
  ASSERT_OK(a_->Release(std::span(held).subspan(10, 1)));
  ASSERT_TRUE(b_->Acquire(held[10].key, "b", absl::Minutes(1))->acquired);
  const auto renewed = a_->Renew(held, absl::Minutes(1));
  for (size_t i = 0; i < held.size(); ++i) {
    if (i == 10) {
      EXPECT_THAT(renewed[i], IsLeaseLost());
    } else {
      EXPECT_OK(renewed[i]);
    }
  }
  Sleep(absl::Milliseconds(300));
  EXPECT_EQ(b_->Acquire(held[0].key, "b", absl::Minutes(1))->holder, "a");
}

TEST_F(RedisLeaseTest, AReleasedLeaseIsFreeAtOnce) {
  const std::string token = Take(*a_, "a");
  ASSERT_OK(a_->Release(std::vector<HeldLease>{{key_, token}}));
  EXPECT_THAT(Commit(*a_, Write(0, {1}, token)), IsLeaseLost());
  Take(*b_, "b");
}

TEST_F(RedisLeaseTest, ALeaseCanBeTakenBeforeItsSessionIsMade) {
  SessionWrite w = Write(0, {1});
  w.kind = SessionWrite::Kind::kCreate;
  w.key = {"new", 8};
  w.lease = a_->Acquire(w.key, "a", absl::Minutes(1))->token;
  ASSERT_OK(Commit(*a_, w));
  EXPECT_EQ(server_->Do({"TTL", store_internal::RedisKeys("smt:").Meta(8)}).number, -1);
  EXPECT_EQ(b_->Acquire(w.key, "b", absl::Minutes(1))->holder, "a");
}

TEST_F(RedisLeaseTest, AHandoverReachesTheHolderThatWaitsForIt) {
  const std::string token = Take(*a_, "a");
  EXPECT_THAT(*a_->PendingHandovers("a", absl::ZeroDuration()), IsEmpty());
  std::thread holder([&] {
    const auto asked = a_->PendingHandovers("a", absl::Seconds(20));
    ASSERT_OK(asked);
    EXPECT_THAT(*asked, ElementsAre(WantedLease{{key_, token}, Handover::kPark}));
    EXPECT_OK(Commit(*a_, Write(0, {1, 2}, token)));
    EXPECT_OK(a_->Release(std::vector<HeldLease>{{key_, token}}));
  });
  Sleep(absl::Milliseconds(50));
  const auto refused = b_->Acquire(key_, "b", absl::Minutes(1));
  EXPECT_FALSE(refused->acquired);
  EXPECT_EQ(refused->present, token);
  ASSERT_OK(b_->RequestHandover({{key_, refused->present}}));
  std::string taken;
  const auto begin = std::chrono::steady_clock::now();
  while (taken.empty() && std::chrono::steady_clock::now() - begin < std::chrono::seconds(10)) {
    Sleep(absl::Milliseconds(2));
    taken = b_->Acquire(key_, "b", absl::Minutes(1))->token;
  }
  holder.join();
  EXPECT_OK(Commit(*b_, Write(2, {3}, taken)));
}

TEST_F(RedisLeaseTest, AskingTwiceIsAskingOnce) {
  const std::string token = Take(*a_, "a");
  EXPECT_THAT(*a_->PendingHandovers("a", absl::ZeroDuration()), IsEmpty());
  const SessionKey other{"t", 9};
  const std::string others = a_->Acquire(other, "a", absl::Minutes(1))->token;
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK(b_->RequestHandover({{key_, token}}));
    ASSERT_OK(b_->RequestHandover({{other, others}, Handover::kCancel}));
  }
  EXPECT_THAT(*a_->PendingHandovers("a", absl::Seconds(1)),
              UnorderedElementsAre(WantedLease{{key_, token}, Handover::kPark},
                                   WantedLease{{other, others}, Handover::kCancel}));
  EXPECT_THAT(*a_->PendingHandovers("a", absl::Milliseconds(10)), IsEmpty());
}

TEST_F(RedisLeaseTest, ATokenOfAFormerStoreWritesNothingToItsSuccessor) {
  const std::string token = Take(*a_, "a");
  server_->Do({"FLUSHALL"});
  EXPECT_EQ(GetDetails(a_->Renew(std::vector<HeldLease>{{key_, token}}, absl::Minutes(1))[0]).reason, kStoreReplaced);
  EXPECT_EQ(GetDetails(a_->Acquire(key_, "a", absl::Minutes(1)).status()).reason, kStoreReplaced);
  ASSERT_OK(a_->AdoptReplacedStore());
  ASSERT_OK(b_->AdoptReplacedStore());
  SessionWrite w = Write(0, {});
  w.kind = SessionWrite::Kind::kCreate;
  ASSERT_OK(Commit(*b_, w));
  const std::string now = Take(*b_, "a");  // the same owner and epoch
  EXPECT_EQ(now.substr(now.find(':')), token.substr(token.find(':')));
  EXPECT_THAT(Commit(*a_, Write(0, {1}, token)), IsLeaseLost());
}

}  // namespace
}  // namespace smt
