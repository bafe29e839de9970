// Finds stop strings in text that comes in pieces, wherever the pieces are cut. Bytes, not characters. One matcher is
// one generation's text. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace smt {

class StopMatcher {
 public:
  struct Match {
    int32_t index = -1;  // into the stop strings; -1: none
    size_t end = 0;      // bytes of the piece up to and with the match's last one
  };

  // Empty strings never match.
  explicit StopMatcher(std::span<const std::string> stop_strings);

  // Takes the next piece and gives the first match to end in it (of several that end at one byte the longest, then the
  // lowest index). The rest of the piece is taken all the same, so a caller may ignore a match and go on.
  Match Append(std::string_view piece);

  // Length of the longest beginning of a stop string that the text ends with: bytes that may yet become a match.
  size_t pending() const;

 private:
  struct Pattern {
    std::string text;
    std::vector<size_t> failure;  // failure[i]: longest proper border of the first i + 1 bytes
    size_t matched = 0;           // bytes of `text` that the text so far ends with
  };
  // Takes one byte; true when the pattern is complete with it.
  static bool Advance(Pattern& pattern, char byte);

  std::vector<Pattern> patterns_;
};

}  // namespace smt
