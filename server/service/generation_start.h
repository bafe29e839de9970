// From a GenerationSpec to a running (or replayed) generation: validation, tokenising, the session's turn, the engine.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/service/event_source.h"
#include "server/service/service_context.h"
#include "smt/v1/generation.pb.h"
#include "smt/v1/generation_service.pb.h"

namespace smt {

using GenerationEvents = EventSource<v1::GenerationEvent>;

// Blocks on the store and on tokenising: not for gRPC's threads. `deadline` is the call's. While `abandoned` is true
// (the client went away) nothing begins: CANCELLED.
absl::StatusOr<std::shared_ptr<GenerationEvents>> StartGeneration(ServiceContext* context,
                                                                  const v1::GenerationSpec& spec, absl::Time arrival,
                                                                  absl::Time deadline,
                                                                  const std::function<bool()>& abandoned);

// The ids of a request's `input`. `at_start`: nothing precedes them, so text begins with bos. INVALID_ARGUMENT beyond
// max_prompt_tokens.
absl::StatusOr<std::vector<int32_t>> EncodeInput(const ServiceContext& context, const v1::GenerationSpec& spec,
                                                 bool at_start);
absl::StatusOr<std::vector<int32_t>> EncodeInput(const ServiceContext& context, const v1::ScoreRequest& request,
                                                 bool at_start);

// Hash of the fields that change what a request means; equal for a retry.
std::string SemanticHash(const v1::GenerationSpec& spec);

}  // namespace smt
