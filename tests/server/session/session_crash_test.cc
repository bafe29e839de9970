// Power cuts, failed syncs and full disks at every operation on the disk (tests/server/store/crash_file_system.h).
//
// The store has one write-ahead log, so whatever a power cut leaves is the effect of the first n writes, for some n at
// or after the last one that was acknowledged as durable. A first run writes down what a manager finds after each
// write; each later run is broken off somewhere, opened again and compared with that: what was acknowledged is there
// and equal, the rest is there whole or not at all, logs have no gaps, forks and rollbacks are whole.
#include "tests/server/session/session_crash_testing.h"

namespace smt {
namespace {

using absl::StatusCode;
using testing::HasSubstr;
using Left = CrashDisk::Left;
using Fault = CrashDisk::Fault;

class SessionCrashTest : public testing::Test {
 protected:
  // What a manager finds on this disk.
  absl::StatusOr<std::string> Recover(std::unique_ptr<CrashDisk> disk) {
    World world(dir_.path());
    world.disk = std::move(disk);
    if (world.disk->HoldsOrphanTables()) return absl::DataLossError("tables without CURRENT");
    RETURN_IF_ERROR(world.Open());
    ASSIGN_OR_RETURN(std::string found, Describe(*world.manager));
    // And it goes on.
    RETURN_IF_ERROR(world.manager->Create("new", absl::InfiniteDuration(), {}).status());
    return found;
  }

  // found_[n]: after the first n writes. operations_: of the disk, in all.
  void Rehearse() {
    World world(dir_.path());
    found_.push_back("");
    world.count.after_each = [&] {
      const auto found = Recover(world.disk->AfterPowerCut(Left::kAll, 0));
      EXPECT_OK(found);
      found_.push_back(found.ok() ? *found : "");
    };
    ASSERT_OK(Script(world).Run());
    world.manager.reset();
    ASSERT_EQ(world.count.done + 1, static_cast<int64_t>(found_.size()));
    operations_ = world.disk->operations();
    EXPECT_GT(found_.size(), 50u);
  }

  // The number of writes that is found to have been made, or why it is none that may be.
  std::string Judge(const absl::StatusOr<std::string>& found, const World& world) {
    if (!found.ok()) return found.status().ToString();
    for (int64_t n = world.acknowledged; n <= world.count.begun && n < std::ssize(found_); ++n) {
      if (*found == found_[static_cast<size_t>(n)]) return "";
    }
    std::string out = absl::StrCat("writes acknowledged: ", world.acknowledged, ", begun: ", world.count.begun.load());
    for (size_t n = 0; n < found_.size(); ++n) {
      if (*found == found_[n]) return absl::StrCat(out, ", found: ", n);
    }
    return absl::StrCat(out, ", found is what never was:\n", *found, "after the last acknowledged it was:\n",
                        found_[static_cast<size_t>(world.acknowledged)]);
  }

