// Client: a thin C++ library over the smt.v1 API. One object holds one channel; thread-safe. Calls block.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/error.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "smt/v1/generation_service.grpc.pb.h"
#include "smt/v1/model_service.grpc.pb.h"
#include "smt/v1/session_service.grpc.pb.h"

namespace smt::client {

// Ends a StreamThroughRestarts, whichever call or pause it is in. For one stream. Thread-safe.
class StreamStop {
 public:
  // The call is cancelled, now or as soon as it begins; no other follows.
  void Stop();
  bool stopped() const;

 private:
  friend class Client;
  // The call that Stop cancels; null: none.
  void Watch(grpc::ClientContext* call);
  // Whether it was stopped within `duration`.
  bool WaitFor(absl::Duration duration) const;

  mutable absl::Mutex mu_;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  grpc::ClientContext* call_ ABSL_GUARDED_BY(mu_) = nullptr;
};

class Client {
 public:
  struct Options {
    std::string address = "localhost:50051";
    // Of unary calls; streams have none unless `stream_timeout` is set.
    absl::Duration timeout = absl::Seconds(60);
    absl::Duration stream_timeout = absl::InfiniteDuration();
  };

  explicit Client(Options options);

  // Calls `on_event` for each event until the stream ends. Returning false cancels the call (the request's
  // on_disconnect policy then applies). `context`, when given, is the caller's to cancel from another thread.
  Error StreamGenerate(const v1::GenerationSpec& spec, const std::function<bool(const v1::GenerationEvent&)>& on_event,
                       grpc::ClientContext* context = nullptr);
  // What lies past what the caller has of a stream that broke off. As StreamGenerate.
  Error ResumeGenerate(const v1::ResumeGenerateRequest& request,
                       const std::function<bool(const v1::GenerationEvent&)>& on_event,
                       grpc::ClientContext* context = nullptr);
  // StreamGenerate that goes on by itself when the server goes away, breaks the stream off or has no room for it in its
  // store: the caller sees one stream, each id once. Without a session and a request_id it is StreamGenerate. Tries
  // again, ever more slowly, until `patience` has passed without anything new. `stop`, when given, ends it from another
  // thread.
  Error StreamThroughRestarts(const v1::GenerationSpec& spec, absl::Duration patience,
                              const std::function<bool(const v1::GenerationEvent&)>& on_event,
                              StreamStop* stop = nullptr);
  Error Generate(const v1::GenerationSpec& spec, v1::GenerateResponse* response);
  Error CancelGeneration(const std::string& session, const std::string& request_id, v1::Generation* generation);
  Error GetGeneration(const std::string& session, const std::string& request_id, v1::Generation* generation);
  Error Score(const v1::ScoreRequest& request, std::vector<v1::TokenLogprob>* logprobs, v1::ScoreSummary* summary);
  Error Tokenize(const v1::TokenizeRequest& request, std::vector<int32_t>* ids);
  Error Detokenize(const std::vector<int32_t>& ids, v1::DetokenizeResponse* response);

  Error CreateSession(const v1::CreateSessionRequest& request, v1::Session* session);
  Error GetSession(const std::string& name, v1::Session* session);
  // One page; `next_page_token` is empty on the last.
  Error ListSessions(int page_size, const std::string& page_token, std::vector<v1::Session>* sessions,
                     std::string* next_page_token);
  Error UpdateSession(const v1::UpdateSessionRequest& request, v1::Session* session);
  Error DeleteSession(const v1::DeleteSessionRequest& request);
  Error ForkSession(const v1::ForkSessionRequest& request, v1::Session* session);
  Error RollbackSession(const v1::RollbackSessionRequest& request, v1::Session* session);
  Error CreateCheckpoint(const v1::CreateCheckpointRequest& request, v1::Checkpoint* checkpoint);
  // One page of those of a session, as ListSessions.
  Error ListCheckpoints(const std::string& session, int page_size, const std::string& page_token,
                        std::vector<v1::Checkpoint>* checkpoints, std::string* next_page_token);
  Error DeleteCheckpoint(const v1::DeleteCheckpointRequest& request);

  // client_transfer.cc. Like streams, they take stream_timeout; `context`, when given, is the caller's to cancel.
  // Calls `take` for each piece of the session's file. Returning false cancels the call. OK: it was the whole file.
  Error ExportSession(const v1::ExportSessionRequest& request,
                      const std::function<bool(const std::string& data, int64_t total_bytes)>& take,
                      grpc::ClientContext* context = nullptr);
  // Sends what `read` gives, until it gives nothing; `first` says what to make of it.
  Error ImportSession(const v1::ImportSessionRequest& first, const std::function<std::string()>& read,
                      v1::Session* session, grpc::ClientContext* context = nullptr);
  // Calls `on_message` for each; the last one has the result.
  Error VerifySession(const std::string& name, const std::function<void(const v1::VerifySessionResponse&)>& on_message,
                      grpc::ClientContext* context = nullptr);

  // Of all sessions, on the server's machine. Takes stream_timeout.
  Error BackupSessions(const std::string& backup_id, v1::BackupSessionsResponse* response);

  Error GetModel(v1::Model* model);
  // grpc.health.v1 of `service`; "" is readiness. `serving` is false for NOT_SERVING.
  Error Health(const std::string& service, bool* serving);

  // Waits until the channel is connected; false after `timeout`.
  bool WaitForConnection(absl::Duration timeout);
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

 private:
  void SetDeadline(grpc::ClientContext* context, absl::Duration timeout) const;
  // A call that is answered within options_.timeout.
  template <typename Stub, typename Request, typename Response>
  Error Call(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
             const Request& request, Response* response) const;

  Options options_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::SessionService::Stub> sessions_;
  std::unique_ptr<v1::ModelService::Stub> models_;
};

// "sessions/{id}" for an id or a name.
std::string SessionName(const std::string& id_or_name);
// "sessions/{id}/checkpoints/{id}" for a session's id or name and a checkpoint's.
std::string CheckpointName(const std::string& session, const std::string& id_or_name);

}  // namespace smt::client
