#include "server/engine/warm_up.h"

#include <algorithm>
#include <array>
#include <deque>
#include <exception>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/base/status_macros.h"
#include "server/engine/hang_watch.h"

namespace smt {
namespace {

constexpr int64_t kStrides = 3;
// Ids that every vocabulary has. Static, since a device that has failed may read them still.
constexpr std::array<int32_t, 256> kPrompt = {};

class WarmUpRun {
 public:
  WarmUpRun(Executor& executor, const WarmUpOptions& options)
      : executor_(executor),
        info_(executor.info()),
        options_(options),
        stride_(std::max(info_.stride, 1)),
        deadline_(options.now() + options.budget) {
    // One of the sessions asks for what has kernels of its own.
    auto reporting = std::make_shared<SamplingParams>();
    reporting->frequency_penalty = 0.1f;
    reporting->top_logprobs = 1;
    reporting_ = std::move(reporting);
  }

  absl::StatusOr<WarmUpReport> Run() {
    int32_t used = 0;
    for (const int32_t batch : options_.batches) {
      if (batch > info_.slots) continue;
      if (!GoesOn()) break;
      used = std::max(used, batch);
      RETURN_IF_ERROR(Warm(batch));
      if (!report_.stopped.ok()) break;
      report_.batches.push_back(batch);
    }
    for (int32_t slot = 0; slot < used; ++slot) {
      executor_.Reset(slot);
      executor_.BindSampling(slot, nullptr, {}, {});
    }
    if (used > 0) RETURN_IF_ERROR(Take(executor_.Copy(0, 0)));  // tells of a fault in clearing
    return std::move(report_);
  }

 private:
  // False once something is to end the ladder.
  bool GoesOn() {
    if (report_.stopped.ok() && options_.now() >= deadline_) {
      report_.stopped = absl::DeadlineExceededError(
          absl::StrCat("the ", absl::FormatDuration(options_.budget), " for it are used up"));
    }
    return report_.stopped.ok();
  }

  absl::Status Warm(int32_t batch) {
    std::vector<PlanItem> plan;
    RETURN_IF_ERROR(Fill(batch));
    for (int32_t slot = 0; slot < batch; ++slot) plan.push_back({.slot = slot, .want = Want::kSample});
    RETURN_IF_ERROR(Finish(plan));
    for (PlanItem& item : plan) item.append_last_sampled = true;
    std::deque<Ticket> flying;
    const int64_t steps = kStrides * (stride_ + 1);  // the end of a stride may take a step of its own
    for (int64_t step = 0; step < steps && GoesOn(); ++step) {
      ASSIGN_OR_RETURN(flying.emplace_back(), executor_.Submit(plan));
      if (flying.size() < static_cast<size_t>(info_.max_in_flight)) continue;
      RETURN_IF_ERROR(Take(flying.front()));
      flying.pop_front();
    }
    for (const Ticket ticket : flying) RETURN_IF_ERROR(Take(ticket));
    return absl::OkStatus();
  }

  // One session absorbs a prompt and the others are copies of it on its way, so that this takes as long for any batch.
  absl::Status Fill(int32_t batch) {
    const int32_t fed = batch - 1;
    const int64_t window = (info_.input_tokens + stride_ - 1) / stride_;  // strides
    const int64_t full = std::max<int64_t>(window, info_.memory_vectors) * stride_;
    executor_.Reset(fed);
    Bind(fed);
    int64_t position = 0;
    for (int32_t slot = 0; slot < batch && GoesOn(); ++slot) {
      const int64_t target = full + stride_ * slot / batch;
      RETURN_IF_ERROR(Feed(fed, target - position));
      position = target;
      if (slot == fed) break;
      RETURN_IF_ERROR(Take(executor_.Copy(fed, slot)));
      Bind(slot);
    }
    return absl::OkStatus();
  }

  void Bind(int32_t slot) { executor_.BindSampling(slot, slot == 0 ? reporting_ : plain_, {}, {}); }

  // As the engine does: in pieces, and a draw after the last.
  absl::Status Feed(int32_t slot, int64_t ids) {
    while (ids > 0 && GoesOn()) {
      const auto piece = std::min<int64_t>(ids, kPrompt.size());
      ids -= piece;
      RETURN_IF_ERROR(Finish({{.slot = slot,
                               .ids = std::span(kPrompt).first(static_cast<size_t>(piece)),
                               .want = ids == 0 ? Want::kSample : Want::kNothing}}));
    }
    return absl::OkStatus();
  }

  // Until nothing is deferred any more.
  absl::Status Finish(std::vector<PlanItem> plan) {
    while (!plan.empty() && GoesOn()) {
      ASSIGN_OR_RETURN(const Ticket ticket, executor_.Submit(plan));
      RETURN_IF_ERROR(Take(ticket));
      std::vector<PlanItem> deferred;
      for (size_t i = 0; i < plan.size(); ++i) {
        if (result_.items[i].deferred) deferred.push_back(plan[i]);
      }
      plan = std::move(deferred);
    }
    return absl::OkStatus();
  }

  absl::Status Take(Ticket ticket) {
    result_.items.clear();
    for (bool done = false; !done;) {
      ASSIGN_OR_RETURN(done, executor_.Poll(ticket, /*wait=*/true, &result_));
    }
    for (const ItemResult& item : result_.items) report_.stopped.Update(item.status);
    return absl::OkStatus();
  }

  Executor& executor_;
  const ExecutorInfo& info_;
  const WarmUpOptions& options_;
  const int64_t stride_;
  const absl::Time deadline_;
  std::shared_ptr<const SamplingParams> plain_ = std::make_shared<const SamplingParams>(), reporting_;
  WarmUpReport report_;
  StepResult result_;  // of the ticket taken last
};

}  // namespace

absl::StatusOr<WarmUpReport> WarmUp(Executor& executor, const WarmUpOptions& options) {
  try {
    return WarmUpRun(executor, options).Run();
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

absl::StatusOr<WarmUpReport> WarmUpWithin(absl::Duration timeout, std::unique_ptr<Executor>& executor,
                                          const WarmUpOptions& options) {
  struct Run {
    Run(Executor& executor, WarmUpOptions options) : executor(executor), options(std::move(options)) {}
    Executor& executor;
    const WarmUpOptions options;
    HangWatch watch;
    absl::StatusOr<WarmUpReport> report;
  };
  auto run = std::make_unique<Run>(*executor, options);
  std::thread thread([run = run.get()] {
    WatchedExecutor watched(run->executor, run->watch);
    run->report = WarmUp(watched, run->options);
    run->watch.End();
  });
  if (run->watch.AwaitEnd(timeout)) {
    thread.join();
    return std::move(run->report);
  }
  thread.detach();
  static_cast<void>(run.release());
  static_cast<void>(executor.release());
  return absl::DeadlineExceededError(absl::StrCat("it has not answered for ", absl::FormatDuration(timeout)));
}

}  // namespace smt
