// EXPECT_OK, ASSERT_OK, StatusIs: for absl::Status and absl::StatusOr<T>.
#pragma once

#include <gmock/gmock.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace smt {

inline const absl::Status& StatusOf(const absl::Status& s) { return s; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& s) {
  return s.status();
}

MATCHER_P2(StatusIs, code, message, "has code " + absl::StatusCodeToString(code) + " and the message") {
  const absl::Status& s = StatusOf(arg);
  *result_listener << s.ToString();
  return s.code() == code && testing::ExplainMatchResult(message, std::string(s.message()), result_listener);
}
MATCHER(IsOk, "is OK") {
  *result_listener << StatusOf(arg).ToString();
  return StatusOf(arg).ok();
}

}  // namespace smt

#define EXPECT_OK(expr) EXPECT_THAT(expr, ::smt::IsOk())
#define ASSERT_OK(expr) ASSERT_THAT(expr, ::smt::IsOk())
