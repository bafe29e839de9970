#include "server/server_options.h"

#include <charconv>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "model/base/strings.h"
#include "server/base/flag_sources.h"

namespace smt {
namespace {

bool IsAddress(std::string_view address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return false;
  int port = -1;
  const char* end = address.data() + address.size();
  const auto result = std::from_chars(address.data() + colon + 1, end, port);
  return result.ec == std::errc() && result.ptr == end && port >= 0 && port <= 65535;
}

constexpr int32_t kMostWarmUpBatch = 1 << 20;

}  // namespace

absl::StatusOr<std::vector<int32_t>> ServerOptions::WarmUpBatches(bool gpu) const {
  std::vector<int32_t> batches;
  if (warmup_batches == "auto") {
    for (int32_t batch = 1; gpu && batch <= 256; batch *= 2) batches.push_back(batch);
    return batches;
  }
  if (warmup_batches.empty()) return batches;
  for (const absl::string_view text : absl::StrSplit(warmup_batches, ',')) {
    int32_t batch = 0;
    if (!absl::SimpleAtoi(text, &batch) || batch < 1 || batch > kMostWarmUpBatch) {
      return absl::InvalidArgumentError(FlagError(
          "warmup_batches", warmup_batches,
          StrCat("must be numbers of 1 to ", kMostWarmUpBatch, " with commas between them, auto, or empty for none")));
    }
    batches.push_back(batch);
  }
  return batches;
}

std::vector<std::string> ServerOptions::Validate() const {
  std::vector<std::string> errors;
  const auto range = [&](const char* flag, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) {
      errors.push_back(FlagError(flag, StrCat(value), StrCat("must be ", low, " to ", high)));
    }
  };
  const auto duration = [&](const char* flag, absl::Duration value, absl::Duration low, absl::Duration high) {
    if (value < low || value > high) {
      errors.push_back(FlagError(flag, absl::FormatDuration(value),
                                 StrCat("must be ", absl::FormatDuration(low), " to ", absl::FormatDuration(high))));
    }
  };
  if (model_dir.empty()) errors.push_back(FlagError("model_dir", "", "is required: a folder with config.json"));
  if (store_dir.empty() && redis.address.empty()) {
    errors.push_back(FlagError("store_dir", "", "is required: a folder for the sessions; or --store_url, a Redis"));
  }
  if (!redis.address.empty()) {
    if (!store_dir.empty()) {
      errors.push_back(
          FlagError("store_dir", store_dir, "must be empty where --store_url says where the sessions are"));
    }
    // The address may hold a password: it is not repeated.
    for (const std::string& error : redis.Validate()) errors.push_back(StrCat("--store_url and its flags: ", error));
  }
  if (!IsAddress(listen_address)) errors.push_back(FlagError("listen_address", listen_address, "must be HOST:PORT"));
  if (!metrics_address.empty() && !IsAddress(metrics_address)) {
    errors.push_back(FlagError("metrics_address", metrics_address, "must be HOST:PORT, or empty for none"));
  }
  if (dtype != "auto" && dtype != "float32" && dtype != "bfloat16" && dtype != "float16") {
    errors.push_back(FlagError("dtype", dtype, "must be auto, float32, bfloat16 or float16"));
  }
  range("max_slots", max_slots, 0, 65536);
  range("max_queue", max_queue, 0, 1 << 20);
  range("ingest_tokens_per_step", ingest_tokens_per_step, 1, 1 << 20);
  range("worker_threads", worker_threads, 1, 1024);
  if (const auto batches = WarmUpBatches(false); !batches.ok()) {
    errors.emplace_back(batches.status().message());
  }
  range("host_state_bytes", host_state_bytes, 0, int64_t{1} << 50);
  range("max_sessions", max_sessions, 0, int64_t{1} << 40);
  range("store_min_free_bytes", store_min_free_bytes, 0, int64_t{1} << 50);
  range("max_prompt_bytes", limits.max_prompt_bytes, 1, int64_t{1} << 30);
  range("max_prompt_tokens", limits.max_prompt_tokens, 1, int64_t{1} << 27);
  range("max_session_file_bytes", limits.max_session_file_bytes, 1, int64_t{1} << 40);
  range("max_tokens_limit", limits.max_tokens, 1, int64_t{1} << 40);
  range("default_max_tokens", limits.default_max_tokens, 0, limits.max_tokens);
  duration("drain_delay", drain_delay, absl::ZeroDuration(), absl::Hours(1));
  if (device_timeout != absl::ZeroDuration()) {
    duration("device_timeout", device_timeout, absl::Seconds(1), absl::Hours(24));
  }
  duration("lease_ttl", lease_ttl, absl::Seconds(1), absl::Minutes(10));
  duration("request_ttl", request_ttl, absl::Seconds(1), absl::Hours(24 * 365));
  if (max_connection_age != absl::InfiniteDuration()) {
    duration("max_connection_age", max_connection_age, absl::Seconds(1), absl::Hours(24 * 24));
  }
  return errors;
}

}  // namespace smt
