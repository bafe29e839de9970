// Tokenizer files that do not fit, and the optional ones that do.
#include "model/tokenizer/vocabulary.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/tokenizer/byte_alphabet.h"
#include "model/tokenizer/tokenizer.h"

namespace smt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// The 256 bytes, "he" (256) and "the" (257).
nlohmann::json SmallVocabulary() {
  nlohmann::json vocabulary = nlohmann::json::object();
  for (int byte = 0; byte < 256; ++byte) vocabulary[SpellByte(static_cast<uint8_t>(byte))] = byte;
  vocabulary["he"] = 256;
  vocabulary["the"] = 257;
  return vocabulary;
}

TokenizerFiles SmallFiles() {
  TokenizerFiles files;
  files.vocab_json = SmallVocabulary().dump();
  files.merges_txt = "#version: 0.2\nh e\nt he\n";
  return files;
}

TEST(ByteAlphabetTest, SpellsEveryByteAndBack) {
  EXPECT_EQ(SpellByte(' '), "Ġ");
  EXPECT_EQ(SpellByte('\n'), "Ċ");
  EXPECT_EQ(SpellByte('!'), "!");
  EXPECT_EQ(SpellByte(0xad), "Ń");  // the last of the 68
  std::string all, spelling;
  for (int byte = 0; byte < 256; ++byte) {
    all.push_back(static_cast<char>(byte));
    spelling += SpellByte(static_cast<uint8_t>(byte));
  }
  EXPECT_EQ(BytesOfSpelling(spelling), all);
  EXPECT_EQ(BytesOfSpelling(" "), std::nullopt);
  EXPECT_EQ(BytesOfSpelling("\u0144"), std::nullopt);
  EXPECT_EQ(BytesOfSpelling("日"), std::nullopt);
  EXPECT_EQ(BytesOfSpelling("\xff"), std::nullopt);
}

TEST(VocabularyTest, SmallOneIsRead) {
  const absl::StatusOr<Vocabulary> vocabulary = ParseVocabulary(SmallFiles());
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  EXPECT_EQ(vocabulary->token_bytes.size(), 258u);
  EXPECT_EQ(vocabulary->token_bytes[257], "the");
  EXPECT_EQ(vocabulary->byte_ids[0xff], 0xff);
  EXPECT_EQ(vocabulary->merges.size(), 2u);
  EXPECT_TRUE(vocabulary->special.empty());
}

TEST(VocabularyTest, MergesMayBeNoneHaveNoVersionEndInBlankLinesAndInCarriageReturns) {
  for (const char* merges : {"", "#version: 0.2\n", "\n", "h e", "h e\r\nt he\r\n\r\n", "h e\nt he\n\n\n"}) {
    TokenizerFiles files = SmallFiles();
    files.merges_txt = merges;
    EXPECT_TRUE(ParseVocabulary(files).ok()) << merges;
  }
}

struct Misfit {
  const char* name;
  std::function<void(TokenizerFiles*)> change;
  std::string message;  // the error's beginning
};

void PrintTo(const Misfit& misfit, std::ostream* out) { *out << misfit.name; }

std::function<void(TokenizerFiles*)> Vocab(std::function<void(nlohmann::json*)> change) {
  return [change](TokenizerFiles* files) {
    nlohmann::json vocabulary = SmallVocabulary();
    change(&vocabulary);
    files->vocab_json = vocabulary.dump();
  };
}
std::function<void(TokenizerFiles*)> VocabText(const std::string& text) {
  return [text](TokenizerFiles* files) { files->vocab_json = text; };
}
std::function<void(TokenizerFiles*)> Merges(const std::string& text) {
  return [text](TokenizerFiles* files) { files->merges_txt = text; };
}
std::function<void(TokenizerFiles*)> Added(const std::string& text) {
  return [text](TokenizerFiles* files) { files->added_tokens_json = text; };
}
std::function<void(TokenizerFiles*)> Config(const std::string& text) {
  return [text](TokenizerFiles* files) { files->tokenizer_config_json = text; };
}
std::function<void(TokenizerFiles*)> SpecialMap(const std::string& text) {
  return [text](TokenizerFiles* files) { files->special_tokens_map_json = text; };
}

class MisfitTest : public testing::TestWithParam<Misfit> {};

TEST_P(MisfitTest, IsRefusedWithFileAndReason) {
  TokenizerFiles files = SmallFiles();
  GetParam().change(&files);
  const absl::Status status = Tokenizer::FromFiles(files).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), StartsWith(GetParam().message));
  EXPECT_LT(status.message().size(), 600u);
}

