// Going on from elsewhere on the command line: forks, checkpoints, rollback, and the rest of a request that broke off.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/e2e/server_process.h"
#include "tests/e2e/smt_command.h"

namespace smt::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class CliBranchingTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(server_.Start().ok()) << server_.Stderr(); }
  Result Smt(std::vector<std::string> args) { return RunSmt(server_.address(), std::move(args)); }
  // Greedy, so that the same log goes on with the same text.
  Result Say(const std::string& session, const std::string& prompt, const std::string& request_id) {
    return Smt({"generate", "--session=" + session, "--prompt=" + prompt, "--request_id=" + request_id,
                "--temperature=0", "--max_tokens=40", "--ignore_eos"});
  }
  ServerProcess server_{{.same_address = true}};
};

TEST_F(CliBranchingTest, AForkGoesOnAsItsParent) {
  ASSERT_EQ(Say("tale", "It was a dark night", "r1").code, 0);
  Result result = Smt({"session", "fork", "tale", "copy", "--label", "kind=copy"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("sessions/copy"), HasSubstr("kind=copy")));
  const Result parent = Say("tale", ", and then", "r2");
  EXPECT_EQ(parent.code, 0) << parent.err;
  EXPECT_EQ(Smt({"session", "delete", "tale"}).code, 0);
  EXPECT_EQ(Say("copy", ", and then", "r2").out, parent.out);
  EXPECT_EQ(Smt({"session", "fork", "tale"}).code, 3);
  EXPECT_EQ(Smt({"session", "fork", "copy", "copy"}).code, 4);
}

