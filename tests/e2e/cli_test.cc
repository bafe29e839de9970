// The programs as a person uses them: `smt` against a real server, and a server that cannot start.
#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/e2e/server_process.h"
#include "tests/e2e/smt_command.h"

namespace smt::testing {
namespace {

using ::testing::HasSubstr;

class CliTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = new ServerProcess();
    ASSERT_TRUE(server_->Start().ok()) << server_->Stderr();
  }
  static void TearDownTestSuite() {
    delete server_;
    server_ = nullptr;
  }

  Result Smt(std::vector<std::string> args, const std::string& input = "") {
    return RunSmt(server_->address(), std::move(args), input);
  }

  static ServerProcess* server_;
};
ServerProcess* CliTest::server_ = nullptr;

TEST_F(CliTest, GenerateStreamsTextToStdoutAndWhereTheSessionStandsToStderr) {
  const Result result = Smt({"generate", "--prompt=Once upon a time", "--session=cli", "--max_tokens=12", "--seed=1"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_GT(result.out.size(), 5U);
  EXPECT_THAT(result.err, HasSubstr("session cli at position"));
}

TEST_F(CliTest, TheSameSeedGivesTheSameTextFromAFlagAndFromStdin) {
  const Result flag = Smt({"generate", "--prompt=The ship", "--max_tokens=20", "--seed=3"});
  const Result input = Smt({"generate", "--max_tokens=20", "--seed=3"}, "The ship");
  EXPECT_EQ(flag.code, 0) << flag.err;
  EXPECT_EQ(flag.out, input.out);
}

TEST_F(CliTest, AnEmptyPromptIsAPromptAndNotTheNextArgument) {
  const Result result = Smt({"--json", "generate", "--prompt=", "--max_tokens=3"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("\"prompt_tokens\":\"1\""));  // bos alone
  EXPECT_THAT(result.out, HasSubstr("\"generated_tokens\":\"3\""));
}

TEST_F(CliTest, JsonIsOneObjectAnEvent) {
  const Result result = Smt({"--json", "generate", "--prompt=Once", "--max_tokens=5", "--seed=1", "--logprobs=2"});
  EXPECT_EQ(result.code, 0) << result.err;
  std::vector<std::string> kinds;
  size_t ids = 0;
  for (const auto line : absl::StrSplit(result.out, '\n', absl::SkipEmpty())) {
    const nlohmann::json event = nlohmann::json::parse(std::string(line));
    kinds.push_back(event.begin().key());
    if (event.contains("chunk")) {
      ids += event["chunk"]["token_ids"].size();
      EXPECT_EQ(event["chunk"]["logprobs"].size(), event["chunk"]["token_ids"].size());
      EXPECT_EQ(event["chunk"]["logprobs"][0]["alternatives"].size(), 2U);
    }
  }
  EXPECT_EQ(kinds.front(), "started");
  EXPECT_EQ(kinds.back(), "finished");
  EXPECT_EQ(ids, 5U);
}

TEST_F(CliTest, ErrorsSayWhatIsWrongAndExitWithADocumentedCode) {
  Result result = Smt({"generate", "--prompt=x", "--temperature=nan", "--top_p=0"});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("temperature"));
  EXPECT_THAT(result.err, HasSubstr("top_p"));
  result = Smt({"session", "show", "nobody"});
  EXPECT_EQ(result.code, 3);
  EXPECT_THAT(result.err, HasSubstr("nobody"));
  result = Smt({"generate", "--no-create", "--session=nobody", "--prompt=x"});
  EXPECT_EQ(result.code, 3);
  EXPECT_EQ(Smt({"generate", "--nonsense"}).code, 2);
  result = Smt({"generate", "--prompt=x", "--patience=5"});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("--patience requires --session"));
  result = Smt({"generate", "--prompt=x", "--session=s", "--patience=-1"});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("--patience"));
  result = Smt({"--address=127.0.0.1:1", "health"});
  EXPECT_EQ(result.code, 5);
  EXPECT_THAT(result.err, HasSubstr("--address"));
}

TEST_F(CliTest, AWordThatIsNoCommandIsNamedWithThoseThatAre) {
  const Result unknown = Smt({"session", "get", "cli"});
  EXPECT_EQ(unknown.code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("smt session: there is no command 'get'; there are"));
  EXPECT_THAT(unknown.err, HasSubstr("rollback"));
  EXPECT_THAT(Smt({"speak"}).err, HasSubstr("smt: there is no command 'speak'; there are generate, "));
  const Result none = Smt({"session"});
  EXPECT_EQ(none.code, 2);
  EXPECT_THAT(none.err, HasSubstr("subcommand is required"));
}

