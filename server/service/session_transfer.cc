// ExportSession and ImportSession: a session as a stream of bytes. The file itself is server/session/session_file.h's.
//
// A file is in memory as a whole while it is on its way, here and in no other place: TransferBudget bounds what all of
// them hold. An import becomes a session only after the last byte, in one call of the manager's, so a client that goes
// away before leaves nothing behind.
#include <algorithm>
#include <atomic>
#include <utility>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/service/names.h"
#include "server/service/resident_state.h"
#include "server/service/session_messages.h"
#include "server/service/session_service.h"
#include "server/service/validators.h"
#include "server/session/session_file.h"

namespace smt {
namespace {

constexpr size_t kMessageBytes = (size_t{1} << 20) - 64;            // of the file in a message of 1 MiB at most
constexpr absl::Duration kPatienceForTheEngine = absl::Seconds(2);  // a step of the slowest device takes less
constexpr absl::Duration kRetryTransfer = absl::Seconds(5);

absl::Status BudgetFull(int64_t limit) {
  return WithDetails(absl::ResourceExhaustedError(StrCat("the session files on their way in and out hold all of the ",
                                                         limit, " bytes they may (--max_session_file_bytes)")),
                     {.reason = "TRANSFERS_FULL", .retry_delay = kRetryTransfer});
}

// A file that is sent piece by piece.
class FileSource final : public EventSource<v1::ExportSessionResponse> {
 public:
  FileSource(std::string file, std::unique_ptr<TransferBudget::Hold> hold)
      : hold_(std::move(hold)), file_(std::move(file)) {}

  void SetNotify(std::function<void()> notify) override { notify(); }
  TakeResult Take(v1::ExportSessionResponse* message) override {  // one caller at a time
    if (sent_ == file_.size()) {
      hold_ = nullptr;  // before the client hears of the end
      return TakeResult::kEnd;
    }
    if (sent_ == 0) message->set_total_bytes(static_cast<int64_t>(file_.size()));
    const size_t size = std::min(kMessageBytes, file_.size() - sent_);
    message->set_data(file_.data() + sent_, size);
    sent_ += size;
    return TakeResult::kMessage;
  }
  absl::Status end_status() const override { return absl::OkStatus(); }
  void OnDisconnect() override {}

 private:
  std::unique_ptr<TransferBudget::Hold> hold_;
  const std::string file_;
  size_t sent_ = 0;
};

absl::StatusOr<std::shared_ptr<FileSource>> StartExport(ServiceContext* context,
                                                        const v1::ExportSessionRequest& request) {
  Violations violations;
  ValidateExportSession(request, &violations);
  RETURN_IF_ERROR(violations.ToStatus());
  const std::string id = *ParseSessionName(request.name());
  ASSIGN_OR_RETURN(const SessionInfo session, context->sessions->Get(id));
  if (session.model_fingerprint != context->model.fingerprint()) {
    const std::string why = StrCat("session '", id, "' belongs to the model with fingerprint ",
                                   session.model_fingerprint, ", this server serves ", context->model.fingerprint());
    return WithDetails(absl::FailedPreconditionError(why),
                       {.reason = "MODEL_MISMATCH", .preconditions = {{"MODEL", SessionName(id), why}}});
  }
  auto hold = std::make_unique<TransferBudget::Hold>(&context->transfers, context->limits.max_session_file_bytes);
  const int64_t log_bytes = static_cast<int64_t>(sizeof(int32_t)) * session.position;
  if (!hold->Take(log_bytes + context->engine->info().state_bytes)) {
    return BudgetFull(context->limits.max_session_file_bytes);
  }
  std::string checkpoint;
  if (request.checkpoint().empty()) {
    if (!session.active) KeepResident(context, session, kPatienceForTheEngine);
  } else {
    checkpoint = ParseCheckpointName(request.checkpoint())->checkpoint_id;
  }
  std::string file;
  {
    ASSIGN_OR_RETURN(const SessionContent content, context->sessions->Export(id, checkpoint));
    ASSIGN_OR_RETURN(file, EncodeSessionFile(context->config, content));
  }
  return std::make_shared<FileSource>(std::move(file), std::move(hold));
}

// Gathers the messages, on gRPC's threads, and imports what they make, on the pool.
class ImportCall final : public grpc::ServerReadReactor<grpc::ByteBuffer> {
 public:
  static ImportCall* Start(ServiceContext* context, grpc::CallbackServerContext* call, grpc::ByteBuffer* response) {
    const auto made = std::shared_ptr<ImportCall>(new ImportCall(context, call, response));
    made->self_ = made;
    made->StartRead(&made->message_);
    return made.get();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return TakeEnd();
    if (const absl::Status status = TakeMessage(); !status.ok()) return End(status);
    StartRead(&message_);
  }
  void OnCancel() override { cancelled_ = true; }
  void OnDone() override { self_.reset(); }

