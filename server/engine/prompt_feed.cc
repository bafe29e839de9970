#include "server/engine/prompt_feed.h"

#include <algorithm>

namespace smt {

PromptFeed::PromptFeed(std::vector<int32_t> before, std::span<const int32_t> prompt, Options options)
    : ids_(std::move(before)), before_(static_cast<int64_t>(ids_.size())), options_(options) {
  ids_.insert(ids_.end(), prompt.begin(), prompt.end());
  if (prompt.empty()) options_.score = false;
  score_begin_ = before_;
  if (options_.score && options_.score_first) {
    score_present_ = before_ == 0;
    score_begin_ = std::max<int64_t>(before_ - 1, 0);
  }
}

PromptFeed::Item PromptFeed::Next(int64_t budget, int64_t score_budget) const {
  const std::span<const int32_t> ids(ids_);
  const auto total = static_cast<int64_t>(ids_.size());
  const auto part = [&](int64_t from, int64_t count) {
    return ids.subspan(static_cast<size_t>(from), static_cast<size_t>(count));
  };
  if (score_present_) return {.ids = {}, .targets = part(0, 1), .want = Want::kScore};
  if (options_.score && at_ >= score_begin_ && at_ < total - 1) {
    const int64_t count = std::min(score_budget, total - 1 - at_);
    return {.ids = part(at_, count), .targets = part(at_ + 1, count), .want = Want::kScore};
  }
  const int64_t end = options_.score && at_ < score_begin_ ? score_begin_ : total;
  const int64_t count = std::min(budget, end - at_);
  const bool last = at_ + count == total;
  return {.ids = part(at_, count), .targets = {}, .want = last && options_.draw ? Want::kSample : Want::kNothing};
}

void PromptFeed::Advance(const Item& item) {
  if (item.want == Want::kScore && item.ids.empty()) score_present_ = false;
  if (item.want == Want::kSample) drawn_ = true;
  at_ += static_cast<int64_t>(item.ids.size());
}

}  // namespace smt
