// smt_server: serves one Stride Memory Transformer over gRPC. Flags; serve.cc does the rest.
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/usage.h"
#include "absl/time/time.h"
#include "model/base/strings.h"
#include "server/base/flag_sources.h"
#include "server/base/log.h"
#include "server/serve.h"
#include "server/server.h"
#include "server/server_options.h"

const smt::ServerOptions& Default() {
  static const auto* options = new smt::ServerOptions;
  return *options;
}

ABSL_FLAG(std::string, config, "", "YAML or JSON file with values of these flags: a mapping of names to values.");
ABSL_FLAG(std::string, model_dir, "",
          "Folder of the model: config.json, model.safetensors, vocab.json, merges.txt. Required.");
ABSL_FLAG(std::string, store_dir, "",
          "Folder of the sessions; made if missing. One server at a time. Required, or --store_url.");
ABSL_FLAG(
    std::string, backup_dir, "",
    "Folder that \"smt session backup\" makes backups in, best on the file system of --store_dir, whose files they "
    "then share. Empty: none are made.");
ABSL_FLAG(bool, repair_store, false,
          "Instead of serving: make a store of what can be read of a damaged --store_dir, whose files stay in "
          "rocksdb.damaged there, say what was lost and end.");
ABSL_FLAG(std::string, store_url, "",
          "Redis of the sessions, instead of --store_dir: HOST:PORT, the path of a socket, or "
          "redis[s]://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]; several hosts with commas between them are Sentinels.");
ABSL_FLAG(std::string, store_user, "", "User at Redis. Empty: that of --store_url, or the default user.");
ABSL_FLAG(std::string, store_password_file, "",
          "File whose first line is the password at Redis; read at each connection. Empty: that of --store_url.");
ABSL_FLAG(std::string, store_tls_ca, "",
          "PEM file of the authorities that Redis's certificate may be of. Empty: the system's.");
ABSL_FLAG(std::string, store_tls_cert, "", "PEM file of this server's certificate for Redis. Empty: none.");
ABSL_FLAG(std::string, store_tls_key, "", "PEM file of that certificate's key.");
ABSL_FLAG(
    std::string, store_sentinel_master, "",
    "Name of the master that the Sentinels at --store_url are asked for. Empty: --store_url is the Redis itself.");
ABSL_FLAG(std::string, store_prefix, Default().redis.prefix, "What the names of all keys at Redis begin with.");
ABSL_FLAG(absl::Duration, store_timeout, Default().redis.command_timeout,
          "How long Redis may take for an answer before the connection counts as lost.");
ABSL_FLAG(absl::Duration, store_wait, Default().redis.wait_at_start,
          "How long to wait at the start for a Redis that is not reached.");
ABSL_FLAG(std::string, listen_address, Default().listen_address, "HOST:PORT of the gRPC API; port 0 picks a free one.");
ABSL_FLAG(std::string, metrics_address, Default().metrics_address,
          "HOST:PORT of /metrics, /healthz and /readyz (plain HTTP); port 0 picks a free one, empty is none.");
ABSL_FLAG(std::string, address_file, Default().address_file,
          "File that gets the line of JSON which says where the server serves, written in one piece. Empty: none.");
ABSL_FLAG(std::string, device, Default().device,
          "Where the model runs: cpu, cuda, cuda:N, or auto (a GPU where there is one, else the CPU).");
ABSL_FLAG(
    std::string, dtype, Default().dtype,
    "Number format of the window: float32, bfloat16, float16 (on a GPU), or auto (float32). The memory path is float32 "
    "always.");
ABSL_FLAG(bool, deterministic, Default().deterministic,
          "Whether a session's tokens depend on its ids and seed alone, bit for bit, whatever else is in the batch.");
ABSL_FLAG(std::string, window_policy, "", "hop or slide. Empty: what the model's config.json says.");
ABSL_FLAG(int32_t, max_slots, Default().max_slots,
          "Sessions on the device at the same time, 1 to 65536; 0 is as many as its memory holds, up to 1024.");
