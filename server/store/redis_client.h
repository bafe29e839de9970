// Connections to the Redis that a store is in: opening and checking them, sending what got no answer again, noticing
// that the store is not the same any more. Knows of the store only its format record and the writers' counters.
//
// A writer's counter is a key of its own that goes up with each commit, as its last command. Redis loses its last
// writes only, so whoever reconnects and finds its counter where it was has lost nothing. Who finds it behind draws a
// new incarnation for the store, which tells all others.
//
// Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/store/redis_connection.h"
#include "server/store/redis_keys.h"
#include "server/store/redis_scripts.h"
#include "server/store/redis_store.h"

namespace smt::store_internal {

using Words = std::vector<std::string>;

class RedisClient {
 public:
  // Which connections: of commits (one), of waiting for handovers (one), all others.
  enum class Lane { kShared, kCommit, kWaiting };
  // What happens when the connection is lost: a read is sent once more, a write until it is answered or
  // `recover_timeout` is over. What finishes something begun is kept up even where it could not be sent at all. A look
  // at how Redis does is made once and has a second.
  enum class Effect { kRead, kLook, kWrite, kFinish };

  static absl::StatusOr<std::unique_ptr<RedisClient>> Open(RedisStoreOptions options);
  ~RedisClient();

  RedisCommand Script(RedisScript script, const Words& keys, Words arguments) const;

  // Replies to all commands, errors of single ones among them. On a lost connection those without a reply are sent
  // again, so they must be such that twice is as good as once. `wait` is what a command may take by intent.
  absl::StatusOr<std::vector<RedisReply>> Run(std::span<const RedisCommand> commands, Effect effect,
                                              Lane lane = Lane::kShared, absl::Duration wait = absl::ZeroDuration());
  // The only command's reply; its error as a status.
  absl::StatusOr<RedisReply> Run(RedisCommand command, Effect effect, Lane lane = Lane::kShared,
                                 absl::Duration wait = absl::ZeroDuration());

  // An error reply as a status. OK if it is none.
  absl::Status StatusOf(const RedisReply& reply) const;

  // The format record as a commit found it: not OK, from then on, if it is not the one known.
  absl::Status CheckFormat(const RedisReply& format);
  // Adds a commit's last commands. The reply to the very last is for Counted.
  void AddCount(std::vector<RedisCommand>* commands);
  void Counted(const RedisReply& reply);

  absl::Status Replaced() const;  // UNAVAILABLE once the store is another one
  absl::Status Unfit() const;     // UNAVAILABLE while it must not be written to, as Health found
  absl::Status Adopt();           // whatever the store is now
  std::string instance() const;   // drawn at random: of this object, and anew with each Adopt
  std::string incarnation() const;

  bool durable_sync() const { return durable_; }
  bool has_waitaof() const { return waitaof_; }
  std::string Description() const;
  absl::Status Health();
  int64_t FreeBytes();

  const RedisStoreOptions& options() const { return options_; }
  const RedisKeys& keys() const { return keys_; }

 private:
  using Connection = std::unique_ptr<RedisConnection>;
  struct Pool {
    size_t limit = 1;
    size_t in_use = 0;
    std::vector<Connection> idle;
    bool HasRoom() const { return in_use < limit; }
  };
  // Returns its connection, or its place, to the pool.
  class Borrowed;

  RedisClient(RedisStoreOptions options, RedisAddress address, std::shared_ptr<SSL_CTX> tls);

  absl::StatusOr<Connection> Connect();
  absl::StatusOr<RedisEndpoint> AskSentinels(SteadyTime deadline);
  absl::Status Greet(RedisConnection& connection, SteadyTime deadline);
  absl::Status CheckServer(std::string_view info) const;
  absl::Status LearnPersistence(std::string_view info, const std::vector<RedisReply>& config);
  absl::Status MakeFormat(RedisConnection& connection, SteadyTime deadline);
  absl::Status TakeFormat(std::string_view record);
  absl::Status Rewound(RedisConnection& connection, SteadyTime deadline);
  absl::Status LatchReplaced(std::string_view why);
  bool CounterMayHaveExpired() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<std::string> Password() const;
  absl::Status LoadScripts(RedisConnection& connection, SteadyTime deadline) const;
  void DropIdle();
  void Note(const absl::Status& status);  // of an attempt to talk
  std::string At() const;                 // "Redis at HOST:PORT"

  const RedisStoreOptions options_;
  const RedisAddress address_;
  const std::shared_ptr<SSL_CTX> tls_;
  const RedisKeys keys_;
  std::vector<std::string> digests_;  // of the scripts; const after construction

  absl::Mutex pool_mu_;
  Pool pools_[3] ABSL_GUARDED_BY(pool_mu_);  // by lane

  mutable absl::Mutex mu_;
  std::string instance_ ABSL_GUARDED_BY(mu_);
  std::string format_ ABSL_GUARDED_BY(mu_);  // the record; empty: take what is there
  std::string incarnation_ ABSL_GUARDED_BY(mu_);
  absl::Status replaced_ ABSL_GUARDED_BY(mu_);
  int64_t counted_ ABSL_GUARDED_BY(mu_) = 0;    // the counter as last answered
  SteadyTime renewed_at_ ABSL_GUARDED_BY(mu_);  // when its key's expiry was put off
  std::string server_ ABSL_GUARDED_BY(mu_);     // version and persistence, in words
  absl::Status last_ ABSL_GUARDED_BY(mu_);      // of the last attempt to talk
  absl::Status unfit_ ABSL_GUARDED_BY(mu_);     // at the last look
  SteadyTime looked_at_ ABSL_GUARDED_BY(mu_);   // of Health

  std::atomic<bool> durable_{false}, waitaof_{false};
};

// A field of INFO's reply; empty when it is not there.
std::string_view InfoField(std::string_view info, std::string_view name);
int64_t ToInt(std::string_view text);  // 0 for what is no number
std::string RandomHex(size_t digits);  // from the system's source of randomness

}  // namespace smt::store_internal
