#include "server/engine/engine.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status_details.h"
#include "server/engine/delivery.h"
#include "server/engine/engine_loop.h"
#include "server/engine/engine_metrics.h"
#include "server/engine/hang_watch.h"
#include "server/engine/inbox.h"
#include "server/engine/restore_pool.h"

namespace smt {
namespace {

absl::Status CheckRequest(const EngineRequest& request, const Engine::Options& options, const ExecutorInfo& info) {
  if (request.sink == nullptr) return absl::InvalidArgumentError("sink is not set");
  if (request.head < 0) return absl::InvalidArgumentError(absl::StrCat("head is ", request.head, "; it must be >= 0"));
  if (request.prompt.empty() && request.head == 0) {
    return absl::InvalidArgumentError("the prompt is empty and so is the session; at least one id is needed");
  }
  if (request.max_tokens < 0) {
    return absl::InvalidArgumentError(absl::StrCat("max_tokens is ", request.max_tokens, "; it must be >= 0"));
  }
  if (request.max_tokens > 0 && request.sampling == nullptr) {
    return absl::InvalidArgumentError("max_tokens is > 0 but sampling is not set");
  }
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] < 0 || request.prompt[i] >= info.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("prompt[", i, "] is ", request.prompt[i], "; ids must be in [0, ", info.vocab_size, ")"));
    }
  }
  const int64_t end = request.head + static_cast<int64_t>(request.prompt.size());
  for (size_t i = 0; i < request.save_at.size(); ++i) {
    const int64_t least = i == 0 ? 0 : request.save_at[i - 1] + 1;
    if (request.save_at[i] < least || request.save_at[i] > end) {
      return absl::InvalidArgumentError(absl::StrCat("save_at[", i, "] is ", request.save_at[i],
                                                     "; positions must ascend and be in [", least, ", ", end, "]"));
    }
  }
  if (!request.stop_strings.empty() &&
      (options.token_bytes == nullptr || options.token_bytes->size() < static_cast<size_t>(info.vocab_size))) {
    return absl::InvalidArgumentError("stop_strings need the bytes of every id, which the engine was not given");
  }
  return absl::OkStatus();
}

}  // namespace

class Engine::Impl {
 public:
  Impl(Options options, std::unique_ptr<Executor> executor, EngineMetrics* metrics)
      : options_(std::move(options)),
        executor_(std::move(executor)),
        watched_(*executor_, watch_),
        info_(executor_->info()),
        inbox_(options_.max_queue),
        delivery_(options_, metrics),
        restores_(std::max(options_.restore_threads, 1), &inbox_),
        loop_(options_, Watched() ? &watched_ : executor_.get(), metrics != nullptr, &inbox_, &delivery_, &restores_,
              &stats_),
        thread_([this] {
          loop_.Run();
          watch_.End();
        }) {
    if (Watched()) watcher_ = std::thread([this] { WatchDevice(); });
  }

  ~Impl() {
    Drain();
    executor_ = nullptr;  // before the buffers it may still use after a fault
  }

  const ExecutorInfo& info() const { return info_; }

  absl::StatusOr<RequestHandle> Submit(EngineRequest spec) {
    if (absl::Status status = CheckRequest(spec, options_, info_); !status.ok()) return status;
    auto request = std::make_unique<Request>();
    request->submitted = absl::Now();
    request->expires = spec.deadline;
    request->prompt_size = static_cast<int64_t>(spec.prompt.size());
    std::sort(spec.stop_tokens.begin(), spec.stop_tokens.end());
    if (!spec.restore) {
      spec.restore = []() -> absl::StatusOr<RestoredState> {
        return absl::FailedPreconditionError("the session is not in a slot, and there is nothing to restore it from");
      };
    }
    if (!spec.stop_strings.empty()) {
      request->stop_matcher = std::make_unique<StopMatcher>(spec.stop_strings);
      for (const int32_t id : spec.generated) request->stop_matcher->Append((*options_.token_bytes)[id]);
    }
    request->spec = std::move(spec);
    return inbox_.Submit(std::move(request));
  }

  absl::Status status() const { return inbox_.closed(); }

