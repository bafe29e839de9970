// Forks, checkpoints, rollback, export and import.
#include "server/session/session_manager_impl.h"

namespace smt {

absl::StatusOr<SessionInfo> SessionManagerImpl::Fork(const ForkSpec&) { return absl::UnimplementedError("Fork"); }
absl::StatusOr<CheckpointInfo> SessionManagerImpl::CreateCheckpoint(const CheckpointSpec&) {
  return absl::UnimplementedError("CreateCheckpoint");
}
absl::StatusOr<SessionManager::CheckpointPage> SessionManagerImpl::ListCheckpoints(std::string_view, int32_t,
                                                                                   const std::string&) {
  return absl::UnimplementedError("ListCheckpoints");
}
absl::Status SessionManagerImpl::DeleteCheckpoint(std::string_view, std::string_view, const std::string&) {
  return absl::UnimplementedError("DeleteCheckpoint");
}
absl::StatusOr<SessionInfo> SessionManagerImpl::Rollback(const RollbackSpec&) {
  return absl::UnimplementedError("Rollback");
}
absl::StatusOr<SessionContent> SessionManagerImpl::Export(std::string_view, std::string_view) {
  return absl::UnimplementedError("Export");
}
absl::StatusOr<SessionInfo> SessionManagerImpl::Import(const ImportSpec&) { return absl::UnimplementedError("Import"); }
absl::Status SessionManagerImpl::VisitStates(std::string_view, const std::function<absl::Status(const KeptState&)>&) {
  return absl::UnimplementedError("VisitStates");
}
absl::StatusOr<std::vector<int32_t>> SessionManagerImpl::ReadRequestLog(std::string_view id, int64_t, int64_t first,
                                                                        int64_t last) {
  return ReadLog(id, first, last);
}

}  // namespace smt
