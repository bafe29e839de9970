#include "server/server.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/checkpoint.h"
#include "model/device.h"
#include "model/runners.h"
#include "model/tokenizer/tokenizer.h"
#include "server/base/flag_sources.h"
#include "server/base/log.h"
#include "server/base/status_details.h"
#include "server/engine/torch_executor.h"
#include "server/engine/warm_up.h"
#include "server/metrics/engine_metrics_adapter.h"
#include "server/model_description.h"
#include "server/service/tokenizer_codec.h"
#include "server/store/rocksdb_store.h"

namespace smt {
namespace {

constexpr char kVersion[] = SMT_VERSION;
constexpr absl::Duration kShutdownGrace = absl::Seconds(2);  // for streams that have ended to be read to their end

std::string WithPort(const std::string& address, int port) {
  return StrCat(address.substr(0, address.rfind(':') + 1), port);
}

absl::StatusOr<Tokenizer> LoadTokenizer(const std::string& model_dir, const StrideHybridConfig& config) {
  ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::Load(model_dir));
  if (tokenizer.vocab_size() > config.vocab_size) {
    return absl::InvalidArgumentError(StrCat(model_dir, ": vocab.json has ", tokenizer.vocab_size(),
                                             " tokens, more than config.json's vocab_size ", config.vocab_size));
  }
  for (const auto& id : {config.bos_token_id, config.eos_token_id}) {
    if (id && *id < tokenizer.vocab_size()) RETURN_IF_ERROR(tokenizer.MarkSpecial(static_cast<int32_t>(*id)));
  }
  return tokenizer;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options, ExitCode* exit_code,
                                                      const ExecutorFactory& new_executor) {
  auto server = std::unique_ptr<Server>(new Server(options));
  const auto fail = [&](ExitCode code, const absl::Status& status) {
    *exit_code = code;
    return status;
  };
  if (absl::Status status = server->StartModel(new_executor, exit_code); !status.ok()) return status;
  if (absl::Status status = server->StartStore(); !status.ok()) return fail(kStore, status);
  if (absl::Status status = server->StartEngine(); !status.ok()) return fail(kDeviceFault, status);
  if (absl::Status status = server->StartPorts(); !status.ok()) return fail(kAddress, status);
  *exit_code = kOk;
  return server;
}

absl::Status Server::StartModel(const ExecutorFactory& new_executor, ExitCode* exit_code) {
  *exit_code = kBadFlags;
  RETURN_IF_ERROR(ParseDevice(options_.device).status());

  *exit_code = kModel;
  ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint, Checkpoint::Open(options_.model_dir));
  for (const std::string& warning : checkpoint->warnings()) LogWarning(warning, {{"model_dir", options_.model_dir}});
  const StrideHybridConfig& config = checkpoint->config();
  ASSIGN_OR_RETURN(Tokenizer tokenizer, LoadTokenizer(options_.model_dir, config));
  codec_ = std::make_unique<TokenizerCodec>(std::move(tokenizer), static_cast<int32_t>(config.vocab_size));
  fingerprint_ = checkpoint->Fingerprint();

  *exit_code = kDevice;
  RunnerOptions runner;
  runner.model_dir = options_.model_dir;
  runner.device = options_.device;
  runner.dtype = options_.dtype;
  runner.deterministic = options_.deterministic;
  runner.slots = options_.max_slots > 0 ? options_.max_slots : kMostSlotsUnasked;
  runner.fewer_slots = options_.max_slots == 0;
  runner.window_policy = options_.window_policy;
  std::string note;
  auto executor = new_executor ? new_executor(runner, &note) : NewTorchExecutor(runner, &note);
  if (absl::IsResourceExhausted(executor.status()) && options_.max_slots > 0) {
    return absl::ResourceExhaustedError(
        FlagError("max_slots", StrCat(options_.max_slots),
                  StrCat(std::string(executor.status().message()), "; 0 takes as many as fit")));
  }
  ASSIGN_OR_RETURN(executor_, std::move(executor));
  if (!note.empty()) LogInfo("using the CPU", {{"reason", note}});
  info_ = executor_->info();
  if (const SlotCapacity& capacity = info_.capacity; capacity.known()) {
    LogInfo("slot capacity", {{"slots", info_.slots},
                              {"fit", capacity.fits()},
                              {"slot_bytes", capacity.slot_bytes},
                              {"work_bytes", capacity.work_bytes},
                              {"free_bytes", capacity.free_bytes},
                              {"device_bytes", capacity.total_bytes}});
  }

