#include "server/service/stream_skip.h"

#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/service/names.h"

namespace smt {

bool StreamSkip::Wants(int64_t position, const RunningDigest& digest) {
  const bool tail = met_ && position == at_;
  at_ = position;
  if (!after_) return true;
  if (position > after_->position) {
    diverged_ |= has_tail_;  // its text has ended here
    return true;
  }
  if (tail) {
    tail_met_ = true;
    return !has_tail_;
  }
  if (position == after_->position) {
    met_ = true;
    RunningDigest with_tail = digest;
    with_tail.AddTail();
    has_tail_ = after_->digest == with_tail.bytes();
    diverged_ = !after_->digest.empty() && after_->digest != digest.bytes() && !has_tail_;
  }
  return false;
}

absl::Status StreamSkip::Check(std::string_view session_id) const {
  if (!after_) return absl::OkStatus();
  if (after_->position < start_) return OutOfRange();
  // Past the point without having stood there: no piece ended where the reader says that one did.
  const bool reached = at_ >= after_->position;
  if (!reached || (met_ && !diverged_)) return absl::OkStatus();
  return Diverged(session_id);
}

absl::Status StreamSkip::CheckEnd(std::string_view session_id) const {
  if (after_ && after_->position > at_) return OutOfRange();
  if (has_tail_ && !tail_met_) return Diverged(session_id);
  return Check(session_id);
}

absl::Status StreamSkip::Diverged(std::string_view session_id) const {
  const std::string message = StrCat("what the client has up to position ", after_->position, " is not what session '",
                                     session_id, "' has there");
  return WithDetails(
      absl::FailedPreconditionError(message),
      {.reason = "DIVERGED", .preconditions = {{"DIVERGED", SessionName(std::string(session_id)), message}}});
}

absl::Status StreamSkip::OutOfRange() const {
  return WithDetails(
      absl::OutOfRangeError(StrCat("after_position is ", after_->position, "; allowed: ", start_, " to ", at_)),
      {.reason = "OUT_OF_RANGE", .metadata = {{"first_position", StrCat(start_)}, {"last_position", StrCat(at_)}}});
}

}  // namespace smt
