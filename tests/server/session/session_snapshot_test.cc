// Snapshots: which one a turn begins with, and which are kept.
#include <thread>

#include "tests/server/session/session_testing.h"

namespace smt {
namespace {

using testing::IsEmpty;

class SessionSnapshotTest : public SessionTest {};

TEST_F(SessionSnapshotTest, RestoreTakesTheNewestSnapshotAndTheLogAfterIt) {
  OpenRocks();
  Create("a");
  {
    auto turn = Begin(Spec("a", Ids(10)));
    turn->Append(Ids(30, 10));
    for (const int64_t at : {10, 20, 30}) {
      turn->Snapshot(at, State(at));
      ASSERT_OK(manager_->Flush());
    }
    ASSERT_OK(FinishAndWait(*turn).status);
  }
  for (int restart = 0; restart < 2; ++restart) {
    auto turn = Begin(Spec("a", {}));
    const auto restored = turn->Restore();
    ASSERT_OK(restored);
    EXPECT_EQ(restored->position, 30);
    EXPECT_EQ(PositionIn(*restored->state), 30);
    EXPECT_EQ(restored->tail, Ids(10, 30));
    EXPECT_EQ(restored->tier, "store");
    EXPECT_EQ(restored->numerics_id, "cpu/test");
    EXPECT_FALSE(restored->foreign_numerics);
    ASSERT_OK(FinishAndWait(*turn).status);
    turn.reset();
    OpenRocks();
  }
  options_.numerics_id = "gpu/test";
  OpenRocks();
  SessionInfo info;
  const auto read = manager_->ReadState("a", &info);
  ASSERT_OK(read);
  EXPECT_EQ(info.position, 40);
  EXPECT_EQ(read->position, 30);
  EXPECT_TRUE(read->foreign_numerics);
  manager_.reset();
  EXPECT_EQ(CountRecords(dir_.path(), "snapshots"), 2);
}

TEST_F(SessionSnapshotTest, AnEvictedStateIsKeptAndAnImpossibleOneIsNot) {
  OpenRocks();
  Create("a");
  Say("a", Ids(5), Ids(5, 5));
  const std::string key = manager_->Get("a")->key;
  manager_->SaveEvicted(key, 11, State(11));  // past the log
  manager_->SaveEvicted("not a key", 5, State(5));
  ASSERT_OK(manager_->Flush());
  EXPECT_EQ(manager_->ReadState("a", nullptr)->tier, "log");
  manager_->SaveEvicted(key, 10, State(10));
  const auto at_once = *manager_->ReadState("a", nullptr);
  ASSERT_OK(manager_->Flush());
  const auto later = *manager_->ReadState("a", nullptr);
  EXPECT_EQ(later.tier, "store");
  EXPECT_EQ(later.position, 10);
  EXPECT_THAT(later.tail, IsEmpty());
  EXPECT_EQ(PositionIn(*later.state), 10);
  EXPECT_THAT(at_once.tier, testing::AnyOf("log", "host", "store"));
}

TEST_F(SessionSnapshotTest, SnapshotsBeyondTheMemoryBoundAreDropped) {
  options_.max_pending_snapshot_bytes = kTestStateBytes;
  OpenMemory();
  Create("a");
  Say("a", Ids(5), {});
  const std::string key = manager_->Get("a")->key;
  memory_->Hold(true);
  auto turn_thread = std::thread([&] { Begin(Spec("a", {1})); });
  memory_->WaitUntilCommitWaits();
  for (int i = 1; i <= 5; ++i) manager_->SaveEvicted(key, i, State(i));
  EXPECT_EQ(manager_->counters().snapshots_dropped, 4);
  memory_->Hold(false);
  turn_thread.join();
}

}  // namespace
}  // namespace smt