std::string NameOf(const testing::TestParamInfo<Misfit>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(
    Vocabularies, MisfitTest,
    testing::Values(
        Misfit{"Empty", VocabText(""), "vocab.json: is not JSON"},
        Misfit{"NotJson", VocabText("{'a': 1}"), "vocab.json: is not JSON: parse error at line 1, column 2"},
        Misfit{"CutOff", VocabText("{\"a\": 1, "), "vocab.json: is not JSON"},
        Misfit{"NotUtf8", VocabText("{\"\xff\": 1}"), "vocab.json: is not JSON"},
        Misfit{"ZeroByte", VocabText(std::string("{\"a\": 0}\0}", 10)), "vocab.json: is not JSON: byte 9 is zero"},
        Misfit{"Array", VocabText("[1]"), "vocab.json: is an array; allowed is an object"},
        Misfit{"Number", VocabText("7"), "vocab.json: is 7; allowed is an object"},
        Misfit{"NoTokens", VocabText("{}"), "vocab.json: has no tokens"},
        Misfit{"Deep", VocabText("{\"a\":" + std::string(1'000'000, '[')),
               "vocab.json: token 'a' has an array as its id"},
        Misfit{"TokenTwice", VocabText(R"({"a":0,"a":1})"), "vocab.json: token 'a' is there twice"},
        Misfit{"TextId", VocabText(R"({"a":"0"})"),
               "vocab.json: token 'a' has '0' as its id; allowed is a whole number"},
        Misfit{"NegativeId", VocabText(R"({"a":-1})"), "vocab.json: token 'a' has -1 as its id"},
        Misfit{"FractionalId", VocabText(R"({"a":0.5})"), "vocab.json: token 'a' has 0.5 as its id"},
        Misfit{"HugeId", VocabText(R"({"a":2147483648})"), "vocab.json: token 'a' has 2147483648 as its id"},
        Misfit{"IdTwice", Vocab([](auto* v) { (*v)["the"] = 256; }),
               "vocab.json: tokens 'he' and 'the' both have id 256"},
        Misfit{"Hole", Vocab([](auto* v) { (*v)["the"] = 258; }),
               "vocab.json: token 'the' has id 258, but with 258 tokens ids go from 0 to 257 without holes"},
        Misfit{"EmptyToken", Vocab([](auto* v) { (*v)[""] = 258; }), "vocab.json: the token with id 258 is empty"},
        Misfit{"ForeignAlphabet", Vocab([](auto* v) { (*v)["a b"] = 258; }),
               "vocab.json: token 'a b' (id 258) has a character outside the byte alphabet"},
        Misfit{"MissingByte", Vocab([](auto* v) {
                 v->erase("Ġ");
                 (*v)["hh"] = 32;
               }),
               "vocab.json: has no token for the byte 32 ('Ġ'); all 256 are needed"}),
    NameOf);

INSTANTIATE_TEST_SUITE_P(
    MergeLists, MisfitTest,
    testing::Values(
        Misfit{"OneToken", Merges("#version: 0.2\nh e\nthe\n"),
               "merges.txt: line 3: is 'the'; allowed is 'LEFT RIGHT'"},
        Misfit{"ThreeTokens", Merges("t h e\n"), "merges.txt: line 1: is 't h e'; allowed"},
        Misfit{"TwoSpaces", Merges("h  e\n"), "merges.txt: line 1: is 'h  e'; allowed"},
        Misfit{"NoLeft", Merges(" e\n"), "merges.txt: line 1: is ' e'; allowed"},
        Misfit{"NoRight", Merges("h \n"), "merges.txt: line 1: is 'h '; allowed"},
        Misfit{"BlankLineBetween", Merges("h e\n\nt he\n"), "merges.txt: line 2: is ''; allowed"},
        Misfit{"VersionLater", Merges("h e\n#version: 0.2\n"), "merges.txt: line 2: merges '#version:' and '0.2', but"},
        Misfit{"UnknownLeft", Merges("xx e\n"),
               "merges.txt: line 1: merges 'xx' and 'e', but 'xx' is not in vocab.json"},
        Misfit{"UnknownRight", Merges("h xx\n"),
               "merges.txt: line 1: merges 'h' and 'xx', but 'xx' is not in vocab.json"},
        Misfit{"UnknownResult", Merges("h e\ne h\n"),
               "merges.txt: line 2: merges 'e' and 'h', but 'eh' is not in vocab.json; do both files belong"},
        Misfit{"Twice", Merges("h e\nt he\nh e\n"), "merges.txt: line 3: merges 'h' and 'e' as line 1 does"},
        Misfit{"NotUtf8", Merges("\xff \xfe\n"), "merges.txt: line 1: merges '\\xff' and '\\xfe', but"},
        Misfit{"LongLine", Merges(std::string(1'000'000, 'x')), "merges.txt: line 1: is 'xxxxx"}),
    NameOf);

INSTANTIATE_TEST_SUITE_P(
    SpecialTokens, MisfitTest,
    testing::Values(
        Misfit{"AddedNotJson", Added("nonsense"), "added_tokens.json: is not JSON"},
        Misfit{"AddedText", Added(R"({"<s>":"x"})"), "added_tokens.json: token '<s>' has 'x' as its id"},
        Misfit{"AddedOtherId", Added(R"({"the":3})"), "added_tokens.json: token 'the' has id 3, but 257 elsewhere"},
        Misfit{"AddedIdTaken", Added(R"({"<s>":257})"), "vocab.json: tokens '<s>' and 'the' both have id 257"},
        Misfit{"AddedHole", Added(R"({"<s>":300})"), "vocab.json: token '<s>' has id 300, but with 259 tokens"},
        Misfit{"ConfigNotJson", Config("{"), "tokenizer_config.json: is not JSON"},
        Misfit{"ConfigArray", Config("[]"), "tokenizer_config.json: is array; allowed is an object"},
        Misfit{"DecoderArray", Config(R"({"added_tokens_decoder":[]})"),
               "tokenizer_config.json: added_tokens_decoder is not"},
        Misfit{"DecoderBadId", Config(R"({"added_tokens_decoder":{"1x":{"content":"<s>"}}})"),
               "tokenizer_config.json: added_tokens_decoder has an entry '1x'; allowed is"},
        Misfit{"DecoderNoContent", Config(R"({"added_tokens_decoder":{"258":{}}})"),
               "tokenizer_config.json: added_tokens_decoder has an entry '258'; allowed is"},
        Misfit{"ConfigUnknownToken", Config(R"({"bos_token":"<s>"})"),
               "tokenizer_config.json: bos_token: '<s>' is not in"},
        Misfit{"MapUnknownToken", SpecialMap(R"({"eos_token":{"content":"</s>"}})"),
               "special_tokens_map.json: eos_token: '</s>' is not in"},
        Misfit{"MapDeep", SpecialMap("{\"x\":" + std::string(1'000'000, '[') + std::string(1'000'000, ']') + "}x"),
               "special_tokens_map.json: is not JSON"}),
    NameOf);

TEST(SpecialTokensTest, AllThreeFilesAreReadAndTheirTextIsTakenAsItStands) {
  TokenizerFiles files = SmallFiles();
  files.added_tokens_json = R"({"<s>":259,"end of text é":258})";
  files.tokenizer_config_json =
      R"({"added_tokens_decoder":{"260":{"content":"[PAD]","special":true},"257":{"content":"the"}},
                                    "bos_token":{"content":"<s>"},"unk_token":null,"model_max_length":1024,"add_bos_token":false})";
  files.special_tokens_map_json = R"({"pad_token":"[PAD]","additional_special_tokens":["he",{"content":"<s>"}]})";
  const absl::StatusOr<Tokenizer> tokenizer = Tokenizer::FromFiles(files);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(tokenizer->vocab_size(), 261);
  EXPECT_EQ(tokenizer->IdOf("end of text é"), 258);
  EXPECT_EQ(tokenizer->token_bytes()[258], "end of text é");
  EXPECT_EQ(tokenizer->IdOf("<s>"), 259);
  EXPECT_EQ(tokenizer->IdOf("[PAD]"), 260);
  EXPECT_TRUE(tokenizer->IsSpecial(256));
  EXPECT_TRUE(tokenizer->IsSpecial(257));
  EXPECT_FALSE(tokenizer->IsSpecial(255));
  EXPECT_THAT(tokenizer->Encode("<s>theend of text é", {.parse_special = true}), ElementsAre(259, 257, 258));
  EXPECT_EQ(*tokenizer->Decode(tokenizer->Encode("end of text é<s>")), "end of text é<s>");
  EXPECT_THAT(tokenizer->Encode("<s>"), ElementsAre('<', 's', '>'));
}

TEST(TokenizerFilesTest, MissingFilesAndBadOnesAreNamedByPath) {
  std::string dir = testing::TempDir() + "/tokenizer_files.XXXXXX";
  ASSERT_NE(mkdtemp(dir.data()), nullptr);
  const auto load = [&] { return Tokenizer::Load(dir).status(); };
  EXPECT_EQ(load().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(load().message()), HasSubstr(dir + "/vocab.json"));
  std::ofstream(dir + "/vocab.json") << SmallFiles().vocab_json;
  EXPECT_EQ(load().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(load().message()), HasSubstr(dir + "/merges.txt"));
  std::ofstream(dir + "/merges.txt") << SmallFiles().merges_txt;
  EXPECT_TRUE(load().ok()) << load();
  std::ofstream(dir + "/added_tokens.json") << "x";
  EXPECT_EQ(load().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(load().message()), StartsWith(dir + "/added_tokens.json: is not JSON"));
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace smt
