// Stored bytes that changed: DATA_LOSS for that session or a way around, and the others go on.
#include "server/store/record_format.h"
#include "tests/server/session/session_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class SessionDamageTest : public SessionTest {
 protected:
  // Session "a" with 40 ids in segments of 10 and 30, snapshots at 20 and 30, request "r"; session "b" with 2 ids.
  void SetUp() override {
    OpenRocks();
    Create("a");
    Create("b");
    Say("b", {1}, {2});
    auto turn = Begin(Spec("a", Ids(10), "r"));
    turn->Append(Ids(30, 10));
    for (const int64_t at : {20, 30}) {
      turn->Snapshot(at, State(at));
      ASSERT_OK(manager_->Flush());
    }
    ASSERT_OK(FinishAndWait(*turn).status);
    turn.reset();
    uid_ = ParseUid(manager_->Get("a")->key);
    manager_.reset();
  }
  static std::string ParseUid(const std::string& state_key) { return state_key.substr(state_key.find('@') + 1, 16); }

  // Keys of session "a" whose last number is `last` (-1: any).
  std::function<bool(std::string_view)> OfA(int64_t last = -1) const {
    return [this, last](std::string_view key) {
      std::string uid;
      for (int i = 0; i < 8; ++i) {
        const auto byte = static_cast<uint8_t>(key[static_cast<size_t>(i)]);
        uid += "0123456789abcdef"[byte >> 4];
        uid += "0123456789abcdef"[byte & 15];
      }
      return uid == uid_ && (last < 0 || ReadBigEndian(key.substr(16)) == static_cast<uint64_t>(last));
    };
  }
  void ExpectOthersGoOn() {
    EXPECT_EQ(manager_->Get("b")->position, 2);
    Say("b", {3}, {4});
    EXPECT_THAT(*manager_->ReadLog("b", 1, 4), ElementsAre(1, 2, 3, 4));
    EXPECT_OK(manager_->Create("c", absl::InfiniteDuration(), {}));
  }

  std::string uid_;
};

TEST_F(SessionDamageTest, ADamagedHeaderIsDataLossOfThatSessionOnly) {
  ASSERT_EQ(
      DamageRecords(
          dir_.path(), "sessions", [](std::string_view k) { return k.substr(0, 2) == std::string_view("a\0", 2); }, -3),
      1);
  OpenRocks();
  const auto damaged = StatusIs(StatusCode::kDataLoss, HasSubstr("session 'a': its header is damaged"));
  EXPECT_THAT(manager_->Get("a"), damaged);
  EXPECT_THAT(manager_->BeginTurn(Spec("a", {1})), damaged);
  EXPECT_THAT(manager_->ReadLog("a", 1, 2), damaged);
  EXPECT_THAT(manager_->ReadState("a", nullptr), damaged);
  EXPECT_THAT(manager_->GetRequest("a", "r"), damaged);
  EXPECT_THAT(manager_->UpdateSession("a", {}), damaged);
  EXPECT_THAT(manager_->Create("a", absl::InfiniteDuration(), {}), damaged);
  const auto page = *manager_->List(10, "");
  ASSERT_EQ(page.sessions.size(), 2u);
  EXPECT_TRUE(page.sessions[0].damaged);
  EXPECT_FALSE(page.sessions[1].damaged);
  EXPECT_OK(manager_->Sweep());
  ExpectOthersGoOn();
  EXPECT_OK(manager_->Delete("a", std::nullopt));
  EXPECT_OK(manager_->Create("a", absl::InfiniteDuration(), {}));
  manager_.reset();
  EXPECT_EQ(CountRecords(dir_.path(), "snapshots"), 0);
}

TEST_F(SessionDamageTest, ADamagedNewestSnapshotFallsBackToTheOneBefore) {
  ASSERT_EQ(DamageRecords(dir_.path(), "snapshots", OfA(30), -100), 1);
  OpenRocks();
  const auto restored = manager_->ReadState("a", nullptr);
  ASSERT_OK(restored);
  EXPECT_EQ(restored->position, 20);
  EXPECT_EQ(PositionIn(*restored->state), 20);
  EXPECT_EQ(restored->tail, Ids(20, 20));
  EXPECT_EQ(restored->damaged_snapshots, 1);
  EXPECT_EQ(manager_->counters().snapshots_damaged, 1);
  ExpectOthersGoOn();
}

TEST_F(SessionDamageTest, WithoutAGoodSnapshotTheWholeLogIsTheState) {
  ASSERT_EQ(DamageRecords(dir_.path(), "snapshots", OfA(), -100), 2);
  OpenRocks();
  const auto restored = manager_->ReadState("a", nullptr);
  ASSERT_OK(restored);
  EXPECT_EQ(restored->position, 0);
  EXPECT_EQ(restored->state, nullptr);
  EXPECT_EQ(restored->tail, Ids(40));
  EXPECT_EQ(restored->tier, "log");
  EXPECT_EQ(restored->damaged_snapshots, 2);
}

TEST_F(SessionDamageTest, ADamagedLogSegmentIsDataLossOnlyWhereItIsNeeded) {
  ASSERT_EQ(DamageRecords(dir_.path(), "log", OfA(0), -1), 1);  // positions 1..10
  OpenRocks();
  EXPECT_EQ(manager_->ReadState("a", nullptr)->position, 30);  // the snapshot stands after it
  EXPECT_THAT(manager_->ReadLog("a", 5, 12),
              StatusIs(StatusCode::kDataLoss, AllOf(HasSubstr("session 'a'"), HasSubstr("after position 0"))));
  EXPECT_THAT(*manager_->ReadLog("a", 11, 12), ElementsAre(10, 11));
  Say("a", {7}, {8});
  manager_.reset();
  ASSERT_EQ(DamageRecords(dir_.path(), "snapshots", OfA(), -100), 2);
  OpenRocks();
  EXPECT_THAT(manager_->ReadState("a", nullptr), StatusIs(StatusCode::kDataLoss, HasSubstr("after position 0")));
  ExpectOthersGoOn();
}

TEST_F(SessionDamageTest, ADamagedLastSegmentIsDataLossForTheNextTurn) {
  ASSERT_GE(
      DamageRecords(
          dir_.path(), "log", [&](std::string_view k) { return OfA()(k) && ReadBigEndian(k.substr(16)) > 0; }, -1),
      1);
  OpenRocks();
  EXPECT_THAT(manager_->BeginTurn(Spec("a", {1})), StatusIs(StatusCode::kDataLoss, HasSubstr("session 'a'")));
  EXPECT_FALSE(manager_->Get("a")->active);
  ExpectOthersGoOn();
  EXPECT_OK(manager_->Delete("a", std::nullopt));
}

TEST_F(SessionDamageTest, ADamagedRequestIsDataLossOfThatRequestOnly) {
  ASSERT_EQ(DamageRecords(dir_.path(), "requests", OfA(), -1), 1);
  OpenRocks();
  EXPECT_THAT(manager_->GetRequest("a", "r"),
              StatusIs(StatusCode::kDataLoss, AllOf(HasSubstr("session 'a'"), HasSubstr("'r'"))));
  EXPECT_THAT(manager_->BeginTurn(Spec("a", {1}, "r")), StatusIs(StatusCode::kDataLoss, HasSubstr("'r'")));
  EXPECT_OK(manager_->Sweep());
  Say("a", {1}, {2}, "another");
  ExpectOthersGoOn();
}

}  // namespace
}  // namespace smt
