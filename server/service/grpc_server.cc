#include "server/service/grpc_server.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>

#include <algorithm>
#include <climits>
#include <mutex>
#include <string>

#include "model/base/strings.h"
#include "server/base/log.h"

namespace smt {
namespace {

constexpr const char* kReadinessNames[] = {"", "smt.v1.GenerationService", "smt.v1.SessionService",
                                           "smt.v1.ModelService"};
constexpr char kLiveness[] = "liveness";

// Large enough for the largest prompt in any form, so that the validators' sentence comes before gRPC's.
int MaxReceiveBytes(const RequestLimits& limits) {
  const int64_t prompt = std::max(limits.max_prompt_bytes, limits.max_prompt_tokens * 5) * 2;
  return static_cast<int>(std::min<int64_t>(std::max<int64_t>(prompt, 64 << 20), INT_MAX));
}

void EnablePlugins() {
  static std::once_flag once;
  std::call_once(once, [] {
    // It prints on stderr, which is for lines of JSON; what a client sent wrong is said to the client.
    google::protobuf::SetLogHandler([](google::protobuf::LogLevel, const char*, int, const std::string& message) {
      LogDebug("protobuf", {{"message", message}});
    });
    gpr_set_log_function([](gpr_log_func_args* line) {
      const bool bad = line->severity == GPR_LOG_SEVERITY_ERROR;
      Log(bad ? LogLevel::kWarning : LogLevel::kDebug, "grpc", {{"message", line->message}});
    });
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(Options options, ServiceContext* context) {
  EnablePlugins();
  auto made = std::unique_ptr<GrpcServer>(new GrpcServer(context));
  grpc::ServerBuilder builder;
  builder.AddListeningPort(options.address, options.credentials, &made->port_);
  builder.RegisterService(&made->generation_);
  builder.RegisterService(&made->sessions_);
  builder.RegisterService(&made->models_);
  builder.SetMaxReceiveMessageSize(MaxReceiveBytes(context->limits));
  builder.SetMaxSendMessageSize(-1);
  // A port that another process listens on is an error, not something to share.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Clients may ping every 10 s, also without calls.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 9000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // A client that is gone without a word is noticed within a minute.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000);
  if (options.max_connection_age != absl::InfiniteDuration()) {
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS,
                               static_cast<int>(absl::ToInt64Milliseconds(options.max_connection_age)));
  }
  made->server_ = builder.BuildAndStart();
  if (made->server_ == nullptr || (made->port_ == 0 && !options.address.empty())) {
    return absl::UnavailableError(StrCat("cannot listen on ", options.address,
                                         ": the port is in use, or the address is not one of this machine"));
  }
  made->SetReady(false);
  made->SetLive(true);
  return made;
}

GrpcServer::~GrpcServer() {
  if (server_ != nullptr) Shutdown(absl::ZeroDuration());
}

void GrpcServer::SetReady(bool ready) {
  for (const char* name : kReadinessNames) server_->GetHealthCheckService()->SetServingStatus(name, ready);
}

void GrpcServer::SetLive(bool live) { server_->GetHealthCheckService()->SetServingStatus(kLiveness, live); }

void GrpcServer::Shutdown(absl::Duration grace) {
  server_->Shutdown(absl::ToChronoTime(absl::Now() + grace));
  server_->Wait();
}

}  // namespace smt
