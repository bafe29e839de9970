// Checks every field of every request, and finds all violations at once. Ranges are those the proto files document.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "server/service/request_limits.h"
#include "server/service/violations.h"
#include "smt/v1/generation.pb.h"
#include "smt/v1/generation_service.pb.h"
#include "smt/v1/model_service.pb.h"
#include "smt/v1/session_service.pb.h"

namespace smt {

// generation_validator.cc
void ValidateSpec(const v1::GenerationSpec& spec, const RequestLimits& limits, Violations* violations);
void ValidateScore(const v1::ScoreRequest& request, const RequestLimits& limits, Violations* violations);
void ValidateTokenize(const v1::TokenizeRequest& request, const RequestLimits& limits, Violations* violations);
void ValidateDetokenize(const v1::DetokenizeRequest& request, const RequestLimits& limits, Violations* violations);
void ValidateResume(const v1::ResumeGenerateRequest& request, Violations* violations);
// For GetGeneration and CancelGeneration: both are required.
void ValidateRequestKey(std::string_view session, std::string_view request_id, Violations* violations);

// session_validator.cc
void ValidateSessionName(const std::string& field, std::string_view name, Violations* violations);
void ValidatePage(int32_t page_size, Violations* violations);
void ValidateCreateSession(const v1::CreateSessionRequest& request, const RequestLimits& limits,
                           Violations* violations);
void ValidateUpdateSession(const v1::UpdateSessionRequest& request, const RequestLimits& limits,
                           Violations* violations);
void ValidateDeleteSession(const v1::DeleteSessionRequest& request, Violations* violations);
void ValidateForkSession(const v1::ForkSessionRequest& request, const RequestLimits& limits, Violations* violations);
void ValidateCreateCheckpoint(const v1::CreateCheckpointRequest& request, Violations* violations);
void ValidateDeleteCheckpoint(const v1::DeleteCheckpointRequest& request, Violations* violations);
void ValidateRollbackSession(const v1::RollbackSessionRequest& request, Violations* violations);
void ValidateExportSession(const v1::ExportSessionRequest& request, Violations* violations);
// `first`: of the stream's messages.
void ValidateImportSession(const v1::ImportSessionRequest& request, bool first, const RequestLimits& limits,
                           Violations* violations);
void ValidateVerifySession(const v1::VerifySessionRequest& request, Violations* violations);
void ValidateBackupSessions(const v1::BackupSessionsRequest& request, Violations* violations);

}  // namespace smt
