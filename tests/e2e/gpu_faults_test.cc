// A server that is to run on a GPU where there is none, where the driver is too old, and where another process has most
// of its memory. What needs a GPU is skipped where there is none.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/e2e/server_process.h"
#include "tests/testing/process.h"

namespace smt::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kDevice = 5;  // exit code

// The stub in the place of the driver, for processes that are started while this is there.
class StubDriver {
 public:
  explicit StubDriver(int version) {
    if (const char* path = std::getenv("LD_LIBRARY_PATH")) before_ = path;
    setenv("LD_LIBRARY_PATH", absl::StrCat(Folder(), before_ ? ":" : "", before_.value_or("")).c_str(), 1);
    setenv("STUB_DRIVER_VERSION", absl::StrCat(version).c_str(), 1);
  }
  ~StubDriver() {
    unsetenv("STUB_DRIVER_VERSION");
    before_ ? setenv("LD_LIBRARY_PATH", before_->c_str(), 1) : unsetenv("LD_LIBRARY_PATH");
  }
  StubDriver(const StubDriver&) = delete;
  StubDriver& operator=(const StubDriver&) = delete;

  static std::string Folder() { return BinDir() + "/stub_driver"; }
  static bool There() { return std::filesystem::exists(Folder() + "/libcuda.so.1"); }

 private:
  std::optional<std::string> before_;
};

class GpuAbsentTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!StubDriver::There()) GTEST_SKIP() << "there is no " << StubDriver::Folder();
    if (!std::filesystem::exists(BinDir() + "/libsmt_cuda.so")) GTEST_SKIP() << "this build has no libsmt_cuda.so";
  }

  // What a server says that insists on a GPU.
  static std::string Refusal(int driver_version) {
    const StubDriver driver(driver_version);
    ServerProcess server({.device = "cuda:0"});
    EXPECT_FALSE(server.Start().ok());
    const auto exit_code = server.WaitForExit(absl::Seconds(10));
    EXPECT_TRUE(exit_code.ok()) << exit_code.status();
    EXPECT_EQ(exit_code.value_or(-1), kDevice);
    return server.Stderr();
  }
};

TEST_F(GpuAbsentTest, ADriverThatIsTooOldIsNamedWithWhatIsNeeded) {
  EXPECT_THAT(Refusal(11080),
              HasSubstr("device cuda:0: the NVIDIA driver is too old: it supports CUDA 11.8, this build needs "));
}

TEST_F(GpuAbsentTest, ADriverWithoutADeviceIsToldFromNoDriver) {
  EXPECT_THAT(Refusal(99000), HasSubstr("device cuda:0: the NVIDIA driver shows no device"));
  EXPECT_THAT(Refusal(0), HasSubstr("device cuda:0: no NVIDIA driver is loaded"));
}

TEST_F(GpuAbsentTest, AutoServesOnTheCpuAndSaysWhy) {
  const StubDriver driver(11080);
  ServerProcess server({.device = "auto"});
  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  EXPECT_THAT(server.Stdout(), HasSubstr("\"device\":\"cpu\""));
  EXPECT_THAT(server.Stderr(), HasSubstr("the NVIDIA driver is too old"));
}

// Takes the GPU's memory but for `leave_bytes`. Null where there is no GPU.
struct Tenant {
  std::unique_ptr<Process> process;
  int64_t taken_bytes = 0, free_bytes = 0, total_bytes = 0;
};
std::optional<Tenant> Occupy(const TempDir& dir, int64_t leave_bytes) {
  const std::string program = BinDir() + "/smt_device_tenant";
  if (!std::filesystem::exists(program)) return std::nullopt;
  auto process = Process::Start({.argv = {program, absl::StrCat("--leave_bytes=", leave_bytes)},
                                 .environment = {},
                                 .stdin_text = "",
                                 .output_dir = dir.path(),
                                 .name = "tenant"});
  if (!process.ok()) return std::nullopt;
  Tenant tenant = {.process = std::make_unique<Process>(*std::move(process))};
  while (tenant.process->Running()) {
    const auto line = nlohmann::json::parse(tenant.process->Stdout(), nullptr, false);
    if (line.is_object()) {
      tenant.taken_bytes = line["taken_bytes"];
      tenant.free_bytes = line["free_bytes"];
      tenant.total_bytes = line["total_bytes"];
      return tenant;
    }
    absl::SleepFor(absl::Milliseconds(20));
  }
  EXPECT_EQ(tenant.process->Wait(absl::Seconds(1)).value_or(-1), 77) << tenant.process->Stderr();
  return std::nullopt;
}

