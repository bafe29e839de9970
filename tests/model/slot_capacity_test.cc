#include "model/slot_capacity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace smt {
namespace {

// 8 GB free of 10, 1 GB of them for the work area, slots of 2 MB: 3,500 fit.
constexpr SlotCapacity kDevice = {
    .total_bytes = 10'000'000'000, .free_bytes = 8'000'000'000, .work_bytes = 1'000'000'000, .slot_bytes = 2'000'000};

TEST(SlotCapacityTest, SlotsFitIntoWhatTheWorkAreaLeaves) {
  EXPECT_EQ(kDevice.fits(), 3500);
  SlotCapacity tight = kDevice;
  tight.free_bytes = tight.work_bytes + tight.slot_bytes;
  EXPECT_EQ(tight.fits(), 1);
  --tight.free_bytes;
  EXPECT_EQ(tight.fits(), 0);
  tight.free_bytes = 0;  // less than the work area
  EXPECT_EQ(tight.fits(), 0);
}

TEST(SlotCapacityTest, NothingFitsWhereNothingIsKnown) {
  EXPECT_FALSE(SlotCapacity().known());
  EXPECT_EQ(SlotCapacity().fits(), 0);
}

TEST(SlotCapacityTest, AsManyAsWereAskedForOrAnErrorWithTheArithmetic) {
  EXPECT_EQ(*SlotsThatFit(kDevice, 1, false), 1);
  EXPECT_EQ(*SlotsThatFit(kDevice, 3500, false), 3500);
  EXPECT_EQ(SlotsThatFit(kDevice, 3501, false).status(),
            absl::ResourceExhaustedError("slots is 3501: at 2000000 bytes each they need 7002 MB; the device offers "
                                         "8000 MB of its 10000 MB, 1000 MB of them for the work area; allowed: 1 to "
                                         "3500"));
  EXPECT_FALSE(SlotsThatFit(kDevice, std::numeric_limits<int32_t>::max(), false).ok());
}

TEST(SlotCapacityTest, FewerWhereThatIsAskedFor) {
  EXPECT_EQ(*SlotsThatFit(kDevice, 1024, true), 1024);
  EXPECT_EQ(*SlotsThatFit(kDevice, 5000, true), 3500);
  SlotCapacity full = kDevice;
  full.free_bytes = full.work_bytes;
  for (const bool fewer : {true, false}) {
    const absl::Status status = SlotsThatFit(full, 16, fewer).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("for the work area; not one slot fits"));
  }
}

TEST(SlotCapacityTest, TheMachineKeepsATenthForTheRestOfTheProgram) {
  const SlotCapacity machine = MachineCapacity(1'000'000);
  EXPECT_GT(machine.total_bytes, 0);
  EXPECT_NEAR(static_cast<double>(machine.free_bytes), 0.9 * static_cast<double>(machine.total_bytes), 100);
  EXPECT_EQ(machine.fits(), machine.free_bytes / 1'000'000);
}

}  // namespace
}  // namespace smt
