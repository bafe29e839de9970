// SessionStore in a Redis, shared by any number of servers, and the leases by which they share it.
//
//   PREFIXformat     "smt-session-store 1 <incarnation>": the incarnation is drawn when the store is made
//   PREFIX{uid}:…    a session's records, in the same envelopes as on disk; docs/formats.md has all keys
//
// Each write is one script, so it is applied whole or not at all. A command that gets no answer is sent again after
// reconnecting, with the number it had: what was applied already is not applied again, and its outcome is told. Only
// when Redis does not come back within `recover_timeout` is the answer UNAVAILABLE and the outcome open.
//
// Redis away: UNAVAILABLE, and works again when it is back. Redis back without what it had acknowledged, or emptied:
// UNAVAILABLE with reason STORE_REPLACED from then on (lease_store.h); nothing that was known of the former store may
// be written to it. No memory left: RESOURCE_EXHAUSTED.
//
// Listing is eventually consistent with what other servers do at the same time.
//
// Needs Redis 6.0 or later, not in cluster mode, a master, with maxmemory-policy noeviction: sessions are no cache.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/store/lease_store.h"
#include "server/store/session_store.h"

namespace smt {

struct RedisStoreOptions {
  std::string address;        // redis_address.h
  std::string user;           // over the address's; empty: that, or the default user
  std::string password_file;  // its first line, read at each connection; empty: the address's password
  std::string tls_ca;         // PEM; empty: the system's authorities. TLS is on with rediss:// or one of these
  std::string tls_cert;       // PEM of the client's certificate, with its key; empty: none
  std::string tls_key;
  std::string sentinel_master;  // not empty: the address is of Sentinels, which are asked where this master is
  std::string prefix = "smt:";  // of all keys; stores of different prefixes know nothing of each other
  int connections = 4;          // for reads and snapshots; commits and waiting for handovers have one each besides
  absl::Duration connect_timeout = absl::Seconds(2);
  absl::Duration command_timeout = absl::Seconds(5);
  absl::Duration recover_timeout = absl::Seconds(10);   // to find out what came of a write
  absl::Duration wait_at_start = absl::ZeroDuration();  // for a Redis that is not reached when opening
  absl::Duration sweep_interval = absl::Minutes(1);     // between looks for what a crash left half done
  absl::Duration sweep_grace = absl::Minutes(10);       // how long a thing is half done before it is cleaned up
  std::function<void(absl::Duration)> on_sync;          // how long each synced commit took; any thread

  std::vector<std::string> Validate() const;  // every violation, by field name
};

class RedisStore : public SessionStore, public LeaseStore {
 public:
  // Whether a synced commit survives the loss of power of Redis's machine: it fsyncs before it answers (appendfsync
  // always, or WAITAOF of Redis 7.2), and there is no replica that could take over without the last writes. As found
  // at the last connection. Where it is false, `sync` is best effort.
  virtual bool durable_sync() const = 0;
  virtual std::string Description() const = 0;  // for logs: address, version, persistence

  // Cleans up what servers left half done `sweep_grace` ago; the store does so on its own each `sweep_interval`. What
  // is half done is noticed first and cleaned up by a later call.
  virtual absl::Status Sweep() = 0;
};

// INVALID_ARGUMENT: options. UNAVAILABLE: not reached. FAILED_PRECONDITION: not a Redis that can be used, with what to
// change; a store of a newer format. DATA_LOSS: its format record is damaged or gone.
absl::StatusOr<std::unique_ptr<RedisStore>> OpenRedisStore(RedisStoreOptions options);

}  // namespace smt
