// Where a reader stands in a stream that begins again, and whether it is the stream that the reader knows.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "server/service/digest.h"

namespace smt {

// The last position of a chunk, and its digest, eight bytes; empty: not looked at.
struct StreamPoint {
  int64_t position = 0;
  std::string digest;
};

// Passes over what the reader has. Ids come in pieces that are released together, as they did the first time.
class StreamSkip {
 public:
  // `start`: the position before the first generated id.
  StreamSkip(std::optional<StreamPoint> after, int64_t start) : after_(std::move(after)), start_(start), at_(start) {}

  // Whether the piece that ends at `position`, with `digest` after it, is new to the reader. First asked for the start.
  // A piece at the position of the one before is the tail: text without an id.
  bool Wants(int64_t position, const RunningDigest& digest);
  // FAILED_PRECONDITION (DIVERGED) once it is known that the reader has another text; at the end of the stream also
  // OUT_OF_RANGE, when its position lies past it. OUT_OF_RANGE at once when it lies before the start.
  absl::Status Check(std::string_view session_id) const;
  absl::Status CheckEnd(std::string_view session_id) const;

 private:
  absl::Status Diverged(std::string_view session_id) const;
  absl::Status OutOfRange() const;

  const std::optional<StreamPoint> after_;
  const int64_t start_;
  int64_t at_;
  bool met_ = false, diverged_ = false;
  bool has_tail_ = false, tail_met_ = false;  // the reader, we
};

}  // namespace smt
