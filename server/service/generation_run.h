// One generation from its start to its recorded end: between the engine's sink, the session's turn and the reader.
//
//   engine's delivery thread ─ OnTokens ─► turn (log), text assembly ─► pending ─ Take ─► reactor
//
// Tokens pile up in `pending` while a write is in flight. The reader's progress is told to the engine, which pauses the
// request when it is too far ahead. Nothing is available before the turn has begun, that is, before the request's
// record with its seed is durable; `finished` when the turn's end is.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/engine/engine.h"
#include "server/service/digest.h"
#include "server/service/event_source.h"
#include "server/service/service_context.h"
#include "server/service/stream_skip.h"
#include "server/service/text_assembler.h"
#include "server/session/session_manager.h"
#include "smt/v1/generation.pb.h"

namespace smt {

// What a request that goes on has done.
struct EarlierPart {
  int64_t start_position = 0, prompt_tokens = 0;
  std::vector<int32_t> ids;  // generated, the latest of the log
  StreamPoint after;         // what the reader has
};

class GenerationRun final : public GenerationSink,
                            public EventSource<v1::GenerationEvent>,
                            public std::enable_shared_from_this<GenerationRun> {
 public:
  // The engine pauses a request that is 1,024 tokens ahead; telling it every so many that were read keeps it going.
  static constexpr int64_t kWakeInterval = 256;

  struct Start {
    v1::GenerationSpec spec;  // validated
    std::vector<int32_t> prompt = {};
    std::vector<int32_t> stop_tokens = {};  // eos included
    int64_t max_tokens = 0;
    uint64_t seed = 0;
    absl::Time arrival;
    std::unique_ptr<Turn> turn = nullptr;               // null: ephemeral
    std::optional<EarlierPart> resumed = std::nullopt;  // of a request that goes on; then `prompt` is empty
  };

  GenerationRun(ServiceContext* context, Start start);
  ~GenerationRun() override;

  // After Engine::Submit. Cancels at once if the reader vanished meanwhile.
  void SetHandle(RequestHandle handle) ABSL_LOCKS_EXCLUDED(mu_);
  // Submit refused: the turn is recorded as interrupted. Gives `status` with where the session stands, or why the turn
  // never began, for which it waits.
  absl::Status Abandon(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);

  // Why a resumed one cannot go on: the reader's text is another. Looked at before Submit; then Abandon.
  absl::Status resume_status() const ABSL_LOCKS_EXCLUDED(mu_);
  // How a resumed one had ended already, its end not being recorded. Instead of Submit; then OnFinished.
  std::optional<FinishInfo> EndOfResumed() const;

  // Events are available once the turn has begun, with TOKEN ids once they are on disk. Ends when something cannot be
  // written, or another server asks for the session. Before Submit.
  void WatchDurability();

  Turn* turn() const { return turn_.get(); }
  const std::string& request_id() const { return spec_.request_id(); }
  const std::vector<int32_t>& prompt() const { return prompt_; }

  // CancelGeneration. Then calls `done` when the end is recorded; at once if it is already.
  void Cancel(std::function<void()> done) ABSL_LOCKS_EXCLUDED(mu_);
  // Stops at the next token boundary, whatever its policy, so that another stream can go on with it. `done` as above.
  void Park(std::function<void()> done) ABSL_LOCKS_EXCLUDED(mu_);
  int64_t log_position() const ABSL_LOCKS_EXCLUDED(mu_);  // what may be told of it

  // GenerationSink: the engine's delivery thread.
  void OnIngested(int64_t done, int64_t total) override;
  void OnPromptLogprobs(int64_t first_position, std::vector<TokenLogprobs> logprobs) override;
  void OnTokens(std::span<const TokenOutput> tokens) override;
  void OnSnapshot(int64_t position, std::shared_ptr<const StateBuffer> state) override;
  void OnFinished(const FinishInfo& info) override;

  // EventSource: the reader.
  void SetNotify(std::function<void()> notify) override;
  TakeResult Take(v1::GenerationEvent* event) override;
  absl::Status end_status() const override;
  void OnWritten() override;
  void OnDisconnect() override;

 private:
  v1::DisconnectPolicy DisconnectPolicy() const;
  void EndEarly(bool GenerationRun::*how, std::function<void()> done) ABSL_LOCKS_EXCLUDED(mu_);
  bool IsStopToken(int32_t id) const;
  void Recall() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Release(TextAssembler::Released released) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Consume(int64_t tokens) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void OnDurable() ABSL_LOCKS_EXCLUDED(mu_);
  // Moves what may be sent into chunk_.
  void Promote() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool sends_durable() const { return turn_ != nullptr && spec_.durability() == v1::DURABILITY_TOKEN; }
  void Notify() ABSL_LOCKS_EXCLUDED(mu_);
  // The end is recorded, with the log on disk up to `durable`: what waited for that may be sent.
  void SendWithheld(int64_t durable) ABSL_LOCKS_EXCLUDED(mu_);
  void RecordMetrics(const FinishInfo& info);
  absl::Status BrokenOffStatus(const FinishInfo& info) const ABSL_LOCKS_EXCLUDED(mu_);
  void End(std::optional<v1::GenerationFinished> finished, absl::Status status) ABSL_LOCKS_EXCLUDED(mu_);

  ServiceContext* const context_;
  const v1::GenerationSpec spec_;
  const std::vector<int32_t> prompt_;
  const std::vector<int32_t> stop_tokens_;
  const absl::Time arrival_;
  const std::unique_ptr<Turn> turn_;
  const std::string session_id_;  // empty: ephemeral
  const int64_t head_;            // before the prompt
  const int64_t prompt_tokens_;
  const std::vector<int32_t> resumed_ids_;
  const int64_t max_tokens_, piecewise_to_;

  // Delivery thread only.
  TextAssembler assembler_;
  absl::Time last_progress_;
  absl::Time first_token_ = absl::InfiniteFuture();
  absl::Time last_tokens_;
  mutable absl::Mutex mu_;
  std::function<void()> notify_ ABSL_GUARDED_BY(mu_);
  std::optional<RequestHandle> handle_ ABSL_GUARDED_BY(mu_);
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;     // by CancelGeneration
  bool parked_ ABSL_GUARDED_BY(mu_) = false;        // by Park
  bool disconnected_ ABSL_GUARDED_BY(mu_) = false;  // the reader is gone
  bool begun_ ABSL_GUARDED_BY(mu_);                 // events may be told
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(mu_);
  std::vector<std::function<void()>> on_end_ ABSL_GUARDED_BY(mu_);
  std::deque<v1::GenerationEvent> events_ ABSL_GUARDED_BY(mu_);  // started, echo, prompt log-probabilities
  std::optional<v1::GenerationProgress> progress_ ABSL_GUARDED_BY(mu_);
  std::deque<v1::GenerationChunk> pieces_ ABSL_GUARDED_BY(mu_);  // released, not to be sent yet
  bool withheld_ ABSL_GUARDED_BY(mu_) = false;                   // all of them, until the end is recorded
  std::optional<v1::GenerationChunk> chunk_ ABSL_GUARDED_BY(mu_);
  std::optional<v1::GenerationFinished> finished_ ABSL_GUARDED_BY(mu_);
  RunningDigest digest_ ABSL_GUARDED_BY(mu_);
  StreamSkip skip_ ABSL_GUARDED_BY(mu_);
  int64_t released_position_ ABSL_GUARDED_BY(mu_);
  int64_t log_position_ ABSL_GUARDED_BY(mu_);
  int64_t durable_position_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t taken_tokens_ ABSL_GUARDED_BY(mu_) = 0;    // of the message being written
  int64_t unwoken_tokens_ ABSL_GUARDED_BY(mu_) = 0;  // consumed since the engine was told
};

}  // namespace smt
