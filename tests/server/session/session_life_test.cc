// Created, found, listed, changed, deleted, expired.
#include <atomic>
#include <set>
#include <thread>

#include "tests/server/session/session_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

class SessionLifeTest : public SessionTest {
 protected:
  std::vector<std::string> ListAll(int32_t page_size) {
    std::vector<std::string> ids;
    std::string token;
    do {
      const auto page = manager_->List(page_size, token);
      EXPECT_OK(page);
      if (!page.ok()) break;
      for (const auto& s : page->sessions) ids.push_back(s.id);
      token = page->next_page_token;
    } while (!token.empty());
    return ids;
  }
};

TEST_F(SessionLifeTest, ACreatedSessionIsFoundAlsoAfterARestart) {
  OpenRocks();
  const auto made = manager_->Create("a", absl::Hours(1), {{"owner", "me"}});
  ASSERT_OK(made);
  EXPECT_EQ(made->position, 0);
  EXPECT_EQ(made->model_fingerprint, "model-1");
  EXPECT_EQ(made->expire_time, clock_.Now() + absl::Hours(1));
  for (int restart = 0; restart < 2; ++restart) {
    const auto got = manager_->Get("a");
    ASSERT_OK(got);
    EXPECT_EQ(got->etag, made->etag);
    EXPECT_EQ(got->key, made->key);
    EXPECT_EQ(got->labels, made->labels);
    OpenRocks();
  }
  EXPECT_THAT(manager_->Create("a", absl::Hours(1), {}), StatusIs(StatusCode::kAlreadyExists, HasSubstr("'a'")));
  EXPECT_THAT(manager_->Get("b"), StatusIs(StatusCode::kNotFound, HasSubstr("'b'")));
  EXPECT_THAT(manager_->Get("sessions/a"), StatusIs(StatusCode::kInvalidArgument, HasSubstr("sessions/a")));
}

TEST_F(SessionLifeTest, AnEmptyIdIsDrawn) {
  OpenMemory();
  std::set<std::string> ids;
  for (int i = 0; i < 50; ++i) ids.insert(manager_->Create("", absl::InfiniteDuration(), {})->id);
  EXPECT_THAT(ids, SizeIs(50));
}

TEST_F(SessionLifeTest, BadArgumentsAreNamed) {
  OpenMemory();
  EXPECT_THAT(manager_->Create("a", absl::ZeroDuration(), {}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("ttl 0")));
  EXPECT_THAT(manager_->Create("a", absl::Seconds(-1), {}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("ttl -1s")));
  EXPECT_THAT(manager_->Create("a", absl::Hours(1), {{"", "x"}}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("label")));
  EXPECT_THAT(manager_->List(-1, ""), StatusIs(StatusCode::kInvalidArgument, HasSubstr("page_size is -1")));
  for (const char* token : {"x", "!!!", "YWJj", "AAAAAAAAAAAAAAAAAAAA"}) {
    EXPECT_THAT(manager_->List(10, token), StatusIs(StatusCode::kInvalidArgument, HasSubstr("page_token")));
  }
}

TEST_F(SessionLifeTest, PagesAreOrderedAndHoldUnderChange) {
  OpenMemory();
  for (const char* id : {"d", "b", "a", "c", "e", "f"}) Create(id);
  EXPECT_THAT(ListAll(4), ElementsAre("a", "b", "c", "d", "e", "f"));
  EXPECT_THAT(ListAll(0), SizeIs(6));
  const auto first = *manager_->List(2, "");
  EXPECT_THAT(first.sessions, SizeIs(2));
  ASSERT_OK(manager_->Delete("b", std::nullopt));  // the page's last
  ASSERT_OK(manager_->Delete("c", std::nullopt));  // the next page's first
  Create("aa");                                    // before it
  Create("cc");
  const auto second = *manager_->List(100, first.next_page_token);
  std::vector<std::string> ids;
  for (const auto& s : second.sessions) ids.push_back(s.id);
  EXPECT_THAT(ids, ElementsAre("cc", "d", "e", "f"));
  EXPECT_THAT(second.next_page_token, IsEmpty());
}

TEST_F(SessionLifeTest, UpdateChangesTheEtagAndRenewsTheTtl) {
  OpenRocks();
  const auto made = *manager_->Create("a", absl::Hours(1), {{"k", "1"}});
  clock_.Advance(absl::Minutes(30));
  SessionManager::Update update;
  update.labels = std::map<std::string, std::string>{{"k", "2"}};
  update.etag = made.etag;
  const auto changed = manager_->UpdateSession("a", update);
  ASSERT_OK(changed);
  EXPECT_NE(changed->etag, made.etag);
  EXPECT_EQ(changed->expire_time, clock_.Now() + absl::Hours(1));
  EXPECT_THAT(manager_->UpdateSession("a", update),
              StatusIs(StatusCode::kAborted, AllOf(HasSubstr(made.etag), HasSubstr(changed->etag))));
  EXPECT_THAT(manager_->Delete("a", made.etag), StatusIs(StatusCode::kAborted, HasSubstr(changed->etag)));
  OpenRocks();
  EXPECT_EQ(manager_->Get("a")->labels.at("k"), "2");
  EXPECT_EQ(manager_->Get("a")->etag, changed->etag);
  EXPECT_OK(manager_->Delete("a", changed->etag));
}