ABSL_FLAG(int32_t, max_queue, Default().max_queue,
          "Requests that may wait for a slot; more are refused with UNAVAILABLE. 0 to 1048576.");
ABSL_FLAG(int32_t, ingest_tokens_per_step, Default().ingest_tokens_per_step,
          "Prompt tokens absorbed in one step while streams are running, 1 to 1048576.");
ABSL_FLAG(int32_t, worker_threads, Default().worker_threads,
          "Threads for store I/O and tokenising, 1 to 1024; as many again wait for busy sessions.");
ABSL_FLAG(
    std::string, warmup_batches, Default().warmup_batches,
    "Batch sizes to run before the server is ready, so that the first requests are not slow: a list such as 1,4,16, "
    "each 1 to 1048576 (those above the slots are skipped), auto (powers of two up to 256 on a GPU, none on a CPU), "
    "or empty for none.");
ABSL_FLAG(absl::Duration, device_timeout, Default().device_timeout,
          "How long a GPU may owe an answer before it counts as failed and the server ends with status 6, 1s to 24h; 0 "
          "waits forever.");
ABSL_FLAG(absl::Duration, lease_ttl, Default().lease_ttl,
          "With --store_url: how long a session that a server writes stays its own when it is not heard of.");
ABSL_FLAG(int64_t, max_sessions, Default().max_sessions, "Sessions in the store; 0 is no limit.");
ABSL_FLAG(int64_t, host_state_bytes, Default().host_state_bytes,
          "Memory for states of sessions that left their slot, the least recently used given up first; each is in the "
          "store, too.");
ABSL_FLAG(absl::Duration, request_ttl, Default().request_ttl,
          "How long outcomes of request_ids are kept, 1s to 8760h.");
ABSL_FLAG(int64_t, store_min_free_bytes, Default().store_min_free_bytes,
          "Bytes of disk below which writes are refused with RESOURCE_EXHAUSTED.");
ABSL_FLAG(absl::Duration, drain_delay, Default().drain_delay,
          "After SIGTERM, how long requests are still accepted while load balancers notice, 0s to 1h.");
ABSL_FLAG(absl::Duration, max_connection_age, Default().max_connection_age,
          "Age at which connections are asked to reconnect, 1s to 576h, or inf.");
ABSL_FLAG(int64_t, max_prompt_bytes, Default().limits.max_prompt_bytes, "Bytes of a prompt's text, 1 to 1073741824.");
ABSL_FLAG(int64_t, max_prompt_tokens, Default().limits.max_prompt_tokens, "Tokens of a prompt, 1 to 134217728.");
ABSL_FLAG(int64_t, max_session_file_bytes, Default().limits.max_session_file_bytes,
          "Bytes of a session file that is imported, and of all that are being imported and exported, 1 to 2^40.");
ABSL_FLAG(int64_t, max_tokens_limit, Default().limits.max_tokens, "Largest max_tokens a request may ask for.");
ABSL_FLAG(int64_t, default_max_tokens, Default().limits.default_max_tokens,
          "max_tokens of requests that do not say, in tokens.");
ABSL_FLAG(std::string, log_level, "info", "Least severity that is logged: debug, info, warning, error.");

