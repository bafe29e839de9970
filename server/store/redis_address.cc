#include "server/store/redis_address.h"

#include <charconv>
#include <optional>

#include "absl/strings/str_split.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"

namespace smt {
namespace {

constexpr std::string_view kForms = "HOST:PORT, /PATH of a socket, redis://… or rediss://…";

std::optional<int> Number(std::string_view text, int most) {
  int value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0 || value > most) return std::nullopt;
  return value;
}

absl::StatusOr<std::string> Unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out.push_back(text[i]);
      continue;
    }
    uint8_t byte = 0;
    const std::string_view hex = text.substr(i + 1, 2);
    const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), byte, 16);
    if (hex.size() < 2 || error != std::errc() || end != hex.data() + 2) {
      return absl::InvalidArgumentError("the user or password has a % without two hexadecimal digits (write it %25)");
    }
    out.push_back(static_cast<char>(byte));
    i += 2;
  }
  return out;
}

// HOST, HOST:PORT, [IPV6] or [IPV6]:PORT.
absl::StatusOr<RedisEndpoint> ParseEndpoint(std::string_view text, bool needs_port) {
  RedisEndpoint out;
  std::string_view port;
  bool has_port = false;
  if (text.starts_with('[')) {
    const size_t close = text.find(']');
    if (close == std::string_view::npos) return absl::InvalidArgumentError("an IPv6 address needs its ']'");
    out.host = text.substr(1, close - 1);
    const std::string_view rest = text.substr(close + 1);
    has_port = rest.starts_with(':');
    if (!rest.empty() && !has_port) return absl::InvalidArgumentError("only :PORT may follow an IPv6 address's ']'");
    if (has_port) port = rest.substr(1);
  } else {
    const size_t colon = text.find(':');
    out.host = text.substr(0, colon);
    has_port = colon != std::string_view::npos;
    if (has_port) port = text.substr(colon + 1);
  }
  if (out.host.empty()) return absl::InvalidArgumentError(StrCat("the host is empty; it must be ", kForms));
  if (!has_port && needs_port) return absl::InvalidArgumentError(StrCat("there is no port; it must be ", kForms));
  if (has_port) {
    const std::optional<int> number = Number(port, 65535);
    if (!number || *number == 0) {
      return absl::InvalidArgumentError(StrCat("the port '", port, "' must be a number of 1 to 65535"));
    }
    out.port = *number;
  }
  return out;
}

absl::StatusOr<RedisAddress> ParseUri(std::string_view rest, bool tls) {
  RedisAddress out;
  out.tls = tls;
  if (const size_t at = rest.rfind('@'); at != std::string_view::npos) {
    const std::string_view credentials = rest.substr(0, at);
    rest.remove_prefix(at + 1);
    const size_t colon = credentials.find(':');
    if (colon == std::string_view::npos) {
      return absl::InvalidArgumentError("before the '@' must stand USER:PASSWORD or :PASSWORD");
    }
    ASSIGN_OR_RETURN(out.user, Unescape(credentials.substr(0, colon)));
    ASSIGN_OR_RETURN(out.password, Unescape(credentials.substr(colon + 1)));
  }
  if (const size_t slash = rest.find('/'); slash != std::string_view::npos) {
    const std::string_view database = rest.substr(slash + 1);
    rest = rest.substr(0, slash);
    if (!database.empty()) {
      const std::optional<int> number = Number(database, 1 << 20);
      if (!number) return absl::InvalidArgumentError(StrCat("the database '", database, "' must be a number"));
      out.database = *number;
    }
  }
  for (const absl::string_view text : absl::StrSplit(ToAbsl(rest), ',')) {
    ASSIGN_OR_RETURN(RedisEndpoint endpoint, ParseEndpoint({text.data(), text.size()}, false));
    out.endpoints.push_back(std::move(endpoint));
  }
  return out;
}

}  // namespace

std::string ToString(const RedisEndpoint& e) {
  if (!e.socket_path.empty()) return e.socket_path;
  return e.host.find(':') == std::string::npos ? StrCat(e.host, ":", e.port) : StrCat("[", e.host, "]:", e.port);
}

absl::StatusOr<RedisAddress> ParseRedisAddress(std::string_view text) {
  if (text.starts_with("redis://")) return ParseUri(text.substr(8), false);
  if (text.starts_with("rediss://")) return ParseUri(text.substr(9), true);
  if (const size_t scheme = text.find("://"); scheme != std::string_view::npos && !text.starts_with("unix://")) {
    return absl::InvalidArgumentError(StrCat("it begins with '", text.substr(0, scheme), "://'; it must be ", kForms));
  }
  RedisAddress out;
  if (text.starts_with("unix:")) text.remove_prefix(text.starts_with("unix://") ? 7 : 5);
  if (text.starts_with('/')) {
    out.endpoints.push_back({.socket_path = std::string(text), .host = "", .port = 0});
    return out;
  }
  ASSIGN_OR_RETURN(RedisEndpoint endpoint, ParseEndpoint(text, true));
  out.endpoints.push_back(std::move(endpoint));
  return out;
}

}  // namespace smt
