// smt_model as a process: what it prints, what it writes, how it fails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "model/io/safetensors.h"
#include "model/io/safetensors_writer.h"
#include "tests/model/model_folders.h"
#include "tests/testing/process.h"

namespace smt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Process;
using testing::TempDir;

constexpr char kBooks[] = "models/books-6m";
constexpr char kFixture[] = "tests/golden/books-6m/fixture.safetensors";

struct Result {
  int code;
  std::string out, err;
};

class SmtModelTest : public ::testing::Test {
 protected:
  Result Run(std::vector<std::string> arguments, const std::string& stdin_text = "") {
    arguments.insert(arguments.begin(), testing::BinDir() + "/smt_model");
    auto process = Process::Start({.argv = arguments,
                                   .environment = {"OMP_NUM_THREADS=2"},
                                   .stdin_text = stdin_text,
                                   .output_dir = dir_.path(),
                                   .name = "smt_model"});
    if (!process.ok()) {
      ADD_FAILURE() << process.status();
      return {-1, "", ""};
    }
    const auto code = process->Wait(absl::Minutes(2));
    EXPECT_TRUE(code.ok()) << code.status();
    return {code.value_or(-1), process->Stdout(), process->Stderr()};
  }

  // A model of the `tiny` preset.
  std::string Tiny(const std::string& preset = "tiny") {
    const std::string out = dir_.file(preset);
    const Result made = Run({"init", "--preset", preset, "--out", out, "--seed", "3"});
    EXPECT_EQ(made.code, 0) << made.err;
    return out;
  }

  std::string Ids(const std::vector<int32_t>& ids, const std::vector<int64_t>& shape) {
    const std::string path = dir_.file("ids.safetensors");
    SafetensorsWriter writer;
    EXPECT_TRUE(writer.AddInt32("input_ids", shape, ids).ok());
    EXPECT_TRUE(writer.WriteFile(path).ok());
    return path;
  }

  TempDir dir_;
};

TEST_F(SmtModelTest, InfoOfTheBundledModelAsTextAndAsJson) {
  const Result text = Run({"info", "--model_dir", kBooks});
  EXPECT_EQ(text.code, 0) << text.err;
  for (const char* part : {"6.48M parameters", "Published figures", "Like for like", "Fingerprint "}) {
    EXPECT_THAT(text.out, HasSubstr(part));
  }
  const Result json = Run({"info", "--model_dir", kBooks, "--json", "--check_values"});
  ASSERT_EQ(json.code, 0) << json.err;
  const auto root = nlohmann::json::parse(json.out);
  EXPECT_EQ(root["config"]["d_model"], 256);
  EXPECT_THAT(text.out, HasSubstr("Fingerprint " + root["fingerprint"].get<std::string>()));
  EXPECT_EQ(root["warnings"], nlohmann::json::array());
}

TEST_F(SmtModelTest, TheBundledModelPassesItsFixture) {
  const Result verified = Run({"verify", "--model_dir", kBooks, "--fixture", kFixture, "--json"});
  ASSERT_EQ(verified.code, 0) << verified.out << verified.err;
  const auto root = nlohmann::json::parse(verified.out);
  EXPECT_TRUE(root["ok"]);
  EXPECT_THAT(root["not_compared"], IsEmpty());
  EXPECT_EQ(root["rows"].size(), 38u);  // two policies by two ways of 9 tensors, and two greedy texts
}

TEST_F(SmtModelTest, AFixtureThatDiffersFailsInTheTensorThatDiffers) {
  const auto good = SafetensorsReader::Open(kFixture);
  ASSERT_TRUE(good.ok());
  SafetensorsWriter writer;
  auto outputs = *good->ReadFloat32("ssm_outputs");
  outputs[5] += 2e-4f;
  auto greedy = *good->ReadInt32("greedy_hop");
  greedy[7] = (greedy[7] + 1) % 4096;
  const auto ids = *good->ReadInt32("input_ids");
  ASSERT_TRUE(writer.AddFloat32("ssm_outputs", {12, 256}, outputs).ok());
  ASSERT_TRUE(writer.AddInt32("input_ids", {1, 200}, ids).ok());
  ASSERT_TRUE(writer.AddInt32("greedy_hop", {64}, greedy).ok());
  ASSERT_TRUE(writer.WriteFile(dir_.file("f.safetensors")).ok());
  const Result verified = Run({"verify", "--model_dir", kBooks, "--fixture", dir_.file("f.safetensors")});
  EXPECT_EQ(verified.code, 1);
  EXPECT_THAT(verified.out, HasSubstr("FAIL  ssm_outputs    parallel  0.0002"));
  EXPECT_THAT(verified.out, HasSubstr("FAIL  greedy_hop"));
  EXPECT_THAT(verified.err, HasSubstr("differs from the fixture"));
}