TEST_F(CliTest, AFlagOutOfRangeIsToldInAPersonsNumbers) {
  const Result result = Smt({"generate", "--resume", "--session=s", "--request_id=r", "--after_position=0"});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("--after_position: Value 0 not in range 1 to 9223372036854775807"));
}

TEST_F(CliTest, OfTextThatIsNotUtf8OnlyTheFieldIsTold) {
  const Result result = Smt({"session", "create", "\xff\xfe"});
  EXPECT_EQ(result.code, 2);
  EXPECT_TRUE(result.err.starts_with("smt: invalid argument: session_id: is ")) << result.err;
}

TEST_F(CliTest, CtrlCEndsTheRequestAndSaysWhereTheSessionStands) {
  TempDir dir;
  Process::Options options;
  options.argv = {BinDir() + "/smt", "--address=" + server_->address(),
                  "generate",        "--prompt=Once upon",
                  "--session=ctrlc", "--max_tokens=1000000",
                  "--ignore_eos"};
  options.output_dir = dir.path();
  auto process = Process::Start(options);
  for (int i = 0; i < 500 && process->Stdout().empty(); ++i) absl::SleepFor(absl::Milliseconds(20));
  process->Signal(SIGINT);
  const auto code = process->Wait(absl::Seconds(10));
  ASSERT_TRUE(code.ok()) << "still running 10 s after Ctrl-C";
  EXPECT_EQ(*code, 130);
  v1::Session session;
  ASSERT_TRUE(server_->NewClient()->GetSession("sessions/ctrlc", &session).ok());
  EXPECT_THAT(process->Stderr(), HasSubstr(absl::StrCat("session ctrlc at position ", session.position())));
  EXPECT_FALSE(session.active());
}

// A server of its own, which goes away while `smt` streams from it.
class PatienceTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(server_.Start().ok()) << server_.Stderr(); }
  absl::StatusOr<Process> Stream(int64_t tokens, const TempDir& dir) {
    Process::Options options;
    options.argv = {BinDir() + "/smt", "--address=" + server_.address(),
                    "generate",        "--prompt=Once upon",
                    "--seed=7",        absl::StrCat("--max_tokens=", tokens),
                    "--ignore_eos",    "--temperature=0.9",
                    "--session=story", "--patience=120"};
    options.output_dir = dir.path();
    return Process::Start(options);
  }
  static bool Prints(Process& process) {
    for (int i = 0; i < 500 && process.Stdout().empty(); ++i) absl::SleepFor(absl::Milliseconds(20));
    return !process.Stdout().empty();
  }
  ServerProcess server_{{.same_address = true}};
};

TEST_F(PatienceTest, TheTextGoesOnThroughAKill) {
  constexpr int64_t kTokens = 3000;
  ServerProcess undisturbed;
  ASSERT_TRUE(undisturbed.Start().ok()) << undisturbed.Stderr();
  const Outcome want = Generate(*undisturbed.NewClient(), Spec("story", "Once upon", kTokens));
  ASSERT_TRUE(want.error.ok()) << want.error.message;

  TempDir dir;
  absl::StatusOr<Process> process = Stream(kTokens, dir);
  ASSERT_TRUE(Prints(*process));
  server_.Kill();
  ASSERT_TRUE(process->Running()) << "killed too late";
  ASSERT_TRUE(server_.Start().ok()) << server_.Stderr();
  const auto code = process->Wait(absl::Seconds(60));
  ASSERT_TRUE(code.ok()) << process->Stderr();
  EXPECT_EQ(*code, 0) << process->Stderr();
  EXPECT_EQ(absl::StripTrailingAsciiWhitespace(process->Stdout()), absl::StripTrailingAsciiWhitespace(want.text));
}

TEST_F(PatienceTest, CtrlCEndsItWhileTheServerIsAway) {
  TempDir dir;
  absl::StatusOr<Process> process = Stream(1'000'000, dir);
  ASSERT_TRUE(Prints(*process));
  server_.Kill();
  absl::SleepFor(absl::Milliseconds(500));
  process->Signal(SIGINT);
  const auto code = process->Wait(absl::Seconds(20));
  ASSERT_TRUE(code.ok()) << "still running 20 s after Ctrl-C";
  EXPECT_EQ(*code, 130) << process->Stderr();
}

