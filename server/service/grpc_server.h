// The gRPC server: our services, health (Check and Watch) and reflection on one port.
//
// Health: "" and each service's name are readiness (what load balancers ask), "liveness" is SERVING while the process
// answers.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/service/generation_service.h"
#include "server/service/model_service.h"
#include "server/service/service_context.h"
#include "server/service/session_service.h"

namespace smt {

class GrpcServer {
 public:
  struct Options {
    std::string address;  // "127.0.0.1:0", "[::]:50051"; port 0 picks one
    std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials();
    absl::Duration max_connection_age = absl::InfiniteDuration();  // then GOAWAY: lets load balancers spread clients
  };

  // Not ready yet: see SetReady. UNAVAILABLE when the address cannot be bound. `context` must outlive the server.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(Options options, ServiceContext* context);
  ~GrpcServer();  // Shutdown at once

  int port() const { return port_; }
  // Readiness in health; any thread.
  void SetReady(bool ready);
  // Liveness in health: off where only a new process helps.
  void SetLive(bool live);
  // Refuses new calls and waits for running ones, until `grace` has passed; then cancels them.
  void Shutdown(absl::Duration grace);
  std::shared_ptr<grpc::Channel> InProcessChannel() { return server_->InProcessChannel(grpc::ChannelArguments()); }

 private:
  explicit GrpcServer(ServiceContext* context) : generation_(context), sessions_(context), models_(context) {}

  GenerationServiceImpl generation_;
  SessionServiceImpl sessions_;
  ModelServiceImpl models_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

}  // namespace smt
