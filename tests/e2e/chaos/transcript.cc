#include "tests/e2e/chaos/transcript.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace smt::testing {

void Transcript::Take(const v1::GenerationEvent& event) {
  if (event.has_started()) TakeStarted(event.started());
  if (event.has_chunk() && event.chunk().echo()) {
    echo_.insert(echo_.end(), event.chunk().token_ids().begin(), event.chunk().token_ids().end());
  } else if (event.has_chunk()) {
    TakeChunk(event.chunk());
  }
  if (event.has_finished()) TakeFinished(event.finished());
}

void Transcript::Began(int64_t start_position, int64_t prompt_tokens) {
  if (start_position_ >= 0 && start_position != start_position_) {
    Fail(findings_->diverged, absl::StrCat("begins at ", start_position, ", the client was at ", start_position_));
  }
  start_position_ = start_position;
  first_ = position_ = start_position + prompt_tokens;
}

void Transcript::TakeStarted(const v1::GenerationStarted& started) {
  durable_ = std::max(durable_, started.durable_position());
  if (!known()) {
    Began(started.start_position(), started.prompt_tokens());
    digest_ = started.digest();
  } else if (started.start_position() != start_position_ || started.prompt_tokens() != prompt_tokens()) {
    Fail(findings_->diverged, absl::StrCat("was begun at ", start_position_, "+", prompt_tokens(), ", a resume says ",
                                           started.start_position(), "+", started.prompt_tokens()));
  }
}

void Transcript::TakeChunk(const v1::GenerationChunk& chunk) {
  durable_ = std::max(durable_, chunk.durable_position());
  const int64_t n = chunk.token_ids_size(), begin = chunk.position() - n;
  if (!known()) Fail(findings_->errors, "a chunk comes before `started`");
  if (finished()) Fail(findings_->doubled, absl::StrCat("a chunk comes after the end: position ", chunk.position()), n);
  if (begin < position_) {
    Fail(findings_->doubled,
         absl::StrCat("ids ", begin + 1, "..", chunk.position(), " come after position ", position_),
         std::min(n, position_ - begin));
  }
  if (begin > position_) {
    Fail(findings_->lost, absl::StrCat("ids ", position_ + 1, "..", begin, " never came"), begin - position_);
  }
  if (durability_ == v1::DURABILITY_TOKEN && chunk.durable_position() < chunk.position()) {
    Fail(findings_->diverged,
         absl::StrCat("position ", chunk.position(), " is sent while ", chunk.durable_position(), " is durable"));
  }
  ids_.insert(ids_.end(), chunk.token_ids().begin(), chunk.token_ids().end());
  text_ += chunk.text();
  position_ = chunk.position();
  digest_ = chunk.digest();
  marks_.push_back({ids_.size(), text_.size(), digest_});
  if (counted_) findings_->tokens += n;
}

void Transcript::TakeFinished(const v1::GenerationFinished& finished) {
  if (finished.text_position() > position_) {
    Fail(findings_->lost, absl::StrCat("the end is at ", finished.text_position(), ", ids came up to ", position_),
         finished.text_position() - position_);
  } else if (finished.text_position() < position_) {
    Fail(findings_->diverged, absl::StrCat("the end is at ", finished.text_position(), ", ids came up to ", position_));
  } else if (!digest_.empty() && finished.digest() != digest_) {
    Fail(findings_->diverged, absl::StrCat("the end's digest is ", absl::BytesToHexString(finished.digest()),
                                           ", the last chunk's ", absl::BytesToHexString(digest_)));
  }
  if (finished.usage().generated_tokens() != finished.position() - first_) {
    Fail(findings_->diverged, absl::StrCat("the end is at ", finished.position(), " after ",
                                           finished.usage().generated_tokens(), " ids from ", first_));
  }
  if (durability_ != v1::DURABILITY_NONE && finished.durable_position() < finished.position()) {
    Fail(findings_->diverged, absl::StrCat("the end at ", finished.position(), " is told while ",
                                           finished.durable_position(), " is durable"));
  }
  finished_ = finished;
}

int64_t Transcript::Rewind(int64_t ids) {
  const auto before = static_cast<int64_t>(ids_.size());
  while (!marks_.empty() && static_cast<int64_t>(marks_.back().ids) > ids) marks_.pop_back();
  ids_.resize(marks_.empty() ? 0 : marks_.back().ids);
  text_.resize(marks_.empty() ? 0 : marks_.back().text);
  digest_ = marks_.empty() ? "" : marks_.back().digest;  // empty: not compared
  position_ = first_ + static_cast<int64_t>(ids_.size());
  finished_.reset();
  return before - static_cast<int64_t>(ids_.size());
}

void Transcript::Compare(const Transcript& other, const std::string& what, bool ends) const {
  if (known() && other.known() && first_ != other.first_) {
    return Fail(findings_->diverged, absl::StrCat("generates from ", first_, ", ", what, " from ", other.first_));
  }
  const size_t n = std::min(ids_.size(), other.ids_.size());
  for (size_t i = 0; i < n; ++i) {
    if (ids_[i] == other.ids_[i]) continue;
    return Fail(findings_->diverged,
                absl::StrCat("position ", first_ + static_cast<int64_t>(i) + 1, " holds id ", ids_[i], ", ", what, " ",
                             other.ids_[i], " (of ", ids_.size(), " and ", other.ids_.size(), ")"));
  }
  if (!ends || !finished() || !other.finished()) return;
  if (ids_.size() != other.ids_.size() || end().position() != other.end().position()) {
    Fail(findings_->diverged, absl::StrCat("ends with ", ids_.size(), " ids at ", end().position(), ", ", what,
                                           " with ", other.ids_.size(), " at ", other.end().position()));
  } else if (text_ != other.text_) {
    const size_t n =
        std::mismatch(text_.begin(), text_.begin() + std::min(text_.size(), other.text_.size()), other.text_.begin())
            .first -
        text_.begin();
    const size_t from = n < 20 ? 0 : n - 20;
    Fail(findings_->diverged,
         absl::StrCat("has the ids of ", what, " but another text: \"", absl::CHexEscape(text_.substr(from, 60)),
                      "\" instead of \"", absl::CHexEscape(other.text_.substr(from, 60)), "\" at byte ", from, " of ",
                      text_.size()));
  } else if (end().digest() != other.end().digest()) {
    Fail(findings_->diverged, absl::StrCat("has the ids of ", what, " but another digest"));
  } else if (!cut_short() && !other.cut_short() &&
             (end().reason() != other.end().reason() || end().stop_string() != other.end().stop_string() ||
              end().stop_token_id() != other.end().stop_token_id())) {
    Fail(findings_->diverged, absl::StrCat("ends as ", v1::FinishReason_Name(end().reason()), ", ", what, " as ",
                                           v1::FinishReason_Name(other.end().reason())));
  }
}

}  // namespace smt::testing
