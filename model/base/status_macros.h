// RETURN_IF_ERROR and ASSIGN_OR_RETURN under the names that Abseil's users know; Debian 12's Abseil (20220623) lacks
// them. Both work in functions that return absl::Status or absl::StatusOr<T>.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define RETURN_IF_ERROR(expr)                  \
  do {                                         \
    ::absl::Status smt_status_ = (expr);       \
    if (!smt_status_.ok()) return smt_status_; \
  } while (false)

#define SMT_STATUS_CONCAT_INNER_(a, b) a##b
#define SMT_STATUS_CONCAT_(a, b) SMT_STATUS_CONCAT_INNER_(a, b)
#define ASSIGN_OR_RETURN(lhs, expr) ASSIGN_OR_RETURN_IMPL_(SMT_STATUS_CONCAT_(smt_status_or_, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_IMPL_(result, lhs, expr)      \
  auto result = (expr);                                \
  if (!result.ok()) return std::move(result).status(); \
  lhs = *std::move(result)
