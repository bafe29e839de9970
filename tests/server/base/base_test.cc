#include <gmock/gmock.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/synchronization/notification.h"
#include "model/base/strings.h"
#include "server/base/flag_sources.h"
#include "server/base/log.h"
#include "server/base/thread_pool.h"
#include "tests/server/store/status_testing.h"

ABSL_FLAG(int32_t, test_slots, 4, "For tests.");
ABSL_FLAG(bool, test_exact, true, "For tests.");
ABSL_FLAG(absl::Duration, test_delay, absl::Seconds(5), "For tests.");
ABSL_FLAG(std::string, test_folder, "", "For tests.");

namespace smt {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(LogTest, ALineIsOneJsonObjectWithItsFields) {
  const std::string line =
      FormatLogLine(absl::FromUnixMillis(1'700'000'000'123), LogLevel::kWarning, "hello \"you\"\n",
                    {{"text", "a"}, {"count", 3}, {"ratio", 0.5}, {"flag", true}, {"time", absl::Milliseconds(1500)}});
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json["ts"], "2023-11-14T22:13:20.123Z");
  EXPECT_EQ(json["level"], "warning");
  EXPECT_EQ(json["msg"], "hello \"you\"\n");
  EXPECT_EQ(json["text"], "a");
  EXPECT_EQ(json["count"], 3);
  EXPECT_EQ(json["flag"], true);
  EXPECT_EQ(json["time"], 1.5);
}

TEST(LogTest, BytesThatAreNoUtf8DoNotBreakTheLine) {
  EXPECT_TRUE(nlohmann::json::accept(FormatLogLine(absl::Now(), LogLevel::kInfo, "\xFF", {{"x", "\xC3"}})));
}

TEST(LogTest, LevelsAreReadByName) {
  EXPECT_EQ(*ParseLogLevel("error"), LogLevel::kError);
  EXPECT_THAT(ParseLogLevel("loud"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("debug, info")));
}

class FlagSourcesTest : public testing::Test {
 protected:
  absl::FlagSaver saver_;
  FlagSourcesOptions options_ = {.file_part = "base_test"};
};

TEST_F(FlagSourcesTest, AFileSetsFlagsFromYamlOrJson) {
  ASSERT_OK(ApplyConfigText("test_slots: 8\ntest_exact: false\ntest_delay: 500ms\ntest_folder: /a b\n", "f", options_));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_slots), 8);
  EXPECT_FALSE(absl::GetFlag(FLAGS_test_exact));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_delay), absl::Milliseconds(500));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_folder), "/a b");
  ASSERT_OK(ApplyConfigText(R"({"test_slots": 16})", "f", options_));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_slots), 16);
  EXPECT_OK(ApplyConfigText("", "f", options_));
}

TEST_F(FlagSourcesTest, AllProblemsOfAFileAreToldWithTheNearestNames) {
  const absl::Status status = ApplyConfigText(
      "test_slot: 8\ntest_exact: maybe\ntest_delay: soon\ntest_slots: [1]\nqqq: 1\n", "f.yaml", options_);
  EXPECT_THAT(status,
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("f.yaml line 1: unknown key 'test_slot' (did you mean 'test_slots'?)"),
                             HasSubstr("test_exact = 'maybe': must be true or false"),
                             HasSubstr("test_delay = 'soon': must be a duration"),
                             HasSubstr("test_slots must be a single value"), HasSubstr("line 5: unknown key 'qqq'"))));
}

TEST_F(FlagSourcesTest, WhatIsNoMappingIsRefused) {
  EXPECT_THAT(ApplyConfigText("[1, 2]", "f", options_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("mapping")));
  EXPECT_THAT(ApplyConfigText("a: [", "f", options_), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("YAML")));
}

TEST_F(FlagSourcesTest, TheEnvironmentSetsFlagsByUpperCaseName) {
  ASSERT_OK(ApplyEnvironment({"SMT_TEST_SLOTS=3", "SMT_SOMETHING_ELSE=1", "PATH=/"}, options_));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_slots), 3);
  EXPECT_THAT(ApplyEnvironment({"SMT_TEST_SLOTS=many"}, options_),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("SMT_TEST_SLOTS"), HasSubstr("'many'"), HasSubstr("integer"))));
}

TEST(ThreadPoolTest, RunsEverythingThatWasScheduled) {
  std::atomic<int> ran{0};
  {
    ThreadPool pool("test", 3, 1000);
    for (int i = 0; i < 500; ++i) ASSERT_TRUE(pool.TrySchedule([&] { ++ran; }));
    pool.Shutdown();
    EXPECT_FALSE(pool.TrySchedule([&] { ++ran; }));
  }
  EXPECT_EQ(ran, 500);
}

TEST(ThreadPoolTest, AFullQueueRefuses) {
  absl::Notification gate;
  ThreadPool pool("test", 1, 2);
  std::atomic<bool> began{false};
  ASSERT_TRUE(pool.TrySchedule([&] {
    began = true;
    gate.WaitForNotification();
  }));
  while (!began) std::this_thread::yield();
  EXPECT_TRUE(pool.TrySchedule([] {}));
  EXPECT_TRUE(pool.TrySchedule([] {}));
  EXPECT_FALSE(pool.TrySchedule([] {}));
  gate.Notify();
}

TEST(StringsTest, NumbersAreWrittenExactly) {
  EXPECT_EQ(StrCat("a", std::string_view("b"), 1, -2L, 0.1f, 1e100), "ab1-20.11e+100");
  EXPECT_EQ(StrJoin(std::vector<std::string>{"a", "b"}, ", "), "a, b");
}

}  // namespace
}  // namespace smt
