// smt.v1.SessionService. Thread-safe.
#pragma once

#include "server/service/rpc.h"
#include "server/service/service_context.h"
#include "smt/v1/session_service.grpc.pb.h"

namespace smt {

namespace session_service_internal {
using S = v1::SessionService;
using Raw = S::WithRawCallbackMethod_CreateSession<S::WithRawCallbackMethod_GetSession<
    S::WithRawCallbackMethod_ListSessions<S::WithRawCallbackMethod_UpdateSession<S::WithRawCallbackMethod_DeleteSession<
        S::WithRawCallbackMethod_ForkSession<S::WithRawCallbackMethod_CreateCheckpoint<
            S::WithRawCallbackMethod_ListCheckpoints<S::WithRawCallbackMethod_DeleteCheckpoint<
                S::WithRawCallbackMethod_RollbackSession<S::WithRawCallbackMethod_ExportSession<
                    S::WithRawCallbackMethod_ImportSession<S::WithRawCallbackMethod_VerifySession<
                        S::WithRawCallbackMethod_BackupSessions<S::Service>>>>>>>>>>>>>>;
}  // namespace session_service_internal

class SessionServiceImpl final : public session_service_internal::Raw {
 public:
  explicit SessionServiceImpl(ServiceContext* context) : context_(context) {}

  using Call = grpc::CallbackServerContext;
  using Bytes = grpc::ByteBuffer;
  using Stream = grpc::ServerWriteReactor<grpc::ByteBuffer>;
  using Upload = grpc::ServerReadReactor<grpc::ByteBuffer>;
  using Unary = grpc::ServerUnaryReactor;

  Unary* CreateSession(Call* call, const Bytes* request, Bytes* response) override;
  Unary* GetSession(Call* call, const Bytes* request, Bytes* response) override;
  Unary* ListSessions(Call* call, const Bytes* request, Bytes* response) override;
  Unary* UpdateSession(Call* call, const Bytes* request, Bytes* response) override;
  Unary* DeleteSession(Call* call, const Bytes* request, Bytes* response) override;

  // session_branching.cc
  Unary* ForkSession(Call* call, const Bytes* request, Bytes* response) override;
  Unary* CreateCheckpoint(Call* call, const Bytes* request, Bytes* response) override;
  Unary* ListCheckpoints(Call* call, const Bytes* request, Bytes* response) override;
  Unary* DeleteCheckpoint(Call* call, const Bytes* request, Bytes* response) override;
  Unary* RollbackSession(Call* call, const Bytes* request, Bytes* response) override;

  // session_transfer.cc, verify_run.cc
  Stream* ExportSession(Call* call, const Bytes* request) override;
  Upload* ImportSession(Call* call, Bytes* response) override;
  Stream* VerifySession(Call* call, const Bytes* request) override;

  // session_backup.cc
  Unary* BackupSessions(Call* call, const Bytes* request, Bytes* response) override;

 private:
  ServiceContext* const context_;
};

}  // namespace smt
