// What all handlers share: reactors over raw bytes, decoding, the pool, metrics.
//
// Methods are registered raw so that a message which does not parse (a `string` that is no UTF-8, for one) is answered
// with a sentence of ours instead of gRPC's empty UNIMPLEMENTED.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/base/crash_point.h"
#include "server/service/event_source.h"
#include "server/service/grpc_status.h"
#include "server/service/malformed_request.h"
#include "server/service/service_context.h"

namespace smt {

// The call's deadline; InfiniteFuture without one.
absl::Time DeadlineOf(const grpc::CallbackServerContext& call);

// INVALID_ARGUMENT when the bytes are not a `Request`, naming the fields.
template <typename Request>
absl::Status Decode(const grpc::ByteBuffer& bytes, Request* request) {
  grpc::ByteBuffer copy = bytes;  // shares the slices
  if (grpc::SerializationTraits<Request>::Deserialize(&copy, request).ok()) return absl::OkStatus();
  grpc::Slice whole;
  if (!bytes.DumpToSingleSlice(&whole).ok()) return absl::InvalidArgumentError("the request has no body");
  return MalformedRequest(*Request::descriptor(), {reinterpret_cast<const char*>(whole.begin()), whole.size()});
}

template <typename Response>
grpc::ByteBuffer Encode(const Response& response) {
  grpc::ByteBuffer bytes;
  bool own = false;
  grpc::SerializationTraits<Response>::Serialize(response, &bytes, &own).IgnoreError();
  return bytes;
}

// Counts an RPC and its time when it ends.
class RpcRecord {
 public:
  RpcRecord(ServerMetrics* metrics, const char* service, const char* method);
  void Ended(const grpc::Status& status) const;
  absl::Time arrival() const { return arrival_; }

 private:
  ServerMetrics* const metrics_;
  const char* const service_;
  const char* const method_;
  const absl::Time arrival_;
};

// A unary call that some thread answers once. Keeps itself alive until gRPC is done with it.
class UnaryCall final : public grpc::ServerUnaryReactor {
 public:
  static std::shared_ptr<UnaryCall> Make(RpcRecord record, grpc::ByteBuffer* response);

  // Once.
  void Reply(const absl::Status& status, const grpc::ByteBuffer& response = {});
  // `hook` is called when the client goes away, at once if it has; not after Reply.
  void SetCancelHook(std::function<void()> hook) ABSL_LOCKS_EXCLUDED(mu_);
  const RpcRecord& record() const { return record_; }
  // Whether the client has gone away.
  bool cancelled() const ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    return cancelled_;
  }

  void OnCancel() override ABSL_LOCKS_EXCLUDED(mu_);
  void OnDone() override { self_.reset(); }

 private:
  UnaryCall(RpcRecord record, grpc::ByteBuffer* response) : record_(record), response_(response) {}

  const RpcRecord record_;
  grpc::ByteBuffer* const response_;  // gRPC's
  std::shared_ptr<UnaryCall> self_;
  mutable absl::Mutex mu_;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  bool replied_ ABSL_GUARDED_BY(mu_) = false;
  std::function<void()> cancel_hook_ ABSL_GUARDED_BY(mu_);
};

// UNAVAILABLE: the pool is full.
absl::Status PoolFull();

// Runs `handle(request, &response)` on the pool and answers with what it gives.
template <typename Request, typename Response>
grpc::ServerUnaryReactor* RunUnary(ServiceContext* context, const grpc::ByteBuffer* bytes, grpc::ByteBuffer* out,
                                   const char* service, const char* method,
                                   std::function<absl::Status(const Request&, Response*)> handle) {
  auto call = UnaryCall::Make(RpcRecord(context->metrics, service, method), out);
  grpc::ServerUnaryReactor* reactor = call.get();
  const bool scheduled = context->pool->TrySchedule([call, bytes = *bytes, handle = std::move(handle)] {
    Request request;
    Response response;
    absl::Status status = Decode(bytes, &request);
    if (status.ok()) status = handle(request, &response);
    call->Reply(status, status.ok() ? Encode(response) : grpc::ByteBuffer());
  });
  if (!scheduled) call->Reply(PoolFull());
  return reactor;
}

