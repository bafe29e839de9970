// One connection to a Redis: a socket, TLS where asked for, pipelined commands and their replies, all of it under
// deadlines. What commands mean is redis_client.h's business. Not thread-safe.
#pragma once

#include <hiredis/read.h>
#include <openssl/ssl.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/store/redis_address.h"

namespace smt::store_internal {

using SteadyTime = std::chrono::steady_clock::time_point;

struct RedisReply {
  enum class Kind { kNil, kText, kNumber, kArray, kError };
  Kind kind = Kind::kNil;
  std::string text;  // kText, kError
  int64_t number = 0;
  std::vector<RedisReply> elements;

  bool is_nil() const { return kind == Kind::kNil; }
  bool is_error() const { return kind == Kind::kError; }
};

using RedisCommand = std::vector<std::string>;  // its words

struct RedisTlsFiles {
  std::string ca;         // PEM; empty: the system's
  std::string cert, key;  // PEM of the client's; empty: none
};
// INVALID_ARGUMENT naming the file that cannot be used.
absl::StatusOr<std::shared_ptr<SSL_CTX>> NewRedisTlsContext(const RedisTlsFiles& files);

class RedisConnection {
 public:
  // `tls` may be null. UNAVAILABLE: not reached, or not to be trusted.
  static absl::StatusOr<std::unique_ptr<RedisConnection>> Connect(const RedisEndpoint& endpoint, SSL_CTX* tls,
                                                                  SteadyTime deadline);
  ~RedisConnection();

  // Sends all commands and reads all their replies, which are added to `replies` as they come: on an error those that
  // are there are valid. After an error the connection is of no use. DEADLINE_EXCEEDED or UNAVAILABLE.
  absl::Status Run(std::span<const RedisCommand> commands, SteadyTime deadline, std::vector<RedisReply>* replies);

  // Whether the other side has closed it while nobody looked.
  bool Stale() const;

 private:
  RedisConnection(const RedisEndpoint& endpoint, int fd);
  absl::Status StartTls(const RedisEndpoint& endpoint, SSL_CTX* tls, SteadyTime deadline);
  absl::Status Exchange(SteadyTime deadline);    // waits, then sends and receives what is possible
  absl::Status SendSome();                       // from out_
  absl::Status ReceiveSome();                    // to the reader, or through TLS to it
  absl::Status Parse(std::vector<RedisReply>*);  // whole replies that have been received
  void DrainTls();
  absl::Status Broken(std::string_view what) const;

  struct FreeReader {
    void operator()(redisReader* reader) const { redisReaderFree(reader); }
  };
  struct FreeSsl {
    void operator()(SSL* ssl) const { SSL_free(ssl); }
  };

  const std::string name_;
  const int fd_;
  std::unique_ptr<redisReader, FreeReader> reader_;
  std::unique_ptr<SSL, FreeSsl> ssl_;  // over memory: bytes go through the same socket code with and without
  std::string out_;                    // to be sent, from out_at_
  size_t out_at_ = 0;
};

}  // namespace smt::store_internal
