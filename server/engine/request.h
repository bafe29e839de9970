// One request inside the engine, from its queue to its end. Engine thread only, once it left the inbox.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/engine/engine.h"
#include "server/engine/prompt_feed.h"
#include "server/engine/stop_matcher.h"

namespace smt {

// A restore handed to the pool; outlives the request when that is cancelled meanwhile.
struct RestoreJob {
  RequestHandle handle = 0;
  std::function<absl::StatusOr<RestoredState>()> restore;
  std::atomic<bool> abandoned{false};
};

struct Request {
  enum class Phase {
    kWaiting,     // no slot yet
    kRestoring,   // has a slot; its state is being fetched
    kIngesting,   // absorbing `feed`
    kGenerating,  // the first id is drawn
    kFinished,    // announced; waits for surplus work in flight
  };

  RequestHandle handle = 0;
  EngineRequest spec;
  int64_t prompt_size = 0;
  Phase phase = Phase::kWaiting;
  int32_t slot = -1;
  PromptFeed feed;
  std::unique_ptr<StopMatcher> stop_matcher;  // only with stop strings
  std::shared_ptr<RestoreJob> restore_job;

  int64_t generated = 0;               // ids drawn and announced
  int32_t items_in_flight = 0;         // submitted, result not seen
  int32_t draws_in_flight = 0;         // of these, those that draw
  int64_t ingest_turn = 0;             // when its last chunk was planned: who waited longest comes first
  size_t saved = 0;                    // of spec.save_at: those taken or passed
  std::optional<FinishReason> ending;  // as soon as nothing is in flight
  absl::Status failure;                // with ending == kError

  absl::Time submitted, admitted, prefilled;
  absl::Time expires = absl::InfiniteFuture();  // earlier of the deadline and the end of max_duration
  bool resident = false;
  int64_t recomputed_tokens = 0;

  // Where the next chunk has to end.
  std::optional<int64_t> next_save() const {
    return saved < spec.save_at.size() ? std::optional(spec.save_at[saved]) : std::nullopt;
  }
  // Of the session's log: head, prompt and what was generated.
  int64_t log_position() const { return spec.head + prompt_size + generated; }
};

}  // namespace smt
