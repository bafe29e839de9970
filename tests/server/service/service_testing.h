// A server in this process: services, engine and sessions are the real ones; the model is a FakeExecutor, the tokenizer
// takes one id a byte, the store is in memory.
#pragma once

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/engine/engine.h"
#include "server/metrics/engine_metrics_adapter.h"
#include "server/service/grpc_server.h"
#include "server/service/service_context.h"
#include "server/session/session_manager.h"
#include "smt/v1/generation_service.grpc.pb.h"
#include "smt/v1/model_service.grpc.pb.h"
#include "smt/v1/session_service.grpc.pb.h"
#include "tests/server/service/fake_executor.h"
#include "tests/server/store/memory_store.h"
#include "tests/server/store/status_testing.h"

namespace smt {

inline constexpr int32_t kEos = 256;
inline constexpr int32_t kBos = 257;
inline constexpr int32_t kWorld = 258;  // " world."

// Ids 0 to 255 are bytes; beyond them a few longer tokens.
class ByteCodec final : public TextCodec {
 public:
  ByteCodec();
  std::vector<int32_t> Encode(std::string_view bytes, bool parse_special) const override;
  const std::vector<std::string>& token_bytes() const override { return token_bytes_; }
  bool IsSpecial(int32_t id) const override { return id == kEos || id == kBos; }

 private:
  std::vector<std::string> token_bytes_;
};

// The details of an error, by type.
struct ErrorDetails {
  google::rpc::ErrorInfo info;
  google::rpc::BadRequest bad_request;
  google::rpc::ResourceInfo resource;
  google::rpc::RetryInfo retry;
  google::rpc::PreconditionFailure precondition;
  bool has_retry = false;
  std::vector<std::string> fields;  // of bad_request
};
ErrorDetails DetailsOf(const grpc::Status& status);

// A stream read to its end.
struct Streamed {
  grpc::Status status;
  std::vector<v1::GenerationEvent> events;
  std::string text;  // of chunks that are no echo
  std::string echo;
  std::vector<int32_t> ids;
  v1::GenerationStarted started;
  v1::GenerationFinished finished;
  int chunks = 0;
};

class ServiceTest : public testing::Test {
 protected:
  ServiceTest();
  ~ServiceTest() override;

  // Called by the first use of a stub; options can be set before.
  void StartServer();
  void StopServer();  // the next use starts another
  v1::GenerationService::Stub& generation();
  v1::SessionService::Stub& sessions();
  v1::ModelService::Stub& models();
  std::shared_ptr<grpc::Channel> channel();

  // A spec with `text` and max_tokens.
  static v1::GenerationSpec Spec(const std::string& text, int64_t max_tokens);
  // `on_event` may return false to stop reading and cancel the call.
  Streamed Stream(const v1::GenerationSpec& spec, std::function<bool(const v1::GenerationEvent&)> on_event = nullptr);
  // ResumeGenerate of `request_id` on sessions/s.
  Streamed Resume(const std::string& request_id, int64_t after_position, const std::string& after_digest = "",
                  std::function<bool(const v1::GenerationEvent&)> on_event = nullptr);
  v1::Session CreateSession(const std::string& id);
  v1::Session GetSession(const std::string& id);
  // Waits up to 10 s.
  static bool Eventually(const std::function<bool()>& condition);
  // What the fake model generates after `position`.
  std::string Expected(int64_t position, int64_t count) const;

  std::shared_ptr<FakeModel> model_ = std::make_shared<FakeModel>();
  int32_t slots_ = 4;
  Engine::Options engine_options_;
  ByteCodec codec_;
  ServerMetrics metrics_;
  std::unique_ptr<ThreadPool> pool_, waiters_;
  ServiceContext context_;
  std::unique_ptr<SessionStore> other_store_;  // set before the start: instead of the one in memory
  MemoryStore* store_ = nullptr;               // null with another one
  std::unique_ptr<SessionManager> session_manager_;
  std::unique_ptr<EngineMetrics> engine_metrics_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::SessionService::Stub> sessions_;
  std::unique_ptr<v1::ModelService::Stub> models_;
};

}  // namespace smt