TEST_F(SessionLifeTest, AnExpiredSessionIsGoneAtOnceAndSweptLater) {
  OpenRocks();
  const auto made = *manager_->Create("a", absl::Minutes(10), {});
  Create("b");
  Say("a", {1, 2}, {3}, "r");
  clock_.Advance(absl::Minutes(9));
  Say("a", {4}, {5});  // use renews
  clock_.Advance(absl::Minutes(9));
  EXPECT_OK(manager_->Get("a"));
  ASSERT_OK(manager_->Sweep());
  EXPECT_OK(manager_->Get("a"));
  clock_.Advance(absl::Minutes(1));
  EXPECT_THAT(manager_->Get("a"), StatusIs(StatusCode::kNotFound, HasSubstr("expired")));
  EXPECT_THAT(manager_->BeginTurn(Spec("a", {1})), StatusIs(StatusCode::kNotFound, HasSubstr("expired")));
  EXPECT_THAT(manager_->Delete("a", std::nullopt), StatusIs(StatusCode::kNotFound, HasSubstr("expired")));
  EXPECT_THAT(ListAll(10), ElementsAre("b"));
  ASSERT_OK(manager_->Sweep());
  EXPECT_EQ(manager_->counters().expired_sessions, 1);
  {
    absl::MutexLock lock(&removed_mu_);
    EXPECT_THAT(removed_, ElementsAre(made.key));
  }
  manager_.reset();
  EXPECT_EQ(CountRecords(dir_.path(), "sessions"), 1);
  EXPECT_EQ(CountRecords(dir_.path(), "log"), 0);
  EXPECT_EQ(CountRecords(dir_.path(), "requests"), 0);
}

TEST_F(SessionLifeTest, ADeletionThatIsSentAgainIsAnsweredAsTheFirstTime) {
  OpenRocks();
  for (const bool restart : {false, true}) {
    SCOPED_TRACE(restart);
    Create("a");
    Say("a", {1}, {2}, "said");
    EXPECT_THAT(manager_->Delete("a", std::nullopt, "said"),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("another meaning")));
    ASSERT_OK(manager_->Delete("a", std::nullopt, "gone"));
    if (restart) {
      manager_.reset();
      OpenRocks();
    }
    EXPECT_OK(manager_->Delete("a", std::nullopt, "gone"));
    EXPECT_THAT(manager_->Delete("a", std::nullopt, "other"), StatusIs(StatusCode::kNotFound, HasSubstr("'a'")));
    // One that was made under its name since is not what was deleted.
    Create("a");
    EXPECT_OK(manager_->Delete("a", std::nullopt, "gone"));
    EXPECT_OK(manager_->Get("a"));
    auto turn = Begin(Spec("a", {1}));
    EXPECT_OK(manager_->Delete("a", std::nullopt, "gone"));
    FinishAndWait(*turn);
    turn.reset();
    ASSERT_OK(manager_->Delete("a", std::nullopt));
    clock_.Advance(absl::Hours(23));
    ASSERT_OK(manager_->Sweep());
    EXPECT_OK(manager_->Delete("a", std::nullopt, "gone"));
    clock_.Advance(absl::Hours(2));
    EXPECT_THAT(manager_->Delete("a", std::nullopt, "gone"), StatusIs(StatusCode::kNotFound, HasSubstr("'a'")));
  }
  ASSERT_OK(manager_->Sweep());
  manager_.reset();
  EXPECT_EQ(CountRecords(dir_.path(), "requests"), 0) << "what is forgotten does not stay";
}

TEST_F(SessionLifeTest, AnExpiredNameCanBeTakenAgainBeforeTheSweep) {
  OpenRocks();
  const auto old = *manager_->Create("a", absl::Minutes(1), {});
  Say("a", {1, 2}, {3});
  clock_.Advance(absl::Minutes(2));
  const auto made = manager_->Create("a", absl::Minutes(1), {});
  ASSERT_OK(made);
  EXPECT_EQ(made->position, 0);
  EXPECT_NE(made->key, old.key);
  absl::MutexLock lock(&removed_mu_);
  EXPECT_THAT(removed_, ElementsAre(old.key));
}

