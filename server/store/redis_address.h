// Where a Redis is, as flags and configuration files write it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace smt {

struct RedisEndpoint {
  std::string socket_path;  // of a Unix socket; empty: TCP
  std::string host;
  int port = 6379;
  friend bool operator==(const RedisEndpoint&, const RedisEndpoint&) = default;
};
std::string ToString(const RedisEndpoint& endpoint);  // "host:port", "[::1]:port" or the socket's path

struct RedisAddress {
  std::vector<RedisEndpoint> endpoints;  // one; several only of Sentinels
  bool tls = false;
  std::string user, password;
  int database = 0;
};

// One of
//   HOST:PORT   /PATH   unix:/PATH
//   redis://[[USER]:PASSWORD@]HOST[:PORT][,HOST[:PORT]…][/DATABASE]   rediss://… is TLS; %XX stands for any byte
// INVALID_ARGUMENT says what is wrong, without the password.
absl::StatusOr<RedisAddress> ParseRedisAddress(std::string_view text);

}  // namespace smt
