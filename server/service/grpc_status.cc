#include "server/service/grpc_status.h"

#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/base/log.h"
#include "server/base/status_details.h"
#include "server/service/utf8.h"

namespace smt {
namespace {

constexpr size_t kMaxDetailsBytes = 4096;
constexpr size_t kMaxMessageBytes = 1024;  // the message travels twice: as grpc-message and in the details

const char* DefaultReason(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kCancelled:
      return "CANCELLED";
    case absl::StatusCode::kInvalidArgument:
      return "INVALID_REQUEST";
    case absl::StatusCode::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case absl::StatusCode::kNotFound:
      return "NOT_FOUND";
    case absl::StatusCode::kAlreadyExists:
      return "ALREADY_EXISTS";
    case absl::StatusCode::kPermissionDenied:
      return "PERMISSION_DENIED";
    case absl::StatusCode::kResourceExhausted:
      return "RESOURCE_EXHAUSTED";
    case absl::StatusCode::kFailedPrecondition:
      return "FAILED_PRECONDITION";
    case absl::StatusCode::kAborted:
      return "CONFLICT";
    case absl::StatusCode::kOutOfRange:
      return "OUT_OF_RANGE";
    case absl::StatusCode::kUnimplemented:
      return "UNIMPLEMENTED";
    case absl::StatusCode::kUnavailable:
      return "UNAVAILABLE";
    case absl::StatusCode::kDataLoss:
      return "DATA_LOSS";
    case absl::StatusCode::kUnauthenticated:
      return "UNAUTHENTICATED";
    default:
      return "INTERNAL";
  }
}

std::string Clean(std::string_view text, size_t limit = 512) {
  const bool cut = text.size() > limit;
  text = text.substr(0, limit);
  if (cut) text.remove_suffix(IncompleteUtf8Suffix(text));
  std::string clean;
  AppendSanitizedUtf8(text, &clean);
  return clean;
}

void SetDuration(absl::Duration d, google::protobuf::Duration* out) {
  out->set_seconds(absl::ToInt64Seconds(d));
  out->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(d - absl::Seconds(absl::ToInt64Seconds(d)))));
}

std::optional<absl::Duration> RetryDelay(absl::StatusCode code, const StatusDetails& details) {
  if (details.retry_delay) return details.retry_delay;
  if (code == absl::StatusCode::kAborted) return absl::Milliseconds(100);
  if (code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kResourceExhausted) return absl::Seconds(1);
  return std::nullopt;
}

google::rpc::Status Pack(absl::StatusCode code, const std::string& message, const StatusDetails& details,
                         size_t violations, bool metadata) {
  google::rpc::Status status;
  status.set_code(static_cast<int>(code));
  status.set_message(message);
  google::rpc::ErrorInfo info;
  info.set_reason(details.reason.empty() ? DefaultReason(code) : details.reason);
  info.set_domain("smt.serve");
  if (metadata) {
    for (const auto& [key, value] : details.metadata) (*info.mutable_metadata())[Clean(key, 64)] = Clean(value, 256);
  }
  status.add_details()->PackFrom(info);
  if (violations > 0) {
    google::rpc::BadRequest bad;
    for (size_t i = 0; i < violations; ++i) {
      auto* violation = bad.add_field_violations();
      violation->set_field(Clean(details.violations[i].field, 128));
      violation->set_description(Clean(details.violations[i].description));
    }
    status.add_details()->PackFrom(bad);
  }
  if (details.resource) {
    google::rpc::ResourceInfo resource;
    resource.set_resource_type(Clean(details.resource->type));
    resource.set_resource_name(Clean(details.resource->name));
    resource.set_description(Clean(details.resource->description));
    status.add_details()->PackFrom(resource);
  }
  if (const auto delay = RetryDelay(code, details)) {
    google::rpc::RetryInfo retry;
    SetDuration(*delay, retry.mutable_retry_delay());
    status.add_details()->PackFrom(retry);
  }
  if (!details.preconditions.empty()) {
    google::rpc::PreconditionFailure failure;
    for (const auto& p : details.preconditions) {
      auto* violation = failure.add_violations();
      violation->set_type(Clean(p.type));
      violation->set_subject(Clean(p.subject));
      violation->set_description(Clean(p.description));
    }
    status.add_details()->PackFrom(failure);
  }
  if (!details.quotas.empty()) {
    google::rpc::QuotaFailure failure;
    for (const auto& q : details.quotas) {
      auto* violation = failure.add_violations();
      violation->set_subject(Clean(q.subject));
      violation->set_description(Clean(q.description));
    }
    status.add_details()->PackFrom(failure);
  }
  return status;
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  absl::StatusCode code = status.code();
  std::string message = Clean(std::string(status.message()), kMaxMessageBytes);
  if (code == absl::StatusCode::kInternal || code == absl::StatusCode::kUnknown) {
    LogError("internal error", {{"status", status}});
    code = absl::StatusCode::kInternal;
    message = "the server failed in a way it did not foresee; its log says more";
  }
  const StatusDetails details = GetDetails(status);
  size_t violations = std::min<size_t>(details.violations.size(), 32);
  google::rpc::Status packed = Pack(code, message, details, violations, true);
  while (packed.ByteSizeLong() > kMaxDetailsBytes && violations > 1) {
    packed = Pack(code, message, details, --violations, true);
  }
  if (packed.ByteSizeLong() > kMaxDetailsBytes) packed = Pack(code, message, details, violations, false);
  return grpc::Status(static_cast<grpc::StatusCode>(code), message, packed.SerializeAsString());
}

}  // namespace smt