TEST_F(SessionLifeTest, TheBackgroundSweepRuns) {
  options_.sweep_interval = absl::Milliseconds(10);
  OpenMemory();
  ASSERT_OK(manager_->Create("a", absl::Minutes(1), {}));
  clock_.Advance(absl::Minutes(2));
  for (int i = 0; i < 1000 && manager_->counters().expired_sessions == 0; ++i) absl::SleepFor(absl::Milliseconds(5));
  EXPECT_EQ(manager_->counters().expired_sessions, 1);
  EXPECT_EQ(*memory_->Count(), 0);
}

TEST_F(SessionLifeTest, StoredSessionsAreCountedWhateverMadeThem) {
  OpenRocks();
  Create("a");
  Create("b");
  ASSERT_OK(manager_->Create("c", absl::Minutes(1), {}));
  EXPECT_EQ(manager_->counters().stored_sessions, 3);
  OpenRocks();  // which has made none of them
  ASSERT_OK(manager_->Sweep());
  EXPECT_EQ(manager_->counters().stored_sessions, 3);
  ASSERT_OK(manager_->Delete("a", std::nullopt));
  Create("d");
  Create("e");
  EXPECT_EQ(manager_->counters().stored_sessions, 4);
  clock_.Advance(absl::Minutes(2));
  ASSERT_OK(manager_->Sweep());
  EXPECT_EQ(manager_->counters().stored_sessions, 3) << "one has expired";
  ASSERT_OK(manager_->Sweep());
  EXPECT_EQ(manager_->counters().stored_sessions, 3);
}

TEST_F(SessionLifeTest, NothingOldAppearsInASessionMadeAnew) {
  OpenRocks();
  Create("a");
  auto turn = Begin(Spec("a", Ids(20), "r"));
  const std::string old_key = turn->session().key;
  turn->Snapshot(20, State(20));
  ASSERT_OK(FinishAndWait(*turn).status);
  turn.reset();
  ASSERT_OK(manager_->Flush());
  ASSERT_OK(manager_->Delete("a", std::nullopt));
  Create("a");
  manager_->SaveEvicted(old_key, 20, State(20));  // the engine was late
  ASSERT_OK(manager_->Flush());
  const auto info = *manager_->Get("a");
  EXPECT_EQ(info.position, 0);
  EXPECT_NE(info.key, old_key);
  EXPECT_THAT(manager_->GetRequest("a", "r"), StatusIs(StatusCode::kNotFound, HasSubstr("'r'")));
  auto fresh = Begin(Spec("a", {1}, "r"));
  ASSERT_NE(fresh, nullptr);
  EXPECT_EQ(fresh->Restore()->tier, "new");
  fresh.reset();
  manager_.reset();
  EXPECT_EQ(CountRecords(dir_.path(), "snapshots"), 0);
}

TEST_F(SessionLifeTest, TheLimitOnSessionsCountsThoseFoundAtStartAndExpiredOnesMakeRoom) {
  OpenRocks();
  Create("a");
  ASSERT_OK(manager_->Create("b", absl::Minutes(1), {}));
  options_.max_sessions = 2;
  OpenRocks();
  EXPECT_THAT(manager_->Create("c", absl::InfiniteDuration(), {}),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("limit is 2")));
  clock_.Advance(absl::Minutes(2));
  EXPECT_OK(manager_->Create("c", absl::InfiniteDuration(), {}));
  ASSERT_OK(manager_->Delete("a", std::nullopt));
  EXPECT_OK(manager_->Create("d", absl::InfiniteDuration(), {}));
  EXPECT_THAT(manager_->Create("e", absl::InfiniteDuration(), {}),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("2")));
}

TEST_F(SessionLifeTest, OfManyCreatorsOneWins) {
  OpenMemory();
  for (int round = 0; round < 50; ++round) {
    const std::string id = "s" + std::to_string(round);
    std::atomic<int> made{0}, refused{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        const auto s = manager_->Create(id, absl::InfiniteDuration(), {});
        made += s.ok();
        refused += absl::IsAlreadyExists(s.status());
      });
    }
    for (auto& t : threads) t.join();
    EXPECT_EQ(made, 1);
    EXPECT_EQ(refused, 3);
  }
}

TEST_F(SessionLifeTest, TheCacheOfIdleSessionsIsBounded) {
  options_.max_cached_sessions = 8;
  OpenRocks();
  for (int i = 0; i < 100; ++i) {
    const std::string id = "s" + std::to_string(i);
    Create(id);
    Say(id, {i}, {i});
  }
  for (int i = 0; i < 100; ++i) EXPECT_EQ(manager_->Get("s" + std::to_string(i))->position, 2);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_FALSE(manager_->Get("none" + std::to_string(i)).ok());
  }
}

}  // namespace
}  // namespace smt
