// What starting, replaying and resuming a generation share.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/service/generation_run.h"
#include "server/service/generation_start.h"

namespace smt {

std::vector<int32_t> StopTokens(const ServiceContext& context, const v1::GenerationSpec& spec);  // eos included
std::shared_ptr<const SamplingParams> MakeSampling(const v1::GenerationSpec& spec,
                                                   const std::vector<int32_t>& stop_tokens, uint64_t seed);
// Counts a request that was refused, by its reason.
void NoteRejection(ServiceContext* context, const absl::Status& status);
int64_t MaxTokens(const ServiceContext& context, const v1::GenerationSpec& spec);

// Makes `run` the request's sink, and its turn what restores the session, and submits it.
absl::StatusOr<std::shared_ptr<GenerationEvents>> SubmitRun(ServiceContext* context, std::shared_ptr<GenerationRun> run,
                                                            EngineRequest request);

// FAILED_PRECONDITION (SUPERSEDED) when the session was rolled back after the request: its positions are not the
// session's any more.
absl::Status CheckOnBranch(ServiceContext* context, const std::string& session_id, const RequestRecord& record);

// What was sent of a request that has ended, computed from the log of its branch; with `after` what lies
// past it.
absl::StatusOr<std::shared_ptr<GenerationEvents>> ReplayGeneration(ServiceContext* context,
                                                                   const v1::GenerationSpec& spec,
                                                                   const std::string& session_id,
                                                                   const RequestRecord& record,
                                                                   const std::optional<StreamPoint>& after);

}  // namespace smt
