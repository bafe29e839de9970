#include "server/service/text_assembler.h"

#include <gmock/gmock.h>

#include <random>

#include "model/tokenizer/incremental_decoder.h"
#include "server/service/utf8.h"

namespace smt {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TokenOutput Token(int32_t id, int64_t position) {
  TokenOutput token;
  token.id = id;
  token.position = position;
  return token;
}

std::vector<int32_t> IdsOf(const TextAssembler::Released& released) {
  std::vector<int32_t> ids;
  for (const TokenOutput& token : released.tokens) ids.push_back(token.id);
  return ids;
}

// Appends ids 0.. of `pieces` and gives what each freed, then what the end freed.
struct Assembled {
  std::vector<std::string> texts;
  std::vector<std::vector<int32_t>> ids;
  int64_t released_position = 0;
};
Assembled Assemble(const std::vector<std::string>& pieces, const std::vector<std::string>& stops,
                   int64_t min_tokens = 0) {
  Assembled run;
  TextAssembler assembler(&pieces, stops, min_tokens);
  const auto note = [&](TextAssembler::Released released) {
    run.texts.push_back(released.text);
    run.ids.push_back(IdsOf(released));
  };
  for (size_t i = 0; i < pieces.size(); ++i) {
    TextAssembler::Released released;
    assembler.Append(Token(static_cast<int32_t>(i), static_cast<int64_t>(i) + 1), &released);
    note(std::move(released));
  }
  TextAssembler::Released released;
  assembler.Finish(&released);
  note(std::move(released));
  run.released_position = assembler.released_position();
  return run;
}

TEST(TextAssemblerTest, PlainTextIsReleasedAtOnce) {
  EXPECT_THAT(Assemble({"Hel", "lo"}, {}).texts, ElementsAre("Hel", "lo", ""));
}

TEST(TextAssemblerTest, AnIdIsHeldBackUntilItsCodePointIsComplete) {
  const Assembled run = Assemble({"a", "\xF0\x9F", "\x98", "\x80!", "b"}, {});
  EXPECT_THAT(run.texts, ElementsAre("a", "", "", "\xF0\x9F\x98\x80!", "b", ""));
  EXPECT_THAT(run.ids,
              ElementsAre(ElementsAre(0), IsEmpty(), IsEmpty(), ElementsAre(1, 2, 3), ElementsAre(4), IsEmpty()));
}

TEST(TextAssemblerTest, BytesThatAreNoUtf8BecomeReplacementCharacters) {
  EXPECT_THAT(Assemble({"a\xFF", "\xC3", "b"}, {}).texts, ElementsAre("a\xEF\xBF\xBD", "",
                                                                      "\xEF\xBF\xBD"
                                                                      "b",
                                                                      ""));
  EXPECT_THAT(Assemble({"a", "\xC3"}, {}).texts, ElementsAre("a", "", "\xEF\xBF\xBD"));
}

TEST(TextAssemblerTest, ABeginningOfAStopStringIsHeldBackUntilItIsNone) {
  const Assembled run = Assemble({"x", "EN", "T", "RY"}, {"END"});
  EXPECT_THAT(run.texts, ElementsAre("x", "", "ENT", "RY", ""));
}

TEST(TextAssemblerTest, NothingOfAStopStringLeaks) {
  const Assembled run = Assemble({"x", "E", "N", "D", "more"}, {"END"});
  EXPECT_THAT(run.texts, ElementsAre("x", "", "", "", "", ""));
  EXPECT_EQ(run.released_position, 1);
}

TEST(TextAssemblerTest, TextBeforeAStopStringInsideAnIdIsReleasedButTheIdIsNot) {
  const Assembled run = Assemble({"hello", " world. Then"}, {"."});
  EXPECT_THAT(run.texts, ElementsAre("hello", "", " world"));
  EXPECT_THAT(run.ids, ElementsAre(ElementsAre(0), IsEmpty(), IsEmpty()));
  EXPECT_EQ(run.released_position, 1);
}

TEST(TextAssemblerTest, TheTextEndsWithTheBeginningOfAStopString) {
  EXPECT_THAT(Assemble({"so E", "N"}, {"END"}).texts, ElementsAre("", "", "so EN"));
}

TEST(TextAssemblerTest, StopStringsBeforeMinTokensAreIgnored) {
  EXPECT_THAT(Assemble({"a.", "b", "c.", "d"}, {"."}, 3).texts, ElementsAre("a.", "b", "", "", "c"));
}

TEST(TextAssemblerTest, OverlappingBeginningsAreFoundAgain) {
  const Assembled run = Assemble({"aa", "ab", "z"}, {"aab"});
  EXPECT_THAT(run.texts, ElementsAre("", "", "", "a"));
}

// Whatever the cuts, the pieces together are the sanitised whole up to the first stop string, and each is UTF-8.
TEST(TextAssemblerTest, PiecesAddUpToTheWholeForRandomBytesCutsAndStops) {
  std::mt19937 random(7);
  const std::string alphabet[] = {"a", "b", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xFF", "\xC3", "\xE2\x82"};
  for (int round = 0; round < 2000; ++round) {
    std::string whole;
    for (int i = 0; i < 20; ++i) whole += alphabet[random() % std::size(alphabet)];
    std::vector<std::string> pieces;
    for (size_t at = 0; at < whole.size();) {
      const size_t length = 1 + random() % 4;
      pieces.push_back(whole.substr(at, length));
      at += length;
    }
    std::vector<std::string> stops;
    for (unsigned i = 0; i < random() % 3; ++i) stops.push_back(alphabet[random() % 4] + alphabet[random() % 2]);

    size_t end = whole.size(), first_end = std::string::npos;
    for (const std::string& stop : stops) {
      const size_t at = whole.find(stop);
      if (at == std::string::npos) continue;
      if (at + stop.size() < first_end || (at + stop.size() == first_end && at < end)) {
        first_end = at + stop.size();
        end = at;
      }
    }
    std::string expected, got;
    AppendSanitizedUtf8(whole.substr(0, end), &expected);
    for (const std::string& text : Assemble(pieces, stops).texts) {
      EXPECT_TRUE(IsValidUtf8(text));
      got += text;
    }
    ASSERT_EQ(got, expected) << "round " << round;
  }
}

TEST(Utf8Test, SanitisingEqualsTheTokenizersDecoder) {
  std::mt19937 random(3);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes;
    for (unsigned i = 0; i < random() % 8; ++i) {
      constexpr unsigned char kBytes[] = {'a',  0x80, 0xBF, 0xC1, 0xC3, 0xE0, 0xA0,
                                          0xED, 0x9F, 0xF0, 0x90, 0xF4, 0x8F, 0xF5};
      bytes.push_back(static_cast<char>(kBytes[random() % std::size(kBytes)]));
    }
    const std::vector<std::string> no_tokens;
    IncrementalDecoder decoder(no_tokens);
    std::string expected = decoder.PushBytes(bytes);
    EXPECT_EQ(IncompleteUtf8Suffix(bytes), decoder.pending().size());
    expected += decoder.Flush();
    std::string got;
    AppendSanitizedUtf8(bytes, &got);
    ASSERT_EQ(got, expected);
    EXPECT_EQ(IsValidUtf8(bytes), got == bytes);
  }
}

}  // namespace
}  // namespace smt
