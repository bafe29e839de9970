// Everything that decides how a server runs. Filled from flags by main.cc; defaults are the flags' defaults.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "model/config.h"
#include "server/service/request_limits.h"
#include "server/store/redis_store.h"

namespace smt {

// Of --max_slots=0: beyond it a step with all of them would keep each stream waiting for long.
inline constexpr int32_t kMostSlotsUnasked = 1024;

struct ServerOptions {
  std::string model_dir;
  std::string store_dir;    // sessions in RocksDB, or
  RedisStoreOptions redis;  // in a Redis, where its address is not empty
  std::string backup_dir;   // where BackupSessions makes its folders; empty: nowhere
  std::string listen_address = "127.0.0.1:50051";
  std::string metrics_address = "127.0.0.1:9090";  // empty: none
  std::string address_file;                        // empty: none
  std::string device = "auto";
  std::string dtype = "auto";
  bool deterministic = true;
  std::optional<WindowPolicy> window_policy;  // over the model's
  int32_t max_slots = 64;                     // 0: as many as fit, kMostSlotsUnasked at most
  int32_t max_queue = 1024;
  int32_t ingest_tokens_per_step = 256;
  int32_t worker_threads = 256;  // they wait for the disk more than they work: turns that begin together share a sync
  std::string warmup_batches = "auto";
  absl::Duration device_timeout = absl::Seconds(30);  // 0: none
  absl::Duration lease_ttl = absl::Seconds(10);       // of sessions in a shared store
  int64_t max_sessions = 0;
  int64_t host_state_bytes = int64_t{1} << 30;
  absl::Duration request_ttl = absl::Hours(24);
  int64_t store_min_free_bytes = int64_t{64} << 20;
  absl::Duration drain_delay = absl::Seconds(5);
  absl::Duration max_connection_age = absl::InfiniteDuration();
  RequestLimits limits;

  // Batch sizes to warm up (server/engine/warm_up.h), as --warmup_batches lists them. auto: powers of two up to 256 on
  // a GPU; none on a CPU, which has nothing to load or capture. INVALID_ARGUMENT says what is allowed.
  absl::StatusOr<std::vector<int32_t>> WarmUpBatches(bool gpu) const;

  // Every violation: "--max_slots=-1: must be 0 to 65536".
  std::vector<std::string> Validate() const;
};

}  // namespace smt