TEST_F(SmtModelTest, AFixtureOfAnotherShapeOrWithoutAnythingIsABadInput) {
  SafetensorsWriter writer;
  const std::vector<int32_t> ids = {1, 2, 3};
  ASSERT_TRUE(writer.AddInt32("input_ids", {3}, ids).ok());
  ASSERT_TRUE(writer.WriteFile(dir_.file("f.safetensors")).ok());
  Result verified = Run({"verify", "--model_dir", kBooks, "--fixture", dir_.file("f.safetensors")});
  EXPECT_EQ(verified.code, 2);
  EXPECT_THAT(verified.err, HasSubstr("nothing to compare"));
  const std::vector<float> logits(2 * 4096);
  ASSERT_TRUE(writer.AddFloat32("logits_hop", {2, 4096}, logits).ok());
  ASSERT_TRUE(writer.WriteFile(dir_.file("f.safetensors")).ok());
  verified = Run({"verify", "--model_dir", kBooks, "--fixture", dir_.file("f.safetensors")});
  EXPECT_EQ(verified.code, 2);
  EXPECT_THAT(verified.err, HasSubstr("[2, 4096]"));
  EXPECT_THAT(verified.err, HasSubstr("[3, 4096]"));
}

TEST_F(SmtModelTest, ForwardInParallelIsForwardStepByStepUnderBothPoliciesForBothKinds) {
  std::vector<int32_t> ids;
  for (int i = 0; i < 61; ++i) ids.push_back((i * 37 + 11) % 257);
  for (const char* preset : {"tiny", "tiny-simple"}) {
    const std::string model = Tiny(preset);
    for (const char* policy : {"hop", "slide"}) {
      for (const auto& shape : {std::vector<int64_t>{61}, std::vector<int64_t>{1, 61}}) {
        const std::string path = Ids(ids, shape);
        std::vector<std::string> arguments = {"forward", "--model_dir",     model, "--ids",
                                              path,      "--window_policy", policy};
        arguments.insert(arguments.end(), {"--out", dir_.file("a.safetensors")});
        ASSERT_EQ(Run(arguments).code, 0);
        arguments.back() = dir_.file("b.safetensors");
        arguments.push_back("--stepwise");
        ASSERT_EQ(Run(arguments).code, 0);
        const auto a = SafetensorsReader::Open(dir_.file("a.safetensors"));
        const auto b = SafetensorsReader::Open(dir_.file("b.safetensors"));
        ASSERT_TRUE(a.ok() && b.ok());
        EXPECT_EQ(a->Find("logits")->shape, (std::vector<int64_t>{61, 257}));
        EXPECT_EQ(a->Find("ssm_outputs")->shape, (std::vector<int64_t>{15, 32}));
        EXPECT_EQ(a->Find("pool_weights")->shape, (std::vector<int64_t>{15, 16}));
        for (const char* name : {"logits", "ssm_outputs", "pool_weights"}) {
          const auto x = *a->ReadFloat32(name), y = *b->ReadFloat32(name);
          ASSERT_EQ(x.size(), y.size());
          for (size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(x[i], y[i], 1e-4) << preset << policy << name << i;
        }
      }
    }
  }
}

TEST_F(SmtModelTest, ForwardTakesOneIdOrNoneAndRefusesWhatIsNotInTheVocabulary) {
  const std::string model = Tiny(), out = dir_.file("out.safetensors");
  const auto forward = [&](const std::string& ids) {
    return Run({"forward", "--model_dir", model, "--ids", ids, "--out", out});
  };
  EXPECT_EQ(forward(Ids({5}, {1})).code, 0);
  EXPECT_EQ(SafetensorsReader::Open(out)->Find("ssm_outputs")->shape, (std::vector<int64_t>{0, 32}));
  EXPECT_EQ(forward(Ids({}, {0})).code, 0);
  EXPECT_EQ(SafetensorsReader::Open(out)->Find("logits")->shape, (std::vector<int64_t>{0, 257}));
  Result bad = forward(Ids({1, 257}, {2}));
  EXPECT_EQ(bad.code, 2);
  EXPECT_THAT(bad.err, HasSubstr("input_ids[1] is 257, must be in [0, 257)"));
  bad = forward(Ids({1, 2}, {2, 1}));
  EXPECT_EQ(bad.code, 2);
  EXPECT_THAT(bad.err, HasSubstr("[2, 1], must be [L] or [1, L]"));
  EXPECT_EQ(forward(dir_.file("absent")).code, 3);
  testing::WriteText(dir_.file("junk"), "junk");
  const int junk = forward(dir_.file("junk")).code;
  EXPECT_TRUE(junk == 2 || junk == 4) << junk;
  bad = Run({"forward", "--model_dir", model, "--ids", Ids({1}, {1}), "--out", out, "--window_policy", "jump"});
  EXPECT_EQ(bad.code, 2);
  EXPECT_THAT(bad.err, HasSubstr("--window_policy is \"jump\", must be \"hop\" or \"slide\""));
}

TEST_F(SmtModelTest, TokenizeAndDetokenizeAreInverses) {
  const std::string text = "Mr. Pickwick\r\n\tsaid \xf0\x9f\x98\x80 and \xff\xfe \xe2\x82 nothing\n";
  const Result ids = Run({"tokenize", "--model_dir", kBooks}, text);
  ASSERT_EQ(ids.code, 0) << ids.err;
  EXPECT_EQ(Run({"detokenize", "--model_dir", kBooks}, ids.out).out, text);
  EXPECT_EQ(Run({"tokenize", "--model_dir", kBooks}, "").out, "[]\n");

  const std::string lines = "\"one line\"\n\"\"\n\"a\\nb \\u00e9\"\n";
  const Result arrays = Run({"tokenize", "--model_dir", kBooks, "--jsonl"}, lines);
  ASSERT_EQ(arrays.code, 0) << arrays.err;
  EXPECT_EQ(std::count(arrays.out.begin(), arrays.out.end(), '\n'), 3);
  EXPECT_EQ(Run({"detokenize", "--model_dir", kBooks, "--jsonl"}, arrays.out).out, "\"one line\"\n\"\"\n\"a\\nb é\"\n");
}

TEST_F(SmtModelTest, TokenizerFilesAloneAreEnoughToTokenize) {
  for (const char* name : {"vocab.json", "merges.txt"}) {
    std::filesystem::copy_file(std::string(kBooks) + "/" + name, dir_.file(name));
  }
  EXPECT_EQ(Run({"tokenize", "--model_dir", dir_.path()}, "hello").out,
            Run({"tokenize", "--model_dir", kBooks}, "hello").out);
  std::filesystem::remove(dir_.file("merges.txt"));
  const Result missing = Run({"tokenize", "--model_dir", dir_.path()}, "hello");
  EXPECT_EQ(missing.code, 3);
  EXPECT_THAT(missing.err, HasSubstr("merges.txt"));
}

TEST_F(SmtModelTest, MalformedIdsAndLinesAreNamed) {
  EXPECT_THAT(Run({"detokenize", "--model_dir", kBooks}, "[1, 4096]").err, HasSubstr("4096"));
  EXPECT_THAT(Run({"detokenize", "--model_dir", kBooks}, "[1, -2]").err, HasSubstr("index 1 is -2"));
  EXPECT_THAT(Run({"detokenize", "--model_dir", kBooks}, "[1, 2").err, HasSubstr("not a JSON array"));
  EXPECT_THAT(Run({"detokenize", "--model_dir", kBooks}, "[1, 99999999999999999999]").err, HasSubstr("index 1"));
  const Result bad = Run({"tokenize", "--model_dir", kBooks, "--jsonl"}, "\"fine\"\nnot json\n");
  EXPECT_EQ(bad.code, 2);
  EXPECT_THAT(bad.err, HasSubstr("line 2 of stdin: \"not json\" is not a JSON string"));
}

TEST_F(SmtModelTest, GenerateIsAFunctionOfItsSeedAndChecksItsFlags) {
  const auto generate = [&](std::vector<std::string> more) {
    std::vector<std::string> arguments = {"generate",     "--model_dir",  kBooks, "--prompt",
                                          "Mr. Pickwick", "--max_tokens", "20",   "--print_ids"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Run(arguments);
  };
  const Result seven = generate({"--seed", "7"});
  ASSERT_EQ(seven.code, 0) << seven.err;
  EXPECT_EQ(generate({"--seed", "7"}).out, seven.out);
  EXPECT_NE(generate({"--seed", "8"}).out, seven.out);
  EXPECT_EQ(generate({"--temperature", "0"}).out, generate({"--temperature", "0", "--seed", "9"}).out);
  const Result bad = generate({"--top_p", "0", "--temperature", "nan", "--top_k", "-1", "--min_p", "2"});
  EXPECT_EQ(bad.code, 2);
  EXPECT_THAT(bad.err, HasSubstr("4 violations"));
  EXPECT_EQ(Run({"generate", "--model_dir", kBooks, "--prompt_ids", "[4096]", "--print_ids"}).code, 2);
  EXPECT_EQ(Run({"generate", "--model_dir", kBooks, "--prompt_ids", "[]", "--print_ids"}).code, 2);
}

TEST_F(SmtModelTest, ImportMakesAModelThatRuns) {
  testing::MakeHubFolders(testing::TinyConfig()).Write(dir_.path());
  const std::string out = dir_.file("imported");
  const Result imported =
      Run({"import", "--gpt2_dir", dir_.file("gpt2"), "--mamba_dir", dir_.file("mamba"), "--out", out,
           "--n_ssm_outputs", "4", "--m_input_tokens", "12", "--stride", "4", "--pool_scope", "tokens"});
  ASSERT_EQ(imported.code, 0) << imported.out << imported.err;
  EXPECT_THAT(imported.out, HasSubstr("missing: 0\n"));
  const Result generated = Run({"generate", "--model_dir", out, "--prompt_ids", "[1,2,3,4,5,6,7]", "--print_ids",
                                "--max_tokens", "9", "--ignore_eos"});
  ASSERT_EQ(generated.code, 0) << generated.err;
  EXPECT_EQ(nlohmann::json::parse(generated.out).size(), 9u);
  EXPECT_EQ(Run({"info", "--model_dir", dir_.file("gpt2")}).code, 2);
}

TEST_F(SmtModelTest, MistakesEndWithTheDocumentedCodes) {
  EXPECT_EQ(Run({}).code, 2);
  EXPECT_EQ(Run({"info"}).code, 2);
  EXPECT_EQ(Run({"info", "--model_dir", dir_.file("absent")}).code, 3);
  EXPECT_EQ(Run({"init", "--preset", "huge", "--out", dir_.file("x")}).code, 2);
  EXPECT_THAT(Run({"--help"}).out, HasSubstr("Exit codes: 0 done"));
  const std::string model = Tiny();
  EXPECT_EQ(Run({"init", "--preset", "tiny", "--out", model}).code, 5);
  EXPECT_EQ(Run({"forward", "--model_dir", model, "--ids", model + "/model.safetensors", "--out", "x"}).code, 2);
  // A rename would replace the pipe.
  const std::string pipe = dir_.file("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const Result device = Run({"forward", "--model_dir", model, "--ids", Ids({1, 2}, {2}), "--out", pipe});
  EXPECT_TRUE(std::filesystem::is_fifo(pipe));
  EXPECT_EQ(device.code, 2);
  EXPECT_THAT(device.err, HasSubstr("is not a plain file"));
  std::filesystem::resize_file(model + "/model.safetensors", 1000);
  const Result damaged = Run({"info", "--model_dir", model});
  EXPECT_EQ(damaged.code, 4);
  EXPECT_THAT(damaged.err, HasSubstr("model.safetensors"));
}

TEST_F(SmtModelTest, ABadFlagIsOneSentenceWithTheFlagTheValueAndWhatIsAllowed) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"bogus"}, "\"bogus\" is not a command; there are info, verify, "},
      {{"generate", "--model_dir", kBooks, "--seed", "-1"}, "--seed is \"-1\", must be an integer in [0, 184467"},
      {{"generate", "--model_dir", kBooks, "--seed", "18446744073709551616"}, "--seed is \"18446744073709551616\""},
      {{"generate", "--model_dir", kBooks, "--max_tokens", "99999999999999999999"}, "--max_tokens is \"9999"},
      {{"generate", "--model_dir", kBooks, "--temperature", "warm"}, "--temperature is \"warm\", must be a number"},
      {{"generate", "--model_dir", kBooks, "--prompt_ids", ""}, "--prompt_ids: \"\" is not a JSON array"},
      {{"info", "--model_dir="}, "--model_dir is empty, must be a path"},
      {{"info", "--model_dir", kBooks, "--foo"}, "--foo"},
  };
  for (const auto& [arguments, sentence] : cases) {
    const Result result = Run(arguments);
    EXPECT_EQ(result.code, 2) << sentence;
    EXPECT_THAT(result.err, HasSubstr(sentence));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  }
}

TEST_F(SmtModelTest, InfoWarnsOfATokenizerThatDoesNotFit) {
  const std::string model = Tiny();
  EXPECT_THAT(Run({"info", "--model_dir", model}).out, ::testing::Not(HasSubstr("Warning")));
  testing::WriteText(model + "/merges.txt", "h e\n");
  EXPECT_THAT(Run({"info", "--model_dir", model}).out, HasSubstr("Warning: the model takes and gives ids only: "));
}

}  // namespace
}  // namespace smt