namespace smt {
namespace {

absl::StatusOr<ServerOptions> OptionsFromFlags() {
  ServerOptions options;
  options.model_dir = absl::GetFlag(FLAGS_model_dir);
  options.store_dir = absl::GetFlag(FLAGS_store_dir);
  options.backup_dir = absl::GetFlag(FLAGS_backup_dir);
  options.redis.address = absl::GetFlag(FLAGS_store_url);
  options.redis.user = absl::GetFlag(FLAGS_store_user);
  options.redis.password_file = absl::GetFlag(FLAGS_store_password_file);
  options.redis.tls_ca = absl::GetFlag(FLAGS_store_tls_ca);
  options.redis.tls_cert = absl::GetFlag(FLAGS_store_tls_cert);
  options.redis.tls_key = absl::GetFlag(FLAGS_store_tls_key);
  options.redis.sentinel_master = absl::GetFlag(FLAGS_store_sentinel_master);
  options.redis.prefix = absl::GetFlag(FLAGS_store_prefix);
  options.redis.command_timeout = absl::GetFlag(FLAGS_store_timeout);
  options.redis.wait_at_start = absl::GetFlag(FLAGS_store_wait);
  options.listen_address = absl::GetFlag(FLAGS_listen_address);
  options.metrics_address = absl::GetFlag(FLAGS_metrics_address);
  options.address_file = absl::GetFlag(FLAGS_address_file);
  options.device = absl::GetFlag(FLAGS_device);
  options.dtype = absl::GetFlag(FLAGS_dtype);
  options.deterministic = absl::GetFlag(FLAGS_deterministic);
  options.max_slots = absl::GetFlag(FLAGS_max_slots);
  options.max_queue = absl::GetFlag(FLAGS_max_queue);
  options.ingest_tokens_per_step = absl::GetFlag(FLAGS_ingest_tokens_per_step);
  options.worker_threads = absl::GetFlag(FLAGS_worker_threads);
  options.warmup_batches = absl::GetFlag(FLAGS_warmup_batches);
  options.device_timeout = absl::GetFlag(FLAGS_device_timeout);
  options.lease_ttl = absl::GetFlag(FLAGS_lease_ttl);
  options.max_sessions = absl::GetFlag(FLAGS_max_sessions);
  options.host_state_bytes = absl::GetFlag(FLAGS_host_state_bytes);
  options.request_ttl = absl::GetFlag(FLAGS_request_ttl);
  options.store_min_free_bytes = absl::GetFlag(FLAGS_store_min_free_bytes);
  options.drain_delay = absl::GetFlag(FLAGS_drain_delay);
  options.max_connection_age = absl::GetFlag(FLAGS_max_connection_age);
  options.limits.max_prompt_bytes = absl::GetFlag(FLAGS_max_prompt_bytes);
  options.limits.max_prompt_tokens = absl::GetFlag(FLAGS_max_prompt_tokens);
  options.limits.max_session_file_bytes = absl::GetFlag(FLAGS_max_session_file_bytes);
  options.limits.max_tokens = absl::GetFlag(FLAGS_max_tokens_limit);
  options.limits.default_max_tokens = absl::GetFlag(FLAGS_default_max_tokens);
  std::vector<std::string> errors = options.Validate();
  if (const std::string policy = absl::GetFlag(FLAGS_window_policy); !policy.empty()) {
    options.window_policy = ParseWindowPolicy(policy);
    if (!options.window_policy) errors.push_back(FlagError("window_policy", policy, "must be hop, slide or empty"));
  }
  const std::string level = absl::GetFlag(FLAGS_log_level);
  if (const auto parsed = ParseLogLevel(level); parsed.ok()) {
    SetLogLevel(*parsed);
  } else {
    errors.push_back(FlagError("log_level", level, "must be debug, info, warning or error"));
  }
  if (!errors.empty()) return absl::InvalidArgumentError(StrJoin(errors, "; "));
  return options;
}

int Main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "serves a Stride Memory Transformer over gRPC.\n\n"
      "  smt_server --model_dir=models/books-6m --store_dir=/var/lib/smt\n\n"
      "Each flag can also stand in the file --config names, or in the environment (SMT_MODEL_DIR for --model_dir); the "
      "command line wins, then the environment, then the file.");
  const auto rest = ParseFlagSources(argc, argv, {.version = "smt_server " SMT_VERSION});
  if (!rest.ok()) return RefuseToStart(Server::kBadFlags, rest.status());
  if (!rest->empty()) {
    return RefuseToStart(Server::kBadFlags,
                         absl::InvalidArgumentError(StrCat("'", rest->front(), "' is not a flag; see --help")));
  }
  if (absl::GetFlag(FLAGS_repair_store)) return RepairStore(absl::GetFlag(FLAGS_store_dir));
  const auto options = OptionsFromFlags();
  if (!options.ok()) return RefuseToStart(Server::kBadFlags, options.status());

  return Serve(*options);
}

}  // namespace
}  // namespace smt

int main(int argc, char** argv) { return smt::Main(argc, argv); }
