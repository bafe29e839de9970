#include "server/service/text_assembler.h"

#include <algorithm>
#include <utility>

#include "server/service/utf8.h"

namespace smt {

TextAssembler::TextAssembler(const std::vector<std::string>* token_bytes, std::vector<std::string> stop_strings,
                             int64_t min_tokens)
    : token_bytes_(token_bytes),
      stop_strings_(std::move(stop_strings)),
      min_tokens_(min_tokens),
      matcher_(stop_strings_) {}

void TextAssembler::Append(TokenOutput token, Released* out) {
  if (found_stop_string()) return;
  const std::string_view bytes = static_cast<size_t>(token.id) < token_bytes_->size()
                                     ? std::string_view((*token_bytes_)[token.id])
                                     : std::string_view();
  const StopMatcher::Match match = matcher_.Append(bytes);
  ++appended_;
  if (match.index >= 0 && appended_ >= min_tokens_) {
    const auto length = static_cast<int64_t>(stop_strings_[match.index].size());
    stop_begin_ = total_bytes_ + static_cast<int64_t>(match.end) - length;
    stop_string_ = match.index;
  }
  pending_.append(bytes);
  total_bytes_ += static_cast<int64_t>(bytes.size());
  held_.push_back({std::move(token), total_bytes_});
  if (!found_stop_string()) ReleaseUpTo(total_bytes_ - static_cast<int64_t>(matcher_.pending()), out);
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