TEST_F(CliBranchingTest, ARollbackThroughARestartSaysTheSameAgain) {
  ASSERT_EQ(Say("tale", "It was a dark night", "r1").code, 0);
  Result result = Smt({"session", "checkpoint", "create", "tale", "night"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("sessions/tale/checkpoints/night"));
  const Result first = Say("tale", ", and then", "r2");
  result = Smt({"session", "checkpoint", "list", "tale"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("turn-0-0 "), HasSubstr("night "), HasSubstr("request_id r2")));

  result = Smt({"--json", "session", "rollback", "tale", "--turns=1"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(nlohmann::json::parse(result.out)["branch"], "1");
  server_.Kill();
  ASSERT_TRUE(server_.Start().ok()) << server_.Stderr();
  EXPECT_EQ(Say("tale", ", and then", "r3").out, first.out);
  EXPECT_EQ(Smt({"session", "rollback", "tale", "--checkpoint=night"}).code, 0);
  EXPECT_EQ(Say("tale", ", and then", "r4").out, first.out);
  EXPECT_EQ(Say("tale", ", and then", "r2").out, first.out) << "of the first branch, replayed";

  EXPECT_EQ(Smt({"session", "checkpoint", "delete", "tale", "night"}).code, 0);
  EXPECT_EQ(Smt({"session", "checkpoint", "delete", "tale", "night"}).code, 3);
  EXPECT_THAT(Smt({"session", "checkpoint", "list", "tale"}).out, Not(HasSubstr("night")));
}

TEST_F(CliBranchingTest, ABackupOfARunningServerIsServedByAnother) {
  ASSERT_EQ(Say("tale", "It was a dark night", "r1").code, 0);
  Result result = Smt({"session", "backup", "first"});
  EXPECT_EQ(result.code, 4);
  EXPECT_THAT(result.err, HasSubstr("--backup_dir"));

  TempDir dir;
  ASSERT_EQ(*server_.Terminate(), 0);
  server_.Use("smt_server", {"--backup_dir=" + dir.file("backups")});
  ASSERT_TRUE(server_.Start().ok()) << server_.Stderr();
  result = Smt({"session", "backup", "first"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, dir.file("backups/first") + "\n");
  const Result present = Say("tale", ", and then", "r2");
  EXPECT_EQ(present.code, 0) << present.err;
  result = Smt({"session", "backup", "first"});
  EXPECT_EQ(result.code, 4);
  EXPECT_THAT(result.err, HasSubstr("already"));
  EXPECT_EQ(Smt({"session", "backup", "../first"}).code, 2);
  result = Smt({"--json", "session", "backup"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(nlohmann::json::parse(result.out)["backup_id"], HasSubstr("backup-"));

  ServerProcess other({.store_dir = dir.file("backups/first")});
  ASSERT_TRUE(other.Start().ok()) << other.Stderr();
  EXPECT_EQ(RunSmt(other.address(), {"session", "verify", "tale"}).code, 0);
  const Result again = RunSmt(other.address(), {"generate", "--session=tale", "--prompt=, and then", "--temperature=0",
                                                "--max_tokens=40", "--ignore_eos"});
  EXPECT_EQ(again.out, present.out) << again.err;
}

TEST_F(CliBranchingTest, BadUsageSaysWhatIsWrong) {
  Result result = Smt({"session", "rollback", "tale"});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("--turns=N or --checkpoint=ID"));
  EXPECT_EQ(Smt({"session", "rollback", "tale", "--turns=1", "--checkpoint=a"}).code, 2);
  result = Smt({"session", "rollback", "tale", "--turns=0"});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("turns: is 0; allowed is 1 or more"));
  EXPECT_EQ(Smt({"session", "rollback", "nobody", "--turns=1"}).code, 3);
  result = Smt({"session", "checkpoint", "create", "tale", "turn-0-7"});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("turn-0-7"));
  EXPECT_EQ(Smt({"session", "checkpoint"}).code, 2);
  result = Smt({"generate", "--resume", "--session=tale"});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("--resume requires --request_id"));
  result = Smt({"generate", "--resume", "--session=tale", "--request_id=r", "--temperature=1"});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("leave out --temperature"));
  EXPECT_EQ(Smt({"generate", "--resume", "--session=tale", "--request_id=r"}).code, 3);
}

TEST_F(CliBranchingTest, WhatBrokeOffIsGotWithTheCommandThatSmtSays) {
  constexpr int64_t kTokens = 3000;
  ServerProcess undisturbed;
  ASSERT_TRUE(undisturbed.Start().ok()) << undisturbed.Stderr();
  const Outcome want = Generate(*undisturbed.NewClient(), Spec("story", "Once upon", kTokens));
  ASSERT_TRUE(want.error.ok()) << want.error.message;
  // A terminal's line ends after each part.
  const auto without_ends = [](const std::string& text) { return absl::StrReplaceAll(text, {{"\n", ""}}); };

  TempDir dir;
  Process::Options options;
  options.argv = {BinDir() + "/smt", "--address=" + server_.address(),       "generate",     "--prompt=Once upon",
                  "--seed=7",        absl::StrCat("--max_tokens=", kTokens), "--ignore_eos", "--temperature=0.9",
                  "--session=story"};
  options.output_dir = dir.path();
  auto process = Process::Start(options);
  for (int i = 0; i < 500 && process->Stdout().empty(); ++i) absl::SleepFor(absl::Milliseconds(20));
  server_.Kill();
  const auto code = process->Wait(absl::Seconds(20));
  ASSERT_TRUE(code.ok());
  ASSERT_EQ(*code, 5) << process->Stderr();
  const std::string before = process->Stdout(), said = process->Stderr(), command = "for the rest: smt ";
  ASSERT_THAT(said, HasSubstr(command));
  const std::string rest = said.substr(said.find(command) + command.size());
  const std::vector<std::string> args = absl::StrSplit(rest.substr(0, rest.find('\n')), ' ');

  ASSERT_TRUE(server_.Start().ok()) << server_.Stderr();
  const Result after = Smt(args);
  EXPECT_EQ(after.code, 0) << after.err;
  EXPECT_EQ(without_ends(before + after.out), without_ends(want.text));
  const Result replayed = Smt({args[0], args[1], args[2], args[3]});  // without what is there
  EXPECT_EQ(replayed.code, 0) << replayed.err;
  EXPECT_EQ(without_ends(replayed.out), without_ends(want.text));
  const Result again = Smt(args);
  EXPECT_EQ(again.out, after.out);
}

}  // namespace
}  // namespace smt::testing