 private:
  ImportCall(ServiceContext* context, grpc::CallbackServerContext* call, grpc::ByteBuffer* response)
      : context_(context),
        call_(call),
        response_(response),
        record_(context->metrics, kSessionService, "ImportSession"),
        hold_(std::make_unique<TransferBudget::Hold>(&context->transfers, context->limits.max_session_file_bytes)) {}

  bool cancelled() const { return cancelled_ || call_->IsCancelled(); }

  absl::Status TakeMessage() {
    v1::ImportSessionRequest request;
    RETURN_IF_ERROR(Decode(message_, &request));
    message_.Clear();
    Violations violations;
    ValidateImportSession(request, /*first=*/!begun_, context_->limits, &violations);
    RETURN_IF_ERROR(violations.ToStatus());
    const auto size = static_cast<int64_t>(request.data().size());
    const int64_t limit = context_->limits.max_session_file_bytes;
    if (hold_->bytes() + size > limit) {
      return WithDetails(absl::ResourceExhaustedError(StrCat("the session file has more than ", limit,
                                                             " bytes; that is the most (--max_session_file_bytes)")),
                         {.reason = "FILE_TOO_LARGE"});
    }
    if (!hold_->Take(size)) return BudgetFull(limit);
    file_ += request.data();
    if (!begun_) first_ = std::move(request);
    begun_ = true;
    return absl::OkStatus();
  }

  // The last message has come, or the client has gone.
  void TakeEnd() {
    if (cancelled()) return End(absl::CancelledError("the client went away"));
    if (!context_->pool->TrySchedule([self = self_] { self->End(self->Import()); })) End(PoolFull());
  }

  absl::Status Import() {
    if (!begun_) return absl::InvalidArgumentError("the stream has no message; the first one begins the file");
    ASSIGN_OR_RETURN(SessionContent content,
                     DecodeSessionFile(context_->config, context_->model.fingerprint(), std::exchange(file_, {})));
    ImportSpec spec;
    spec.new_id = first_.session_id();
    spec.ttl = Ttl(first_.session());
    spec.labels = Labels(first_.session());
    spec.request_id = first_.request_id();
    spec.content = std::move(content);
    if (cancelled()) return absl::CancelledError("the client went away before its session was made");
    ASSIGN_OR_RETURN(const SessionInfo session, context_->sessions->Import(spec));
    v1::ImportSessionResponse response;
    ToProto(session, response.mutable_session());
    *response_ = Encode(response);
    return absl::OkStatus();
  }

  void End(const absl::Status& status) {
    file_ = {};
    hold_ = nullptr;  // before the client hears of the end
    const grpc::Status grpc_status = ToGrpcStatus(Counted(context_, "import", status));
    record_.Ended(grpc_status);
    Finish(grpc_status);
  }

  ServiceContext* const context_;
  grpc::CallbackServerContext* const call_;
  grpc::ByteBuffer* const response_;  // gRPC's
  const RpcRecord record_;
  std::shared_ptr<ImportCall> self_;
  std::atomic<bool> cancelled_{false};
  grpc::ByteBuffer message_;  // being read
  // One thread at a time: gRPC's, then the pool's.
  std::unique_ptr<TransferBudget::Hold> hold_;
  bool begun_ = false;
  v1::ImportSessionRequest first_;
  std::string file_;
};

}  // namespace

SessionServiceImpl::Stream* SessionServiceImpl::ExportSession(Call*, const Bytes* bytes) {
  using Message = v1::ExportSessionResponse;
  auto stream = StreamCall<Message>::Make(RpcRecord(context_->metrics, kSessionService, "ExportSession"),
                                          [](const Message& message) { return Encode(message); });
  const bool scheduled = context_->pool->TrySchedule([context = context_, stream, bytes = *bytes] {
    v1::ExportSessionRequest request;
    if (absl::Status status = Decode(bytes, &request); !status.ok()) return stream->Fail(status);
    auto source = StartExport(context, request);
    const absl::Status status = Counted(context, "export", source.status());
    if (!status.ok()) return stream->Fail(status);
    stream->Attach(*std::move(source));
  });
  if (!scheduled) stream->Fail(PoolFull());
  return stream.get();
}

SessionServiceImpl::Upload* SessionServiceImpl::ImportSession(Call* call, Bytes* response) {
  return ImportCall::Start(context_, call, response);
}

}  // namespace smt