// A server stream that pulls its messages from an EventSource; `wrap` makes the bytes of one.
template <typename Message>
class StreamCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                         public std::enable_shared_from_this<StreamCall<Message>> {
 public:
  using Wrap = std::function<grpc::ByteBuffer(Message)>;
  static std::shared_ptr<StreamCall> Make(RpcRecord record, Wrap wrap) {
    auto call = std::shared_ptr<StreamCall>(new StreamCall(record, std::move(wrap)));
    call->self_ = call;
    return call;
  }
  const RpcRecord& record() const { return record_; }
  // Whether the client has gone away.
  bool cancelled() const ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    return cancelled_;
  }

  // Either of these, once.
  void Fail(const absl::Status& status) {
    {
      absl::MutexLock lock(&mu_);
      if (finishing_) return;
      finishing_ = true;
    }
    End(status);
  }
  void Attach(std::shared_ptr<EventSource<Message>> source) ABSL_LOCKS_EXCLUDED(mu_) {
    bool cancelled;
    {
      absl::MutexLock lock(&mu_);
      source_ = source;
      cancelled = cancelled_;
    }
    if (cancelled) {
      source->OnDisconnect();
      return Fail(absl::CancelledError("the client went away"));
    }
    source->SetNotify([self = this->weak_from_this()] {
      if (const auto call = self.lock()) call->Pump();
    });
  }

  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_) {
    std::shared_ptr<EventSource<Message>> source;
    {
      absl::MutexLock lock(&mu_);
      source = source_;
    }
    CrashPoint("after_send");
    if (ok) source->OnWritten();  // while nobody else can take the next message
    {
      absl::MutexLock lock(&mu_);
      writing_ = false;
    }
    Pump();
  }
  void OnCancel() override ABSL_LOCKS_EXCLUDED(mu_) {
    std::shared_ptr<EventSource<Message>> source;
    {
      absl::MutexLock lock(&mu_);
      cancelled_ = true;
      source = source_;
      if (source == nullptr || finishing_) return;  // Attach or Fail will see to it
    }
    source->OnDisconnect();
    Pump();
  }
  void OnDone() override { self_.reset(); }

 private:
  StreamCall(RpcRecord record, Wrap wrap) : record_(record), wrap_(std::move(wrap)) {}

  // Starts the next write, or ends the stream. One thread at a time pumps; others leave `again_` behind. gRPC may call
  // back on this very thread, so no lock is held while it runs.
  void Pump() ABSL_LOCKS_EXCLUDED(mu_) {
    {
      absl::MutexLock lock(&mu_);
      if (finishing_ || source_ == nullptr) return;
      if (writing_) {
        again_ = true;
        return;
      }
      writing_ = true;
    }
    while (true) {
      std::shared_ptr<EventSource<Message>> source;
      bool cancelled;
      {
        absl::MutexLock lock(&mu_);
        again_ = false;
        source = source_;
        cancelled = finishing_ = cancelled_;
      }
      if (cancelled) return End(absl::CancelledError("the client went away"));
      Message message;
      const TakeResult taken = source->Take(&message);
      if (taken == TakeResult::kMessage) {
        buffer_ = wrap_(std::move(message));
        CrashPoint("before_send");
        this->StartWrite(&buffer_);
        return;
      }
      absl::MutexLock lock(&mu_);
      if (taken == TakeResult::kEnd) break;
      if (!again_ && !cancelled_) {
        writing_ = false;
        return;
      }
    }
    std::shared_ptr<EventSource<Message>> source;
    {
      absl::MutexLock lock(&mu_);
      finishing_ = true;
      source = source_;
    }
    End(source->end_status());
  }
  void End(const absl::Status& status) {
    const grpc::Status grpc_status = ToGrpcStatus(status);
    record_.Ended(grpc_status);
    this->Finish(grpc_status);
  }

  const RpcRecord record_;
  const Wrap wrap_;
  std::shared_ptr<StreamCall> self_;
  grpc::ByteBuffer buffer_;  // of the write in flight
  mutable absl::Mutex mu_;
  std::shared_ptr<EventSource<Message>> source_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false;  // a write is in flight, or a thread pumps
  bool again_ ABSL_GUARDED_BY(mu_) = false;
  bool finishing_ ABSL_GUARDED_BY(mu_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace smt
