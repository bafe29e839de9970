// Scoring: an ephemeral engine request that reads a prompt for its log-probabilities, and the messages made of them.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/engine/engine.h"
#include "server/service/event_source.h"
#include "server/service/service_context.h"
#include "smt/v1/generation_service.pb.h"

namespace smt {

using ScoreEvents = EventSource<v1::ScoreResponse>;

// Blocks on the store and on tokenising. `deadline` is the call's.
absl::StatusOr<std::shared_ptr<ScoreEvents>> StartScore(ServiceContext* context, const v1::ScoreRequest& request,
                                                        absl::Time deadline);

}  // namespace smt
