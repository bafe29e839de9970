#include "server/service/rpc.h"

#include "model/base/strings.h"
#include "server/base/status_details.h"

namespace smt {
namespace {

const char* CodeName(grpc::StatusCode code) {
  // The names that gRPC's interceptors in other languages use for this metric.
  static constexpr const char* kNames[] = {
      "OK",       "Canceled",       "Unknown",          "InvalidArgument",   "DeadlineExceeded",
      "NotFound", "AlreadyExists",  "PermissionDenied", "ResourceExhausted", "FailedPrecondition",
      "Aborted",  "OutOfRange",     "Unimplemented",    "Internal",          "Unavailable",
      "DataLoss", "Unauthenticated"};
  return code >= 0 && code < static_cast<int>(std::size(kNames)) ? kNames[code] : "Unknown";
}

}  // namespace

absl::Time DeadlineOf(const grpc::CallbackServerContext& call) {
  const auto deadline = call.deadline();
  // No deadline is gRPC's "infinite future", some centuries away.
  if (deadline > std::chrono::system_clock::now() + std::chrono::hours(24 * 365 * 10)) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

absl::Status PoolFull() {
  return WithDetails(absl::UnavailableError("too many requests wait for the server's worker threads"),
                     {.reason = "QUEUE_FULL", .retry_delay = absl::Seconds(1)});
}

RpcRecord::RpcRecord(ServerMetrics* metrics, const char* service, const char* method)
    : metrics_(metrics), service_(service), method_(method), arrival_(absl::Now()) {}

void RpcRecord::Ended(const grpc::Status& status) const {
  metrics_->Add(Metric::kGrpcHandledTotal, 1, {service_, method_, CodeName(status.error_code())});
  metrics_->Observe(Metric::kGrpcHandlingSeconds, absl::Now() - arrival_, {service_, method_});
}

std::shared_ptr<UnaryCall> UnaryCall::Make(RpcRecord record, grpc::ByteBuffer* response) {
  auto call = std::shared_ptr<UnaryCall>(new UnaryCall(record, response));
  call->self_ = call;
  return call;
}

void UnaryCall::Reply(const absl::Status& status, const grpc::ByteBuffer& response) {
  std::function<void()> hook;
  {
    absl::MutexLock lock(&mu_);
    replied_ = true;
    hook = std::move(cancel_hook_);  // what it holds is let go outside the lock
    cancel_hook_ = nullptr;
  }
  *response_ = response;
  const grpc::Status grpc_status = ToGrpcStatus(status);
  record_.Ended(grpc_status);
  Finish(grpc_status);
}

void UnaryCall::SetCancelHook(std::function<void()> hook) {
  {
    absl::MutexLock lock(&mu_);
    if (replied_) return;
    if (!cancelled_) {
      cancel_hook_ = std::move(hook);
      return;
    }
  }
  hook();
}

void UnaryCall::OnCancel() {
  std::function<void()> hook;
  {
    absl::MutexLock lock(&mu_);
    cancelled_ = true;
    if (!replied_) hook = cancel_hook_;
  }
  if (hook) hook();
}

}  // namespace smt