TEST_F(CliTest, SessionsAreCreatedListedUpdatedAndDeleted) {
  EXPECT_EQ(Smt({"session", "create", "notes", "--label=team=red", "--ttl=3600"}).code, 0);
  EXPECT_EQ(Smt({"session", "create", "notes"}).code, 4);
  EXPECT_THAT(Smt({"session", "show", "notes"}).out, HasSubstr("team=red"));
  EXPECT_EQ(Smt({"session", "update", "notes", "--label=team=blue"}).code, 0);
  EXPECT_THAT(Smt({"session", "show", "notes"}).out, HasSubstr("team=blue"));
  EXPECT_THAT(Smt({"session", "list"}).out, HasSubstr("notes"));
  EXPECT_EQ(Smt({"session", "delete", "notes"}).code, 0);
  EXPECT_EQ(Smt({"session", "delete", "notes"}).code, 3);
}

TEST_F(CliTest, ASessionLeavesAsAFileComesBackAndIsVerified) {
  TempDir dir;
  const std::string path = dir.path() + "/leaves.safetensors";
  ASSERT_EQ(Smt({"generate", "--prompt=The old man", "--session=leaves", "--max_tokens=30", "--seed=1"}).code, 0);
  Result result = Smt({"session", "export", "leaves", path});
  EXPECT_EQ(result.code, 0) << result.err;
  result = Smt({"session", "import", path, "--id=comes", "--label=from=leaves"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("from=leaves"));
  result = Smt({"session", "verify", "comes"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("identical"));
  const auto go_on = [&](const std::string& session) {
    return Smt({"generate", "--continue", "--session=" + session, "--max_tokens=20", "--seed=2"}).out;
  };
  EXPECT_EQ(go_on("comes"), go_on("leaves"));
  result = Smt({"session", "repair", "comes"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("nothing to repair"));

  EXPECT_EQ(Smt({"session", "import", path, "--id=comes"}).code, 4);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  EXPECT_EQ(Smt({"session", "import", path}).code, 6);
  EXPECT_EQ(Smt({"session", "export", "nobody", path + ".none"}).code, 3);
  EXPECT_FALSE(std::filesystem::exists(path + ".none"));
}

TEST_F(CliTest, TokenizeAndDetokenizeAreInverse) {
  const std::string text = "It's  a “test”, 3.14 — ünïcödé\n";
  const Result ids = Smt({"tokenize"}, text);
  EXPECT_EQ(ids.code, 0) << ids.err;
  EXPECT_EQ(Smt({"detokenize"}, ids.out).out, text);
}

TEST_F(CliTest, ScoreGivesEveryTokenAndTheirSum) {
  const Result result = Smt({"--json", "score", "--text=The old man sat down."});
  EXPECT_EQ(result.code, 0) << result.err;
  const std::vector<std::string> lines = absl::StrSplit(result.out, '\n', absl::SkipEmpty());
  ASSERT_GT(lines.size(), 3U);
  double sum = 0;
  for (size_t i = 0; i + 1 < lines.size(); ++i) sum += nlohmann::json::parse(lines[i]).value("logprob", 0.0);
  EXPECT_NEAR(nlohmann::json::parse(lines.back())["total_logprob"].get<double>(), sum, 1e-3);
  EXPECT_LT(sum, -5);
}

TEST_F(CliTest, ModelAndHealthAnswer) {
  EXPECT_THAT(Smt({"model"}).out, HasSubstr("fingerprint"));
  EXPECT_EQ(Smt({"health"}).code, 0);
  EXPECT_EQ(Smt({"health", "--service=liveness"}).code, 0);
}

// A server that cannot serve says why in one sentence and exits with a code other than 0.
std::string WhyNot(ServerProcess& server) {
  EXPECT_FALSE(server.Start(absl::Seconds(30)).ok());
  const auto code = server.WaitForExit(absl::Seconds(5));
  EXPECT_TRUE(code.ok() && *code != 0 && *code < 128) << "exit " << (code.ok() ? *code : -1);
  EXPECT_EQ(server.Stdout(), "");
  return server.Stderr();
}

TEST(ServerStartTest, APortInUseIsNamed) {
  ServerProcess first;
  ASSERT_TRUE(first.Start().ok());
  ServerProcess second({.flags = {"--listen_address=" + first.address()}});
  EXPECT_THAT(WhyNot(second), HasSubstr(first.address()));
}

TEST(ServerStartTest, AStoreLockedByAnotherServerIsNamed) {
  ServerProcess first;
  ASSERT_TRUE(first.Start().ok());
  ServerProcess second({.store_dir = first.store_dir()});
  EXPECT_THAT(WhyNot(second), HasSubstr(first.store_dir()));
}

// The fields of a line of the server's log; null where there is none.
nlohmann::json LogLine(const ServerProcess& server, std::string_view message) {
  for (const auto line : absl::StrSplit(server.Stderr(), '\n', absl::SkipEmpty())) {
    nlohmann::json fields = nlohmann::json::parse(std::string(line), nullptr, false);
    if (fields.is_object() && fields.value("msg", "") == message) return fields;
  }
  return nullptr;
}

TEST(ServerStartTest, TheLogSaysHowManySlotsFitAndWhy) {
  for (const auto& [flag, slots] : {std::pair("--max_slots=3", 3), std::pair("--max_slots=0", 1024)}) {
    ServerProcess server({.flags = {flag}});
    ASSERT_TRUE(server.Start().ok()) << server.Stderr();
    const nlohmann::json line = LogLine(server, "slot capacity");
    ASSERT_TRUE(line.is_object()) << server.Stderr();
    const int64_t fit = line["fit"], slot = line["slot_bytes"], work = line["work_bytes"], free = line["free_bytes"];
    EXPECT_EQ(line["slots"], std::min<int64_t>(slots, fit));
    EXPECT_LE(work + fit * slot, free);
    EXPECT_GT(work + (fit + 1) * slot, free);
    EXPECT_LE(free, line["device_bytes"].get<int64_t>());
    v1::Model model;
    ASSERT_TRUE(server.NewClient()->GetModel(&model).ok());
    EXPECT_EQ(model.runtime().slots(), line["slots"]);
    EXPECT_EQ(model.runtime().slot_bytes(), slot);
  }
}

TEST(ServerStartTest, MaxSlotsOutOfRangeIsNamed) {
  for (const char* flag : {"--max_slots=-1", "--max_slots=65537"}) {
    ServerProcess server({.flags = {flag}});
    EXPECT_THAT(WhyNot(server), HasSubstr(absl::StrCat(flag, ": must be 0 to 65536")));
  }
}

TEST(ServerStartTest, AWarmUpRunsTheBatchesThatFitBeforeTheServerIsReady) {
  ServerProcess server({.flags = {"--max_slots=4", "--warmup_batches=1,4,5"}});
  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  const nlohmann::json line = LogLine(server, "warmed up");
  ASSERT_TRUE(line.is_object()) << server.Stderr();
  EXPECT_EQ(line["batches"], "1,4");
  EXPECT_GT(line["seconds"], 0.0);
  EXPECT_FALSE(line.contains("stopped"));
  EXPECT_LT(server.Stderr().find("warmed up"), server.Stderr().find("\"msg\":\"ready\""));
}

TEST(ServerStartTest, OnACpuThereIsNoWarmUpUnlessBatchesAreNamed) {
  for (const std::vector<std::string>& flags : {std::vector<std::string>{}, {"--warmup_batches="}}) {
    ServerProcess server({.flags = flags});
    ASSERT_TRUE(server.Start().ok()) << server.Stderr();
    EXPECT_TRUE(LogLine(server, "warmed up").is_null());
  }
}

TEST(ServerStartTest, BatchesThatAreNoneAreNamed) {
  for (const char* batches : {"0", "-1", "four", "1,,4", "1,4,", "1.5", "1048577", "99999999999", "1;4"}) {
    const std::string flag = absl::StrCat("--warmup_batches=", batches);
    ServerProcess server({.flags = {flag}});
    EXPECT_THAT(WhyNot(server), HasSubstr(flag + ": must be numbers of 1 to 1048576 with commas between them, auto, or "
                                                 "empty for none"));
  }
}

TEST(ServerStartTest, AModelFolderThatMissesAFileIsNamed) {
  for (const char* missing : {"config.json", "model.safetensors", "merges.txt"}) {
    TempDir dir;
    std::filesystem::copy("models/books-6m", dir.file("model"));
    std::filesystem::remove(dir.file("model") + "/" + missing);
    ServerProcess server({.model_dir = dir.file("model")});
    EXPECT_THAT(WhyNot(server), HasSubstr(missing));
  }
}

TEST(ServerStartTest, AStoreMadeByAnotherModelIsRefusedPerSession) {
  TempDir dir;
  std::filesystem::copy("models/books-6m", dir.file("model"));
  ServerProcess first({.model_dir = dir.file("model")});
  ASSERT_TRUE(first.Start().ok()) << first.Stderr();
  ASSERT_TRUE(Generate(*first.NewClient(), Spec("old", "Once", 4)).error.ok());
  first.Kill();
  {  // one bit of one weight
    std::fstream weights(dir.file("model") + "/model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
    weights.seekg(-3, std::ios::end);
    const char byte = static_cast<char>(weights.get() ^ 1);
    weights.seekp(-3, std::ios::end);
    weights.put(byte);
  }
  ASSERT_TRUE(first.Start().ok()) << first.Stderr();
  auto client = first.NewClient();
  EXPECT_EQ(Generate(*client, Spec("old", " upon", 4)).error.code, grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_TRUE(Generate(*client, Spec("new", "Once", 4)).error.ok());
}

}  // namespace
}  // namespace smt::testing
