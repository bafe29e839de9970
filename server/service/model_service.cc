#include "server/service/model_service.h"

#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/service/validators.h"

namespace smt {
namespace {

constexpr char kService[] = "smt.v1.ModelService";

}  // namespace

grpc::ServerUnaryReactor* ModelServiceImpl::GetModel(grpc::CallbackServerContext*, const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return RunUnary<v1::GetModelRequest, v1::GetModelResponse>(
      context_, request, response, kService, "GetModel",
      [context = context_](const v1::GetModelRequest& in, v1::GetModelResponse* out) -> absl::Status {
        if (!in.name().empty() && in.name() != context->model.name()) {
          return WithDetails(absl::NotFoundError(StrCat("there is no model ", ShowValue(in.name()),
                                                        "; this server has '", context->model.name(), "'")),
                             {.reason = "MODEL_NOT_FOUND",
                              .resource = StatusDetails::Resource{"model", in.name(), "not served here"}});
        }
        *out->mutable_model() = context->model;
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* ModelServiceImpl::ListModels(grpc::CallbackServerContext*, const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  return RunUnary<v1::ListModelsRequest, v1::ListModelsResponse>(
      context_, request, response, kService, "ListModels",
      [context = context_](const v1::ListModelsRequest& in, v1::ListModelsResponse* out) -> absl::Status {
        Violations violations;
        ValidatePage(in.page_size(), &violations);
        if (!in.page_token().empty()) {
          violations.Add("page_token", StrCat("is ", ShowValue(in.page_token()), "; there is only one page"));
        }
        if (!violations.empty()) return violations.ToStatus();
        *out->add_models() = context->model;
        return absl::OkStatus();
      });
}

}  // namespace smt
