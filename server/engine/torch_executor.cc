// A plan runs in three parts, each batched over its items: ids that need no logits are ingested; then rounds of one id
// a slot give logits (the last id of a sampling item, every id of a scoring one); items that ask about the present
// position take its logits without appending. Draws follow.
#include "server/engine/torch_executor.h"

#include <exception>
#include <utility>
#include <vector>

#include "model/base/status_macros.h"
#include "server/engine/runner_executor.h"

namespace smt {
namespace {

class TorchExecutor final : public RunnerExecutor {
 public:
  using RunnerExecutor::RunnerExecutor;
  absl::StatusOr<Ticket> Submit(std::span<const PlanItem> plan) override;
};

absl::StatusOr<Ticket> TorchExecutor::Submit(std::span<const PlanItem> plan) {
  if (!dead_.ok()) return dead_;
  RETURN_IF_ERROR(Check(plan));
  StepResult result;
  result.items.resize(plan.size());
  try {
    runner_->TakeTimings();
    std::vector<Work> work;
    work.reserve(plan.size());
    for (size_t i = 0; i < plan.size(); ++i) work.push_back(Begin(plan[i], &result.items[i]));
    IngestPart(work, &result.timings);
    RunRounds(work, &result.timings);
  } catch (const std::exception& error) {
    return Die(error.what());
  }
  done_[next_ticket_].result = std::move(result);
  return next_ticket_++;
}

}  // namespace

std::unique_ptr<Executor> NewTorchExecutor(std::unique_ptr<SlotRunner> runner, std::string device, std::string dtype) {
  return std::make_unique<TorchExecutor>(std::move(runner), std::move(device), std::move(dtype));
}

}  // namespace smt
