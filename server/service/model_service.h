// smt.v1.ModelService: one model, as ServiceContext::model describes it. Thread-safe.
#pragma once

#include "server/service/rpc.h"
#include "server/service/service_context.h"
#include "smt/v1/model_service.grpc.pb.h"

namespace smt {

namespace model_service_internal {
using S = v1::ModelService;
using Raw = S::WithRawCallbackMethod_GetModel<S::WithRawCallbackMethod_ListModels<S::Service>>;
}  // namespace model_service_internal

class ModelServiceImpl final : public model_service_internal::Raw {
 public:
  explicit ModelServiceImpl(ServiceContext* context) : context_(context) {}

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* call, const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* call, const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;

 private:
  ServiceContext* const context_;
};

}  // namespace smt
