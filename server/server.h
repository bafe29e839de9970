// A whole server, wired: model, store, sessions, engine, services, ports.
//
// One thread calls Start, Run and Stop.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
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
  // What could not be had: the program's exit status.
  enum ExitCode { kOk = 0, kBadFlags = 1, kModel = 2, kStore = 3, kAddress = 4, kDevice = 5 };

  // `options` must be valid. On failure `*exit_code` says what kind and the status says why, in one sentence.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options, ExitCode* exit_code);
  ~Server();

  // The line of JSON that says where it serves.
  std::string Announcement() const;
  // Looks after readiness: off while the store does not write. Call it about once a second.
  void CheckHealth();
  // Readiness off, `drain_delay` of grace, running generations ended at a token boundary, state saved, ports closed.
  void Stop();

 private:
  explicit Server(const ServerOptions& options) : options_(options) {}
  absl::Status StartModel(ExitCode* exit_code);
  absl::Status StartStore();
  absl::Status StartPorts();
  void CollectMetrics();

  const ServerOptions options_;
  ServerMetrics metrics_;
  std::unique_ptr<ThreadPool> pool_, waiters_;
  ServiceContext context_;
  std::unique_ptr<TextCodec> codec_;
  std::unique_ptr<Executor> executor_;  // until the engine takes it
  std::string fingerprint_;
  ExecutorInfo info_;
  int64_t store_errors_seen_ = 0;
  std::atomic<Engine*> engine_for_removals_{nullptr};
  std::unique_ptr<SessionManager> sessions_;
  std::unique_ptr<EngineMetrics> engine_metrics_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<GrpcServer> grpc_;
  std::unique_ptr<HttpServer> http_;
  std::atomic<bool> ready_{false};
  std::atomic<bool> faulted_{false};
  bool stopped_ = false;
};

}  // namespace smt
