// Turns a request's generated ids into what may be sent: ids with their complete text, valid UTF-8, and never a byte of
// a stop string.
//
// Ids are held back while their bytes end within a code point, or while the text ends with the beginning of a stop
// string. So a piece of released text is exactly the bytes of the released ids (ill-formed bytes as U+FFFD); the one
// exception is the end at a stop string that begins inside an id: the bytes before it are released, the id is not.
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "server/engine/engine.h"
#include "server/engine/stop_matcher.h"

namespace smt {

class TextAssembler {
 public:
  // `token_bytes` must outlive it; ids beyond it have no bytes. Stop strings that are complete before `min_tokens` ids
  // are ignored, as the engine does.
  TextAssembler(const std::vector<std::string>* token_bytes, std::vector<std::string> stop_strings,
                int64_t min_tokens = 0);

  // What may be sent now, in order. Text belongs to these ids.
  struct Released {
    std::vector<TokenOutput> tokens;
    std::string text;
    bool empty() const { return tokens.empty() && text.empty(); }
  };

  // Takes the next generated id; appends what it frees to `out`. Ids after a stop string's end are ignored.
  void Append(TokenOutput token, Released* out);

  // The end: no more ids come, so everything held back is released up to a stop string.
  void Finish(Released* out);

  bool found_stop_string() const { return stop_begin_ != kNone; }
  int32_t stop_string() const { return stop_string_; }  // which; -1: none
  // Position of the last released id; 0 before the first.
  int64_t released_position() const { return released_position_; }

 private:
  static constexpr int64_t kNone = -1;
  struct Held {
    TokenOutput token;
    int64_t end = 0;  // offset in the whole text behind its last byte
  };

  void ReleaseUpTo(int64_t limit, Released* out);
  void Take(int64_t end, Released* out);  // moves bytes up to offset `end` out of pending_

  const std::vector<std::string>* const token_bytes_;
  const std::vector<std::string> stop_strings_;
  const int64_t min_tokens_;
  StopMatcher matcher_;
  int64_t appended_ = 0;  // ids
  std::deque<Held> held_;
  std::string pending_;         // bytes not released yet
  int64_t released_bytes_ = 0;  // offset in the whole text of pending_[0]
  int64_t total_bytes_ = 0;
  int64_t stop_begin_ = kNone;  // offset of the stop string found
  int32_t stop_string_ = -1;
  int64_t released_position_ = 0;
};

}  // namespace smt
