// Sessions as files, and their verification.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "client/client.h"

namespace smt::client {
namespace {

constexpr size_t kMostData = size_t{1} << 20;  // in a message

}  // namespace

Error Client::ExportSession(const v1::ExportSessionRequest& request,
                            const std::function<bool(const std::string& data, int64_t total_bytes)>& take,
                            grpc::ClientContext* context) {
  grpc::ClientContext own;
  grpc::ClientContext* call = context != nullptr ? context : &own;
  SetDeadline(call, options_.stream_timeout);
  auto reader = sessions_->ExportSession(call, request);
  v1::ExportSessionResponse message;
  int64_t total = 0, received = 0;
  while (reader->Read(&message)) {
    if (received == 0) total = message.total_bytes();
    received += static_cast<int64_t>(message.data().size());
    if (!take(message.data(), total)) {
      call->TryCancel();
      break;
    }
  }
  Error error = FromGrpc(reader->Finish());
  if (error.ok() && received != total) {
    error.code = grpc::StatusCode::DATA_LOSS;
    error.message = absl::StrCat("the file has ", total, " bytes, but ", received, " came");
  }
  return error;
}

Error Client::ImportSession(const v1::ImportSessionRequest& first, const std::function<std::string()>& read,
                            v1::Session* session, grpc::ClientContext* context) {
  grpc::ClientContext own;
  grpc::ClientContext* call = context != nullptr ? context : &own;
  SetDeadline(call, options_.stream_timeout);
  v1::ImportSessionResponse response;
  auto writer = sessions_->ImportSession(call, &response);
  bool open = writer->Write(first);  // false: the server has answered already
  for (std::string bytes = read(); open && !bytes.empty(); bytes = read()) {
    for (size_t at = 0; open && at < bytes.size(); at += kMostData) {
      v1::ImportSessionRequest message;
      message.set_data(bytes.substr(at, kMostData));
      open = writer->Write(message);
    }
  }
  writer->WritesDone();
  const Error error = FromGrpc(writer->Finish());
  if (error.ok()) *session = std::move(*response.mutable_session());
  return error;
}

Error Client::VerifySession(const std::string& name,
                            const std::function<void(const v1::VerifySessionResponse&)>& on_message,
                            grpc::ClientContext* context) {
  grpc::ClientContext own;
  grpc::ClientContext* call = context != nullptr ? context : &own;
  SetDeadline(call, options_.stream_timeout);
  v1::VerifySessionRequest request;
  request.set_name(name);
  auto reader = sessions_->VerifySession(call, request);
  v1::VerifySessionResponse message;
  while (reader->Read(&message)) on_message(message);
  return FromGrpc(reader->Finish());
}

Error Client::BackupSessions(const std::string& backup_id, v1::BackupSessionsResponse* response) {
  grpc::ClientContext context;
  SetDeadline(&context, options_.stream_timeout);
  v1::BackupSessionsRequest request;
  request.set_backup_id(backup_id);
  return FromGrpc(sessions_->BackupSessions(&context, request, response));
}

}  // namespace smt::client
