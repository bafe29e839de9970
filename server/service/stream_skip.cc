#include "server/service/stream_skip.h"

#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/service/names.h"

namespace smt {

bool StreamSkip::Wants(int64_t position, const RunningDigest& digest) {
  at_ = position;
  if (!after_ || position > after_->position) return true;
  if (position == after_->position) {
    met_ = true;
    diverged_ = !after_->digest.empty() && after_->digest != digest.bytes();
  }
  return false;
}

absl::Status StreamSkip::Check(std::string_view session_id) const {
  if (!after_) return absl::OkStatus();
  if (after_->position < start_) return OutOfRange();
  // Past the point without having stood there: no piece ended where the reader says that one did.
  const bool reached = at_ >= after_->position;
  if (!reached || (met_ && !diverged_)) return absl::OkStatus();
  const std::string message = StrCat("what the client has up to position ", after_->position, " is not what session '",
                                     session_id, "' has there");
  return WithDetails(
      absl::FailedPreconditionError(message),
      {.reason = "DIVERGED", .preconditions = {{"DIVERGED", SessionName(std::string(session_id)), message}}});
}

absl::Status StreamSkip::CheckEnd(std::string_view session_id) const {
  if (after_ && after_->position > at_) return OutOfRange();
  return Check(session_id);
}

absl::Status StreamSkip::OutOfRange() const {
  return WithDetails(
      absl::OutOfRangeError(StrCat("after_position is ", after_->position, "; allowed: ", start_, " to ", at_)),
      {.reason = "OUT_OF_RANGE", .metadata = {{"first_position", StrCat(start_)}, {"last_position", StrCat(at_)}}});
}

}  // namespace smt
