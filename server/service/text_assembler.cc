#include "server/service/text_assembler.h"

#include <algorithm>
#include <utility>

#include "server/service/utf8.h"

namespace smt {

TextAssembler::TextAssembler(const std::vector<std::string>* token_bytes, const std::vector<std::string>& stop_strings)
    : token_bytes_(token_bytes) {
  for (const std::string& stop : stop_strings) {
    Matcher matcher{stop, std::vector<int32_t>(stop.size(), 0)};
    for (size_t i = 1; i < stop.size(); ++i) {
      int32_t k = matcher.failure[i - 1];
      while (k > 0 && stop[k] != stop[i]) k = matcher.failure[k - 1];
      matcher.failure[i] = stop[k] == stop[i] ? k + 1 : 0;
    }
    matchers_.push_back(std::move(matcher));
  }
}

void TextAssembler::Match(char byte) {
  for (Matcher& matcher : matchers_) {
    while (matcher.matched > 0 && matcher.stop[matcher.matched] != byte) {
      matcher.matched = matcher.failure[matcher.matched - 1];
    }
    if (matcher.stop[matcher.matched] == byte) ++matcher.matched;
    if (matcher.matched == static_cast<int32_t>(matcher.stop.size())) {
      // Of several that end here the longest begins first, and nothing of it may leak.
      const int64_t begin = total_bytes_ - matcher.matched;
      stop_begin_ = stop_begin_ == kNone ? begin : std::min(stop_begin_, begin);
    }
  }
}

void TextAssembler::Append(TokenOutput token, Released* out) {
  if (found_stop_string()) return;
  const std::string_view bytes = static_cast<size_t>(token.id) < token_bytes_->size()
                                     ? std::string_view((*token_bytes_)[token.id])
                                     : std::string_view();
  for (const char byte : bytes) {
    pending_.push_back(byte);
    ++total_bytes_;
    Match(byte);
    if (found_stop_string()) break;
  }
  // An id cut by the stop string's end still ends behind the stop string's beginning, so it is never released.
  held_.push_back({std::move(token), total_bytes_});
  if (found_stop_string()) return;
  int32_t longest = 0;
  for (const Matcher& matcher : matchers_) longest = std::max(longest, matcher.matched);
  ReleaseUpTo(total_bytes_ - longest, out);
}

void TextAssembler::ReleaseUpTo(int64_t limit, Released* out) {
  size_t count = held_.size();
  while (count > 0) {
    const int64_t end = held_[count - 1].end;
    const auto length = static_cast<size_t>(end - released_bytes_);
    if (end <= limit && IncompleteUtf8Suffix(std::string_view(pending_).substr(0, length)) == 0) break;
    --count;
  }
  if (count == 0) return;
  Take(held_[count - 1].end, out);
  released_position_ = held_[count - 1].token.position;
  for (size_t i = 0; i < count; ++i) {
    out->tokens.push_back(std::move(held_.front().token));
    held_.pop_front();
  }
}

void TextAssembler::Take(int64_t end, Released* out) {
  const auto length = static_cast<size_t>(end - released_bytes_);
  AppendSanitizedUtf8(std::string_view(pending_).substr(0, length), &out->text);
  pending_.erase(0, length);
  released_bytes_ = end;
}

void TextAssembler::Finish(Released* out) {
  const int64_t limit = found_stop_string() ? std::max(stop_begin_, released_bytes_) : total_bytes_;
  while (!held_.empty() && held_.front().end <= limit) {
    released_position_ = held_.front().token.position;
    out->tokens.push_back(std::move(held_.front().token));
    held_.pop_front();
  }
  Take(limit, out);
  held_.clear();
  pending_.clear();
}

}  // namespace smt