  void Cancel(RequestHandle handle, FinishReason reason) {
    inbox_.Push({.kind = Command::Kind::kCancel, .handle = handle, .reason = reason});
  }
  void Discard(std::string_view key) { inbox_.Push({.kind = Command::Kind::kDiscard, .key = std::string(key)}); }
  void SaveState(std::string_view key, StateDone done) {
    Command command{.kind = Command::Kind::kSaveState, .key = std::string(key), .done = std::move(done)};
    if (!inbox_.PushUnlessClosed(&command)) command.done(0, nullptr);
  }
  void DiscardAll() { inbox_.Push({.kind = Command::Kind::kDiscardAll}); }
  void Wake(RequestHandle handle) { inbox_.Push({.kind = Command::Kind::kWake, .handle = handle}); }

  EngineStats stats() const {
    EngineStats stats;
    stats.running = stats_.running.load(std::memory_order_relaxed);
    stats.waiting = inbox_.waiting();
    stats.paused = stats_.paused.load(std::memory_order_relaxed);
    stats.slots_active = stats_.slots_active.load(std::memory_order_relaxed);
    stats.slots_idle = stats_.slots_idle.load(std::memory_order_relaxed);
    stats.slots_free = stats_.slots_free.load(std::memory_order_relaxed);
    if (Watched()) stats.stalled = watch_.stalled() * options_.device_timeout / HangWatch::kTicks;
    return stats;
  }

  void Drain() {
    inbox_.Close(WithDetails(absl::UnavailableError("the engine is going down"),
                             {.reason = "DRAINING", .retry_delay = absl::Seconds(1)}));
    PlainLock lock(drain_mu_);
    if (!thread_.joinable()) return;
    inbox_.Push({.kind = Command::Kind::kDrain});
    if (watcher_.joinable()) watcher_.join();
    hung_ ? thread_.detach() : thread_.join();
    restores_.Stop();
    delivery_.Stop();
  }

  // Whether the engine's thread is still in a call of the executor; after Drain.
  bool hung() const { return hung_; }

 private:
  bool Watched() const { return options_.device_timeout < absl::InfiniteDuration(); }
  // Ends the loop, if the executor hangs, in the place of its own thread.
  void WatchDevice() {
    if (watch_.AwaitEnd(options_.device_timeout)) return;
    hung_ = true;
    loop_.TakeOver(absl::DeadlineExceededError(
        absl::StrCat("it has not answered for ", absl::FormatDuration(options_.device_timeout))));
  }

  const Options options_;
  HangWatch watch_;
  std::unique_ptr<Executor> executor_;  // engine thread
  WatchedExecutor watched_;
  const ExecutorInfo info_;
  Inbox inbox_;
  Delivery delivery_;
  RestorePool restores_;
  SharedStats stats_;
  EngineLoop loop_;
  bool hung_ = false;  // of watcher_
  PlainMutex drain_mu_;
  std::thread thread_ ABSL_GUARDED_BY(drain_mu_), watcher_ ABSL_GUARDED_BY(drain_mu_);
};

Engine::Engine(Options options, std::unique_ptr<Executor> executor, EngineMetrics* metrics)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(executor), metrics)) {}
Engine::~Engine() {
  impl_->Drain();
  if (impl_->hung()) static_cast<void>(impl_.release());  // all of it may still be in use
}
const ExecutorInfo& Engine::info() const { return impl_->info(); }
absl::StatusOr<RequestHandle> Engine::Submit(EngineRequest request) { return impl_->Submit(std::move(request)); }
absl::Status Engine::status() const { return impl_->status(); }
void Engine::Cancel(RequestHandle handle, FinishReason reason) { impl_->Cancel(handle, reason); }
void Engine::Discard(std::string_view session_key) { impl_->Discard(session_key); }
void Engine::SaveState(std::string_view session_key, StateDone done) { impl_->SaveState(session_key, std::move(done)); }
void Engine::DiscardAll() { impl_->DiscardAll(); }
void Engine::Wake(RequestHandle handle) { impl_->Wake(handle); }
EngineStats Engine::stats() const { return impl_->stats(); }
void Engine::Drain() { impl_->Drain(); }

}  // namespace smt
