// StrCat and StrJoin over std::string_view: Debian 12's Abseil is built with a string_view of its own, which std's does
// not convert to.
#pragma once

#include <charconv>
#include <string>
#include <string_view>
#include <type_traits>

#include "absl/strings/string_view.h"

namespace smt {

inline absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

namespace strings_internal {

inline void Append(std::string& out, std::string_view text) { out.append(text); }

template <typename Text>
requires(std::is_same_v<Text, absl::string_view>) void Append(std::string& out, Text text) {
  out.append(text.data(), text.size());
}

template <typename Number>
requires(std::is_arithmetic_v<Number> && !std::is_same_v<Number, bool> &&
         !std::is_same_v<Number, char>) void Append(std::string& out, Number number) {
  char digits[64];
  const auto end = std::to_chars(digits, digits + sizeof(digits), number);  // floating point: the shortest exact form
  out.append(digits, end.ptr);
}

}  // namespace strings_internal

template <typename... Parts>
std::string StrCat(const Parts&... parts) {
  std::string out;
  (strings_internal::Append(out, parts), ...);
  return out;
}

template <typename Range>
std::string StrJoin(const Range& parts, std::string_view separator) {
  std::string out;
  bool first = true;
  for (const auto& part : parts) {
    if (!first) out.append(separator);
    first = false;
    strings_internal::Append(out, part);
  }
  return out;
}

}  // namespace smt
