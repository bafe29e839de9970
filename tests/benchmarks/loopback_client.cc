#include "tests/benchmarks/loopback_client.h"

#include <chrono>
#include <utility>

#include "absl/synchronization/blocking_counter.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"
#include "grpcpp/support/client_callback.h"

namespace smt::bench {
namespace {

constexpr std::chrono::minutes kLongest{2};  // that a stream may take

v1::StreamGenerateRequest RequestOf(int vocabulary, int stream, const StreamLoad& load) {
  v1::StreamGenerateRequest request;
  v1::GenerationSpec& spec = *request.mutable_spec();
  for (const int32_t id : PromptOf(vocabulary, stream)) spec.mutable_token_ids()->add_ids(id);
  spec.mutable_sampling()->set_temperature(load.temperature);
  spec.mutable_sampling()->set_top_p(load.top_p);
  spec.mutable_sampling()->set_seed(stream);
  spec.mutable_stopping()->set_max_tokens(load.tokens);
  spec.mutable_stopping()->set_ignore_eos(true);
  if (!load.session_prefix.empty()) {
    spec.set_session(load.session_prefix + std::to_string(stream));
    spec.set_create_session(true);
    spec.set_request_id(load.request_id);
    spec.set_durability(static_cast<v1::Durability>(load.durability));
  }
  return request;
}

class Stream final : public grpc::ClientReadReactor<v1::StreamGenerateResponse> {
 public:
  Stream(int index, v1::StreamGenerateRequest request, StreamTally* tally, absl::BlockingCounter* done)
      : index_(index), request_(std::move(request)), tally_(tally), done_(done) {}
  void Start(v1::GenerationService::Stub& stub) {
    context_.set_deadline(std::chrono::system_clock::now() + kLongest);
    stub.async()->StreamGenerate(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }
  const grpc::Status& status() const { return status_; }  // once done

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (response_.event().has_chunk()) tally_->Add(index_, response_.event().chunk().token_ids_size());
    StartRead(&response_);
  }
  void OnDone(const grpc::Status& status) override {
    status_ = status;
    done_->DecrementCount();
  }

  const int index_;
  const v1::StreamGenerateRequest request_;
  StreamTally* const tally_;
  absl::BlockingCounter* const done_;
  grpc::ClientContext context_;
  v1::StreamGenerateResponse response_;
  grpc::Status status_;
};

}  // namespace

LoopbackClient::LoopbackClient(const std::string& address, int connections) {
  for (int i = 0; i < connections; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // else channels to one address share a connection
    const auto channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
    channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(10));
    stubs_.push_back(v1::GenerationService::NewStub(channel));
  }
}

absl::StatusOr<double> LoopbackClient::Rate(int vocabulary, const StreamLoad& load) {
  absl::BlockingCounter done(load.streams);
  StreamTally tally(load.streams);
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < load.streams; ++i) {
    streams.push_back(std::make_unique<Stream>(i, RequestOf(vocabulary, i, load), &tally, &done));
  }
  for (size_t i = 0; i < streams.size(); ++i) streams[i]->Start(*stubs_[i % stubs_.size()]);
  done.Wait();
  for (const auto& stream : streams) {
    if (stream->status().ok()) continue;
    return absl::UnavailableError(stream->status().error_message());
  }
  return tally.Rate();
}

}  // namespace smt::bench
