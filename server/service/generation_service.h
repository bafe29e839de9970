// smt.v1.GenerationService. Thread-safe.
#pragma once

#include <functional>
#include <memory>

#include "server/service/rpc.h"
#include "server/service/service_context.h"
#include "smt/v1/generation_service.grpc.pb.h"

namespace smt {

namespace generation_service_internal {
using S = v1::GenerationService;
using Raw =
    S::WithRawCallbackMethod_StreamGenerate<S::WithRawCallbackMethod_Generate<S::WithRawCallbackMethod_ResumeGenerate<
        S::WithRawCallbackMethod_GetGeneration<S::WithRawCallbackMethod_CancelGeneration<S::WithRawCallbackMethod_Score<
            S::WithRawCallbackMethod_Tokenize<S::WithRawCallbackMethod_Detokenize<S::Service>>>>>>>>;
}  // namespace generation_service_internal

class GenerationServiceImpl final : public generation_service_internal::Raw {
 public:
  explicit GenerationServiceImpl(ServiceContext* context) : context_(context) {}

  using Call = grpc::CallbackServerContext;
  using Bytes = grpc::ByteBuffer;
  using Stream = grpc::ServerWriteReactor<grpc::ByteBuffer>;
  using Unary = grpc::ServerUnaryReactor;

  Stream* StreamGenerate(Call* call, const Bytes* request) override;
  Unary* Generate(Call* call, const Bytes* request, Bytes* response) override;
  Stream* ResumeGenerate(Call* call, const Bytes* request) override;
  Unary* GetGeneration(Call* call, const Bytes* request, Bytes* response) override;
  Unary* CancelGeneration(Call* call, const Bytes* request, Bytes* response) override;
  Stream* Score(Call* call, const Bytes* request) override;
  Unary* Tokenize(Call* call, const Bytes* request, Bytes* response) override;
  Unary* Detokenize(Call* call, const Bytes* request, Bytes* response) override;

 private:
  // Where a generation's start runs: requests that wait for a session's writer have threads of their own.
  bool ScheduleStart(const v1::GenerationSpec& spec, std::function<void()> start);

  ServiceContext* const context_;
};

}  // namespace smt
