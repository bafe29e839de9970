#include "server/engine/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace smt {
namespace {

StopMatcher::Match Feed(StopMatcher& matcher, std::initializer_list<std::string_view> pieces) {
  StopMatcher::Match match;
  for (std::string_view piece : pieces) match = matcher.Append(piece);
  return match;
}

TEST(StopMatcher, FindsAStringCutAnywhere) {
  const std::vector<std::string> stops = {"END", "stop here"};
  StopMatcher a(stops), b(stops), c(stops);
  EXPECT_EQ(Feed(a, {"the END."}).index, 0);
  const StopMatcher::Match match = Feed(b, {"please st", "op", " h", "ere and"});
  EXPECT_EQ(match.index, 1);
  EXPECT_EQ(match.end, 3u);
  EXPECT_EQ(Feed(c, {"E", "N", "d", "stop", "here"}).index, -1);
}

TEST(StopMatcher, AFailedBeginningMayHoldAnother) {
  StopMatcher matcher(std::vector<std::string>{"aab"});
  EXPECT_EQ(Feed(matcher, {"a", "a", "a", "a", "b"}).index, 0);
}

TEST(StopMatcher, TheMatchThatEndsFirstWinsThenTheLongest) {
  StopMatcher first(std::vector<std::string>{"abcd", "bc"});
  EXPECT_EQ(first.Append("abcd").index, 1);
  StopMatcher longest(std::vector<std::string>{"c", "abc", "bc"});
  EXPECT_EQ(longest.Append("abc").index, 1);
  StopMatcher equal(std::vector<std::string>{"x", "x"});
  EXPECT_EQ(equal.Append("x").index, 0);
}

TEST(StopMatcher, KnowsHowMuchMayYetBecomeAMatch) {
  StopMatcher matcher(std::vector<std::string>{"hello", "low"});
  matcher.Append("say hel");
  EXPECT_EQ(matcher.pending(), 3u);
  matcher.Append("p");
  EXPECT_EQ(matcher.pending(), 0u);
  matcher.Append("hello");
  EXPECT_EQ(matcher.pending(), 2u);  // "lo" of "low"
}

TEST(StopMatcher, EmptyStringsAndPiecesNeverMatch) {
  StopMatcher matcher(std::vector<std::string>{"", "a"});
  EXPECT_EQ(matcher.Append("").index, -1);
  EXPECT_EQ(matcher.Append("b").index, -1);
  EXPECT_EQ(matcher.Append("a").index, 1);
}

TEST(StopMatcher, EqualsASearchOverTheWholeText) {
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::string> stops(1 + random() % 3);
    for (std::string& s : stops) {
      for (size_t n = 1 + random() % 4; n > 0; --n) s += static_cast<char>('a' + random() % 2);
    }
    StopMatcher matcher(stops);
    std::string text;
    size_t expected_end = std::string::npos, got_end = std::string::npos;
    for (int piece = 0; piece < 10 && got_end == std::string::npos; ++piece) {
      std::string part;
      for (size_t n = random() % 4; n > 0; --n) part += static_cast<char>('a' + random() % 2);
      const StopMatcher::Match match = matcher.Append(part);
      if (match.index >= 0) got_end = text.size() + match.end;
      text += part;
    }
    for (const std::string& s : stops) {
      const size_t at = text.find(s);
      if (at != std::string::npos) expected_end = std::min(expected_end, at + s.size());
    }
    ASSERT_EQ(got_end, expected_end) << text;
  }
}

}  // namespace
}  // namespace smt