  context_.limits = options_.limits;
  context_.limits.vocab_size = static_cast<int32_t>(config.vocab_size);
  context_.config = config;
  context_.max_queue = options_.max_queue;
  context_.backup_dir = options_.backup_dir;
  if (config.bos_token_id) context_.bos = static_cast<int32_t>(*config.bos_token_id);
  if (config.eos_token_id) context_.eos = static_cast<int32_t>(*config.eos_token_id);
  context_.model = DescribeModel(options_.model_dir, fingerprint_, config,
                                 options_.window_policy.value_or(config.window_policy), info_, context_.limits);
  LogInfo("model loaded", {{"model", context_.model.name()},
                           {"fingerprint", fingerprint_},
                           {"device", info_.device},
                           {"dtype", info_.dtype},
                           {"numerics_id", info_.numerics_id},
                           {"slots", info_.slots},
                           {"state_bytes", info_.state_bytes}});
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<SessionStore>> Server::OpenStore(SessionManager::Options* sessions) {
  const auto on_sync = [this](absl::Duration d) { metrics_.Observe(Metric::kStoreSyncDurationSeconds, d); };
  if (!options_.redis.address.empty()) {
    RedisStoreOptions store_options = options_.redis;
    store_options.on_sync = on_sync;
    ASSIGN_OR_RETURN(std::unique_ptr<RedisStore> store, OpenRedisStore(std::move(store_options)));
    LogInfo("store opened", {{"store", store->Description()}, {"durable_sync", store->durable_sync()}});
    sessions->leases = store.get();
    sessions->lease_ttl = options_.lease_ttl;
    sessions->token_durability = [redis = store.get()]() -> absl::Status {
      if (redis->durable_sync()) return absl::OkStatus();
      const std::string why = StrCat("the store acknowledges writes before they are on disk (", redis->Description(),
                                     "), so DURABILITY_TOKEN cannot be kept; Redis needs appendfsync always and no "
                                     "failover to a replica");
      return WithDetails(absl::FailedPreconditionError(why),
                         {.reason = "STORE_NOT_DURABLE", .preconditions = {{"DURABILITY", "store", why}}});
    };
    sessions->on_store_replaced = [this] {
      LogWarning("the shared store came back without what it had acknowledged", {});
      if (Engine* engine = engine_for_removals_.load()) engine->DiscardAll();
    };
    return store;
  }
  RocksDbStoreOptions store_options;
  store_options.dir = options_.store_dir;
  store_options.min_free_bytes = options_.store_min_free_bytes;
  store_options.on_sync = on_sync;
  return OpenRocksDbStore(std::move(store_options));
}

absl::Status Server::StartStore() {
  SessionManager::Options session_options;
  ASSIGN_OR_RETURN(std::unique_ptr<SessionStore> store, OpenStore(&session_options));
  session_options.model_fingerprint = fingerprint_;
  session_options.numerics_id = info_.numerics_id;
  session_options.state_bytes = info_.state_bytes;
  session_options.input_tokens = info_.input_tokens;
  session_options.request_ttl = options_.request_ttl;
  session_options.max_sessions = options_.max_sessions;
  session_options.host_state_bytes = options_.host_state_bytes;
  session_options.on_removed = [this](std::string_view key) {
    if (Engine* engine = engine_for_removals_.load()) engine->Discard(key);
  };
  ASSIGN_OR_RETURN(sessions_, SessionManager::Open(std::move(session_options), std::move(store)));
  return absl::OkStatus();
}

absl::Status Server::StartEngine() {
  RETURN_IF_ERROR(WarmUpExecutor());
  Engine::Options engine_options;
  engine_options.ingest_tokens_per_step = options_.ingest_tokens_per_step;
  engine_options.max_queue = options_.max_queue;
  engine_options.token_bytes = &codec_->token_bytes();
  engine_options.on_evicted = [this](const std::string& key, int64_t position,
                                     std::shared_ptr<const StateBuffer> state) {
    sessions_->SaveEvicted(key, position, std::move(state));
  };
  engine_options.before_sinks = [this] { sessions_->HoldAppends(); };
  engine_options.after_sinks = [this] { sessions_->ReleaseAppends(); };
  engine_options.device_timeout = DeviceTimeout();
  engine_options.on_fault = [this](const absl::Status& status) { OnFault(status); };
  engine_metrics_ = NewEngineMetrics(&metrics_);
  engine_ = std::make_unique<Engine>(std::move(engine_options), std::move(executor_), engine_metrics_.get());
  engine_for_removals_ = engine_.get();
  return absl::OkStatus();
}

// The CPU always answers, if late: a long prompt may take it minutes.
absl::Duration Server::DeviceTimeout() const {
  const bool watched = info_.device != "cpu" && options_.device_timeout > absl::ZeroDuration();
  return watched ? options_.device_timeout : absl::InfiniteDuration();
}

absl::Status Server::WarmUpExecutor() {
  WarmUpOptions options;
  ASSIGN_OR_RETURN(options.batches, options_.WarmUpBatches(info_.device != "cpu"));
  if (options.batches.empty()) return absl::OkStatus();
  const absl::Time begin = absl::Now();
  const absl::StatusOr<WarmUpReport> report = WarmUpWithin(DeviceTimeout(), executor_, options);
  if (!report.ok()) {
    return absl::InternalError(StrCat("the device failed in its warm-up: ", report.status().ToString()));
  }
  std::vector<LogField> fields = {{"batches", StrJoin(report->batches, ",")}, {"seconds", absl::Now() - begin}};
  if (!report->stopped.ok()) fields.emplace_back("stopped", report->stopped);
  Log(report->stopped.ok() ? LogLevel::kInfo : LogLevel::kWarning, "warmed up", std::move(fields));
  return absl::OkStatus();
}

absl::Status Server::StartPorts() {
  pool_ = std::make_unique<ThreadPool>("worker", options_.worker_threads, 16384);
  waiters_ = std::make_unique<ThreadPool>("waiter", options_.worker_threads, 16384);
  context_.engine = engine_.get();
  context_.sessions = sessions_.get();
  context_.codec = codec_.get();
  context_.metrics = &metrics_;
  context_.pool = pool_.get();
  context_.waiters = waiters_.get();

  GrpcServer::Options grpc_options;
  grpc_options.address = options_.listen_address;
  grpc_options.max_connection_age = options_.max_connection_age;
  ASSIGN_OR_RETURN(grpc_, GrpcServer::Start(std::move(grpc_options), &context_));

  metrics_.Set(Metric::kBuildInfo, 1, {kVersion, info_.device, info_.dtype});
  metrics_.Set(Metric::kModelInfo, 1, {context_.model.name(), fingerprint_});
  metrics_.SetCollectHook([this] { CollectMetrics(); });
  if (!options_.metrics_address.empty()) {
    HttpServer::Options http_options;
    http_options.address = options_.metrics_address;
    http_options.metrics = [this] { return metrics_.Text(); };
    http_options.ready = [this] {
      absl::MutexLock lock(&health_mu_);
      return ready_;
    };
    ASSIGN_OR_RETURN(http_, HttpServer::Start(std::move(http_options)));
  }
  absl::MutexLock lock(&health_mu_);
  health_ = grpc_.get();
  SetReady(fault_.ok());
  return absl::OkStatus();
}

std::string Server::Announcement() const {
  nlohmann::ordered_json line;
  line["event"] = "serving";
  line["address"] = WithPort(options_.listen_address, grpc_->port());
  line["metrics_address"] = http_ ? WithPort(options_.metrics_address, http_->port()) : "";
  line["model"] = context_.model.name();
  line["fingerprint"] = fingerprint_;
  line["device"] = info_.device;
  line["dtype"] = info_.dtype;
  line["deterministic"] = info_.deterministic;
  line["slots"] = info_.slots;
  line["version"] = kVersion;
  return line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

void Server::CheckHealth() {
  const absl::Status store = sessions_->Health();
  absl::MutexLock lock(&health_mu_);
  if (ready_ && !store.ok()) LogError("the store does not write", {{"status", store}});
  SetReady(store.ok() && fault_.ok());
}

void Server::SetReady(bool ready) {
  if (ready == ready_) return;
  LogInfo(ready ? "ready" : "not ready");
  ready_ = ready;
  if (health_ != nullptr) health_->SetReady(ready);
}

void Server::OnFault(const absl::Status& status) {
  LogError("the device failed; sessions are safe, this process can no longer generate", {{"status", status}});
  absl::MutexLock lock(&health_mu_);
  fault_ = status;
  SetReady(false);
  if (health_ != nullptr) health_->SetLive(false);
}

absl::Status Server::fault() const {
  absl::MutexLock lock(&health_mu_);
  return fault_;
}

void Server::CollectMetrics() {
  const EngineStats stats = engine_->stats();
  metrics_.Set(Metric::kNumRequestsRunning, static_cast<double>(stats.running));
  metrics_.Set(Metric::kNumRequestsWaiting, static_cast<double>(stats.waiting));
  metrics_.Set(Metric::kStateSlots, stats.slots_active, {"active"});
  metrics_.Set(Metric::kStateSlots, stats.slots_idle, {"idle"});
  metrics_.Set(Metric::kStateSlots, stats.slots_free, {"free"});
  metrics_.Set(Metric::kSessions, stats.slots_active, {"active"});
  metrics_.Set(Metric::kSessions, stats.slots_idle, {"resident"});
  metrics_.Set(Metric::kStreamsParked, static_cast<double>(stats.paused), {"slow_reader"});
  metrics_.Set(Metric::kStoreFreeBytes, static_cast<double>(sessions_->StoreFreeBytes()));
  metrics_.Set(Metric::kDeviceStallSeconds, absl::ToDoubleSeconds(stats.stalled));
  metrics_.Set(Metric::kDraining, context_.draining ? 1 : 0);
  const SessionCounters now = sessions_->counters();
  const int64_t in_slots = stats.slots_active + stats.slots_idle;
  metrics_.Set(Metric::kSessions, static_cast<double>(std::max<int64_t>(0, now.stored_sessions - in_slots)),
               {"parked"});
  const char* const tier = options_.redis.address.empty() ? "rocksdb" : "redis";
  const auto grown = [&](int64_t SessionCounters::*of) { return static_cast<double>(now.*of - seen_.*of); };
  metrics_.Add(Metric::kStoreErrorsTotal, grown(&SessionCounters::store_errors), {tier, "commit"});
  metrics_.Add(Metric::kSessionLeaseConflictsTotal, grown(&SessionCounters::lease_conflicts));
  metrics_.Add(Metric::kLeaseRenewFailuresTotal, grown(&SessionCounters::lease_renew_failures));
  metrics_.Set(Metric::kLeasesHeld, static_cast<double>(now.leases_held));
  seen_ = now;
}

void Server::Stop() {
  if (stopped_) return;
  stopped_ = true;
  bool was_ready;
  {
    absl::MutexLock lock(&health_mu_);
    was_ready = ready_;
    SetReady(false);
  }
  if (was_ready) absl::SleepFor(options_.drain_delay);  // a server that nobody was sent to need not wait
  context_.draining = true;
  if (engine_) engine_->Drain();  // running streams end here, with their position
  if (sessions_) {
    if (absl::Status status = sessions_->Flush(); !status.ok()) LogError("flush failed", {{"status", status}});
  }
  if (grpc_) grpc_->Shutdown(kShutdownGrace);
  metrics_.SetCollectHook(nullptr);
  http_.reset();
}

Server::~Server() {
  if (grpc_) Stop();
  {
    absl::MutexLock lock(&health_mu_);
    health_ = nullptr;
  }
  grpc_.reset();
  http_.reset();
  // Tasks use the engine and the sessions; the sessions' writer may still schedule tasks, which a pool that has shut
  // down refuses.
  if (pool_) pool_->Shutdown();
  if (waiters_) waiters_->Shutdown();
  engine_for_removals_ = nullptr;
  if (engine_) engine_->Drain();
  sessions_.reset();
  engine_.reset();
}

}  // namespace smt
