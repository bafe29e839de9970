// What the engine thread does and knows. An iteration is a list of small actions over one state:
//
//   commands → expire → transfers → states asked for → admit → submit a step → take the oldest step's results → hand
//   over events
//
// The invariant behind stopping without an undo: a slot's state never holds an id that its session's log does not. An
// id is appended only by the step after the one that drew it, so when a request ends, a step that is still in flight
// has absorbed nothing newer than the last announced id, and what it draws is thrown away.
//
// Where max_in_flight is 2 the next step is submitted before the previous one's results are known; it says "the id
// drawn last" instead of an id. Prompt chunks are not overlapped with their own slot's work, since a deferred one would
// be overtaken.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "server/engine/delivery.h"
#include "server/engine/engine.h"
#include "server/engine/inbox.h"
#include "server/engine/request.h"
#include "server/engine/restore_pool.h"
#include "server/engine/slot_table.h"

namespace smt {

// EngineStats that any thread may read.
struct SharedStats {
  std::atomic<int64_t> running{0}, paused{0};
  std::atomic<int32_t> slots_active{0}, slots_idle{0}, slots_free{0};
};

class EngineLoop {
 public:
  EngineLoop(const Engine::Options& options, Executor* executor, bool report_steps, Inbox* inbox, Delivery* delivery,
             RestorePool* restores, SharedStats* stats);

  // Until a kDrain command and all that it brings are done.
  void Run();
  // By another thread, while the one in Run is in a call of the executor from which it will not return here: goes on in
  // its place, the executor having failed with `fault`.
  void TakeOver(const absl::Status& fault);

 private:
  // A Submit whose results are not known yet.
  struct Step {
    Ticket ticket = 0;
    std::vector<PlanItem> plan;
    std::vector<PromptFeed::Item> feed_items;  // in plan order; empty ones for generating requests
    std::vector<Request*> requests;            // in plan order
    StepMetrics metrics;
    absl::Time submitted;
  };
  // A Load or Save whose buffer is in use.
  struct Transfer {
    enum class Kind { kLoad, kSnapshot, kEviction, kCopy };
    Kind kind = Kind::kLoad;
    Ticket ticket = 0;
    std::shared_ptr<const StateBuffer> buffer = nullptr;
    RequestHandle handle = 0;          // kSnapshot
    std::string key = {};              // kEviction, kCopy
    Engine::StateDone done = nullptr;  // kCopy
    int64_t position = 0;
    absl::Time begun = {};
    bool dropped = false;
  };

  // engine_loop.cc
  void Handle(Command& command);
  void Forget(int32_t slot);  // what a session has there; at the end of its request if it runs
  void Expire();
  void WatchExpiry(const Request& request);
  // Ends a request as soon as it stands at a token boundary, which may be now.
  void End(Request* request, FinishReason reason, absl::Status status = absl::OkStatus());
  void EndAll(FinishReason reason, const absl::Status& status);
  // How a request ends whose snapshots are waited for.
  struct Finishing {
    Request* request;
    FinishReason reason;
    absl::Status status;
    int32_t stop_token, stop_string;
  };
  // Announces the end; the request may be gone afterwards.
  void Finish(Request* request, FinishReason reason, const absl::Status& status, int32_t stop_token = -1,
              int32_t stop_string = -1);
  void Release(Request* request);
  // The executor's answers. One that throws has failed like one that says so.
  absl::StatusOr<Ticket> Submit(std::span<const PlanItem> plan);
  absl::StatusOr<bool> Poll(Ticket ticket, bool wait, StepResult* result);
  void NoteFault(const absl::Status& status);
  void HandleFault();
  void PublishStats();

  // engine_admission.cc
  void Admit();
  bool Place(Request* request);
  int32_t TakeSlot(Request* request);
  void Evict(int32_t slot);
  void Restored(Request* request, absl::StatusOr<RestoredState> restored);
  void EndMisloaded(Request* request, int64_t expected_position);
  absl::Status CheckRestored(const Request& request, const RestoredState& restored) const;
  void Begin(Request* request, std::vector<int32_t> before);
  void Save(int32_t slot, Transfer transfer);
  // Takes note of transfers that are done; with `wait` of the oldest at least.
  void PollTransfers(bool wait);
  void AwaitSnapshots(const Request& request);
  void Complete(Transfer& transfer);
  // Answers Engine::SaveState: begins the copy, or says that there is none.
  void SaveAsked();
  void AnswerWithoutState(Engine::StateDone done);

  // engine_step.cc
  bool SubmitStep();
  // True when the request is to be left out of the step.
  bool TakeSnapshot(Request* request);
  void SaveWhereAsked(Request* request);
  void PlanDraw(Request* request, Step* step);
  void PlanIngestion(int64_t budget, Step* step);
  void FinishOldestStep();
  void TakeResult(Step& step, size_t index, ItemResult& result);
  void TakeFeedResult(Request* request, const PromptFeed::Item& item, ItemResult& result);
  void TakeDraw(Request* request, ItemResult& result);

  const Engine::Options& options_;
  Executor& executor_;
  const ExecutorInfo& info_;
  const bool report_steps_;
  Inbox& inbox_;
  Delivery& delivery_;
  RestorePool& restores_;
  SharedStats& stats_;

  SlotTable slots_;
  absl::flat_hash_map<RequestHandle, std::unique_ptr<Request>> requests_;  // all that are not released
  std::map<std::pair<int64_t, RequestHandle>, Request*> queue_;            // by (-priority, arrival)
  std::vector<Request*> running_;                                          // ingesting or generating
  std::deque<std::unique_ptr<Step>> steps_;                                // in flight, oldest first
  std::vector<std::unique_ptr<Step>> spare_steps_;
  std::deque<Transfer> transfers_;
  std::deque<Command> asked_;        // kSaveState, not answered yet
  std::vector<Request*> ingesting_;  // scratch of SubmitStep
  int64_t ingest_turns_ = 0;         // chunks planned so far
  int64_t paused_ = 0;               // in the latest step

  std::vector<Command> commands_;
  size_t next_command_ = 0;  // those before are handled
  std::optional<Finishing> finishing_;
  StepResult result_;
  absl::Time now_ = absl::Now();
  absl::Time next_expiry_ = absl::InfiniteFuture();  // no request expires before
  bool draining_ = false;
  bool faulted_ = false;
  bool taken_over_ = false;
  absl::Status fault_;  // the executor's
};

}  // namespace smt