// The line of a log with this message.
nlohmann::json LogLine(const std::string& log, const std::string& message) {
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);) {
    nlohmann::json parsed = nlohmann::json::parse(line, nullptr, false);
    if (parsed.is_object() && parsed.value("msg", "") == message) return parsed;
  }
  return {};
}

TEST(GpuMemoryTest, MemoryThatAnotherProcessHasIsNotCountedForSlots) {
  constexpr int64_t kLeft = int64_t{12} << 30;
  const TempDir dir;
  const auto tenant = Occupy(dir, kLeft);
  if (!tenant) GTEST_SKIP() << "no GPU";
  ServerProcess server({.device = "cuda:0", .flags = {"--max_slots=0", "--warmup_batches=1,8"}});
  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  const nlohmann::json capacity = LogLine(server.Stderr(), "slot capacity");
  ASSERT_TRUE(capacity.is_object()) << server.Stderr();
  const int64_t free_bytes = capacity["free_bytes"], work_bytes = capacity["work_bytes"];
  const int64_t slot_bytes = capacity["slot_bytes"], fit = capacity["fit"];
  EXPECT_EQ(capacity["device_bytes"], tenant->total_bytes);
  // Context, kernels and weights have come out of what was left.
  EXPECT_LT(free_bytes, kLeft);
  EXPECT_GT(free_bytes, kLeft - (int64_t{2} << 30));
  EXPECT_EQ(fit, (free_bytes - work_bytes) / slot_bytes);
  const Outcome outcome = Generate(*server.NewClient(), Spec("", "Once upon a time", 40));
  EXPECT_TRUE(outcome.error.ok()) << outcome.error.message;
  EXPECT_EQ(outcome.ids.size(), 40u);
  ASSERT_TRUE(server.Terminate().ok());

  // More than fit, by the same arithmetic.
  ASSERT_LT(fit, 65536);
  ServerProcess greedy({.device = "cuda:0", .flags = {"--max_slots=65536"}});
  EXPECT_FALSE(greedy.Start().ok());
  EXPECT_EQ(greedy.WaitForExit(absl::Seconds(10)).value_or(-1), kDevice);
  EXPECT_THAT(greedy.Stderr(), HasSubstr(absl::StrCat("--max_slots=65536: slots is 65536: at ", slot_bytes, " bytes")));
  EXPECT_THAT(greedy.Stderr(), HasSubstr("; allowed: 1 to "));
}

TEST(GpuMemoryTest, WeightsThatDoNotFitAreAFaultOfTheDeviceAtTheStart) {
  const TempDir dir;
  const auto tenant = Occupy(dir, int64_t{600} << 20);  // a context, and not much more
  if (!tenant) GTEST_SKIP() << "no GPU";
  ServerProcess server({.device = "cuda:0"});
  EXPECT_FALSE(server.Start().ok());
  EXPECT_EQ(server.WaitForExit(absl::Seconds(10)).value_or(-1), kDevice);
  EXPECT_THAT(server.Stderr(), HasSubstr("\"msg\":\"cannot start\""));
  EXPECT_THAT(server.Stderr(), Not(HasSubstr("terminate called")));
}

}  // namespace
}  // namespace smt::testing
