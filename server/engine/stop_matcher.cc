// Knuth, Morris, Pratt: one automaton a stop string, a byte at a time.
#include "server/engine/stop_matcher.h"

#include <algorithm>

namespace smt {

StopMatcher::StopMatcher(std::span<const std::string> stop_strings) {
  patterns_.reserve(stop_strings.size());
  for (const std::string& text : stop_strings) {
    Pattern pattern{.text = text, .failure = std::vector<size_t>(text.size())};
    size_t border = 0;
    for (size_t i = 1; i < text.size(); ++i) {
      while (border > 0 && text[i] != text[border]) border = pattern.failure[border - 1];
      if (text[i] == text[border]) ++border;
      pattern.failure[i] = border;
    }
    patterns_.push_back(std::move(pattern));
  }
}

bool StopMatcher::Advance(Pattern& pattern, char byte) {
  size_t& matched = pattern.matched;
  while (matched > 0 && byte != pattern.text[matched]) matched = pattern.failure[matched - 1];
  if (byte == pattern.text[matched]) ++matched;
  if (matched < pattern.text.size()) return false;
  matched = pattern.failure[matched - 1];
  return true;
}

StopMatcher::Match StopMatcher::Append(std::string_view piece) {
  Match first;
  for (size_t at = 0; at < piece.size(); ++at) {
    int32_t longest = -1;
    for (size_t i = 0; i < patterns_.size(); ++i) {
      if (patterns_[i].text.empty() || !Advance(patterns_[i], piece[at])) continue;
      if (longest < 0 || patterns_[i].text.size() > patterns_[longest].text.size()) longest = static_cast<int32_t>(i);
    }
    if (longest >= 0 && first.index < 0) first = {.index = longest, .end = at + 1};
  }
  return first;
}

size_t StopMatcher::pending() const {
  size_t longest = 0;
  for (const Pattern& pattern : patterns_) longest = std::max(longest, pattern.matched);
  return longest;
}

}  // namespace smt
