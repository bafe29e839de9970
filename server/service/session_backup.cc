// SessionService.BackupSessions.
#include <filesystem>
#include <system_error>

#include "absl/time/clock.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/log.h"
#include "server/base/status_details.h"
#include "server/service/session_messages.h"
#include "server/service/session_service.h"
#include "server/service/validators.h"

namespace smt {
namespace {

absl::Status Backup(ServiceContext* context, const v1::BackupSessionsRequest& in, v1::BackupSessionsResponse* out) {
  if (context->backup_dir.empty()) {
    const std::string why = "the server was started without --backup_dir, the folder that backups are made in";
    return WithDetails(absl::FailedPreconditionError(why),
                       {.reason = "NO_BACKUP_DIR", .preconditions = {{"BACKUP_DIR", "--backup_dir", why}}});
  }
  const std::string id = !in.backup_id().empty()
                             ? in.backup_id()
                             : absl::FormatTime("backup-%Y%m%d-%H%M%E3S", absl::Now(), absl::UTCTimeZone());
  const std::filesystem::path path = std::filesystem::path(context->backup_dir) / id;
  absl::Status status = context->sessions->Backup(path.string());
  if (absl::IsAlreadyExists(status)) {
    status = WithDetails(status, {.reason = "BACKUP_EXISTS", .resource = StatusDetails::Resource{"backup", id}});
  }
  RETURN_IF_ERROR(status);
  out->set_backup_id(id);
  out->set_path(path.string());
  std::error_code ec;
  int64_t bytes = 0;
  for (const auto& file : std::filesystem::recursive_directory_iterator(path, ec)) {
    if (file.is_regular_file(ec)) bytes += static_cast<int64_t>(file.file_size(ec));
  }
  out->set_total_bytes(bytes);
  LogInfo("store backed up", {{"path", path.string()}, {"bytes", bytes}});
  return absl::OkStatus();
}

}  // namespace

SessionServiceImpl::Unary* SessionServiceImpl::BackupSessions(Call*, const Bytes* request, Bytes* response) {
  return RunUnary<v1::BackupSessionsRequest, v1::BackupSessionsResponse>(
      context_, request, response, kSessionService, "BackupSessions",
      [context = context_](const v1::BackupSessionsRequest& in, v1::BackupSessionsResponse* out) -> absl::Status {
        Violations violations;
        ValidateBackupSessions(in, &violations);
        if (!violations.empty()) return violations.ToStatus();
        return Counted(context, "backup", Backup(context, in, out));
      });
}

}  // namespace smt
