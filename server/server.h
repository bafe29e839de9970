// A whole server, wired: model, store, sessions, engine, services, ports.
//
// One thread calls Start, CheckHealth and Stop.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "model/runners.h"
#include "server/engine/engine.h"
#include "server/engine/engine_metrics.h"
#include "server/metrics/http_server.h"
#include "server/metrics/server_metrics.h"
#include "server/server_options.h"
#include "server/service/grpc_server.h"
#include "server/service/service_context.h"
#include "server/session/session_manager.h"

namespace smt {

class Server {
 public:
  // The program's exit status: what could not be had, or why it ended.
  enum ExitCode { kOk = 0, kBadFlags = 1, kModel = 2, kStore = 3, kAddress = 4, kDevice = 5, kDeviceFault = 6 };
  // What a test puts in the place of NewTorchExecutor; null: nothing.
  using ExecutorFactory =
      std::function<absl::StatusOr<std::unique_ptr<Executor>>(const RunnerOptions& options, std::string* note)>;

  // `options` must be valid. On failure `*exit_code` says what kind and the status says why, in one sentence.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options, ExitCode* exit_code,
                                                       const ExecutorFactory& new_executor = nullptr);
  ~Server();

  // The line of JSON that says where it serves.
  std::string Announcement() const;
  // Looks after readiness: off while the store does not write. Call it about once a second.
  void CheckHealth() ABSL_LOCKS_EXCLUDED(health_mu_);
  // Not OK once the device has failed. Readiness and liveness are off by then, new requests are refused and running
  // ones end with UNAVAILABLE and their position: all that is left is Stop and an exit with kDeviceFault.
  absl::Status fault() const ABSL_LOCKS_EXCLUDED(health_mu_);
  // Readiness off, `drain_delay` of grace, running generations ended at a token boundary, state saved, ports closed.
  void Stop();

 private:
  explicit Server(const ServerOptions& options) : options_(options) {}
  absl::Status StartModel(const ExecutorFactory& new_executor, ExitCode* exit_code);
  absl::StatusOr<std::unique_ptr<SessionStore>> OpenStore(SessionManager::Options* sessions);
  absl::Status StartStore();
  absl::Status StartEngine();
  absl::Duration DeviceTimeout() const;
  absl::Status WarmUpExecutor();
  absl::Status StartPorts();
  void OnFault(const absl::Status& status) ABSL_LOCKS_EXCLUDED(health_mu_);
  void SetReady(bool ready) ABSL_EXCLUSIVE_LOCKS_REQUIRED(health_mu_);
  void CollectMetrics();

  const ServerOptions options_;
  ServerMetrics metrics_;
  std::unique_ptr<ThreadPool> pool_, waiters_;
  ServiceContext context_;
  std::unique_ptr<TextCodec> codec_;
  std::unique_ptr<Executor> executor_;  // until the engine takes it
  std::string fingerprint_;
  ExecutorInfo info_;
  SessionCounters seen_;  // of sessions_, what the metrics have counted
  std::atomic<Engine*> engine_for_removals_{nullptr};
  std::unique_ptr<SessionManager> sessions_;
  std::unique_ptr<EngineMetrics> engine_metrics_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<GrpcServer> grpc_;
  std::unique_ptr<HttpServer> http_;
  bool stopped_ = false;

  mutable absl::Mutex health_mu_;                             // the engine tells of a fault on a thread of its own
  GrpcServer* health_ ABSL_GUARDED_BY(health_mu_) = nullptr;  // grpc_ while it serves
  bool ready_ ABSL_GUARDED_BY(health_mu_) = false;
  absl::Status fault_ ABSL_GUARDED_BY(health_mu_);
};

}  // namespace smt