  TempDir dir_;
  std::vector<std::string> found_;
  int64_t operations_ = 0;
};

// Every operation on the disk, among them the ones of making the database and of closing it.
TEST_F(SessionCrashTest, APowerCutTakesBackNothingThatWasAcknowledged) {
  Rehearse();
  for (int64_t at = 1; at <= operations_ && !HasFailure(); ++at) {
    World world(dir_.path());
    world.disk->Inject(Fault::kStop, at);
    const absl::Status broken = Script(world).Run();
    world.manager.reset();
    for (const Left left : {Left::kNothing, at % 4 == 0 ? Left::kAll : Left::kPart}) {
      const std::string verdict = Judge(Recover(world.disk->AfterPowerCut(left, static_cast<uint64_t>(at))), world);
      EXPECT_EQ(verdict, "") << "stopped at operation " << at << " of " << operations_ << ", left "
                             << static_cast<int>(left) << ", the script said " << broken;
    }
  }
}

// That the test above can fail.
TEST_F(SessionCrashTest, AStoreThatDoesNotSyncIsFoundOut) {
  Rehearse();
  int lost = 0, tried = 0;
  for (int64_t at = 80;; at += 10) {
    World world(dir_.path());
    world.count.ignore_sync = true;
    world.disk->Inject(Fault::kStop, at);
    if (Script(world).Run().ok()) break;
    world.manager.reset();
    lost += !Judge(Recover(world.disk->AfterPowerCut(Left::kNothing, 0)), world).empty();
    ++tried;
  }
  EXPECT_GE(lost, 3) << "of " << tried;  // not those while the database is opened or closed, which syncs everything
}

TEST_F(SessionCrashTest, AFailedSyncEndsAllWritingAndTakesBackNothingThatWasAcknowledged) {
  Rehearse();
  int failed = 0;
  for (int64_t at = 1; at <= operations_ && !HasFailure(); ++at) {
    World world(dir_.path());
    world.disk->Inject(Fault::kFailSync, at);
    const absl::Status broken = Script(world).Run();
    if (!broken.ok() && world.manager != nullptr) {
      ++failed;
      EXPECT_THAT(broken, StatusIs(StatusCode::kUnavailable, HasSubstr("closed")));
      EXPECT_THAT(world.manager->Create("g", absl::InfiniteDuration(), {}),
                  StatusIs(StatusCode::kUnavailable, HasSubstr("closed")));
      EXPECT_THAT(world.manager->Health(), StatusIs(StatusCode::kUnavailable, HasSubstr("closed")));
      EXPECT_THAT(world.manager->Flush(), StatusIs(StatusCode::kUnavailable, HasSubstr("closed")));
    }
    world.manager.reset();
    const std::string verdict = Judge(Recover(world.disk->AfterPowerCut(Left::kNothing, 0)), world);
    EXPECT_EQ(verdict, "") << "first sync to fail at operation " << at << " of " << operations_ << ", the script said "
                           << broken;
    if (world.disk->struck_at() == 0) break;
    at = std::max(at, world.disk->struck_at());  // those before give the same run again
  }
  EXPECT_GT(failed, 30);
}

TEST_F(SessionCrashTest, AFullDiskRefusesWhatItCannotHoldAndGoesOnWhenThereIsRoom) {
  Rehearse();
  int refused = 0;
  for (int64_t at = 1; at <= operations_ && !HasFailure(); ++at) {
    SCOPED_TRACE(absl::StrCat("full from operation ", at, " of ", operations_));
    World world(dir_.path());
    world.disk->Inject(Fault::kFull, at);
    const absl::Status broken = Script(world).Run();
    if (world.manager == nullptr) {  // not even opened
      EXPECT_THAT(broken, StatusIs(StatusCode::kResourceExhausted, HasSubstr("")));
      world.disk->Heal();
      EXPECT_EQ(Judge(Recover(world.disk->AfterPowerCut(Left::kNothing, 0)), world), "");
      continue;
    }
    const int64_t acknowledged = world.acknowledged;
    if (!broken.ok()) {
      ++refused;
      EXPECT_THAT(broken, StatusIs(StatusCode::kResourceExhausted, HasSubstr("no space left")));
      EXPECT_FALSE(world.manager->Create("g", absl::InfiniteDuration(), {}).ok());
    }
    world.disk->Heal();
    world.RewindClock();
    const auto found = Describe(*world.manager);
    EXPECT_EQ(Judge(found, world), "") << "the script said " << broken;
    // What comes now is durable, beside what was acknowledged before.
    EXPECT_OK(world.manager->Create("h", absl::InfiniteDuration(), {}));
    EXPECT_EQ(world.acknowledged, acknowledged);
    auto cut = world.disk->AfterPowerCut(Left::kNothing, 0);
    world.manager.reset();
    World after(dir_.path());
    after.disk = std::move(cut);
    ASSERT_OK(after.Open());
    EXPECT_OK(after.manager->Get("h"));
    ASSERT_OK(after.manager->Delete("h", std::nullopt));
    EXPECT_EQ(Judge(Describe(*after.manager), world), "") << "the script said " << broken;
  }
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace smt
