// RunnerExecutor: what executors over a SlotRunner share: what they refuse, bound sampling parameters, draws on the
// host, scoring, and that a fault makes them dead.
#pragma once

#include <exception>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/sampling/penalty_state.h"
#include "model/sampling/sampler.h"
#include "model/slot_runner.h"
#include "server/engine/executor.h"

namespace smt {

class RunnerExecutor : public Executor {
 public:
  RunnerExecutor(std::unique_ptr<SlotRunner> runner, std::string device, std::string dtype);

  const ExecutorInfo& info() const override { return info_; }
  int64_t position(int32_t slot) const override { return runner_->position(slot); }
  void Reset(int32_t slot) override;
  Ticket Load(int32_t slot, std::span<const std::byte> state) override;
  Ticket Save(int32_t slot, std::span<std::byte> state) override;
  Ticket Copy(int32_t from, int32_t to) override;
  void BindSampling(int32_t slot, std::shared_ptr<const SamplingParams> params, std::span<const int32_t> prior,
                    std::span<const int32_t> generated) override;
  absl::StatusOr<bool> Poll(Ticket ticket, bool wait, StepResult* result) override;

 protected:
  struct Slot {
    std::shared_ptr<const SamplingParams> params;
    PenaltyState penalties;
    int32_t drawn = -1;  // not yet appended
  };
  struct Done {
    absl::Status status;
    StepResult result;
  };
  // An item while its plan runs.
  struct Work {
    const PlanItem* item;
    ItemResult* result;
    std::vector<int32_t> ids;  // everything to append
    size_t logits_from;        // ids from this index on are stepped, those before ingested
    size_t scored = 0;         // targets done
  };

  Slot& At(int32_t slot) { return slots_[static_cast<size_t>(slot)]; }
  bool Known(int32_t slot) const { return slot >= 0 && slot < info_.slots; }
  absl::Status CheckSlot(int32_t slot) const;
  absl::Status Check(std::span<const PlanItem> plan);
  // Whether append_last_sampled can stand for something.
  virtual bool HasDrawn(const PlanItem& item) { return At(item.slot).drawn >= 0; }

  // Runs `body`, which may throw, and gives the ticket of its outcome. std::invalid_argument is the caller's mistake.
  template <typename Body>
  Ticket Finish(const Body& body) {
    Done& done = done_[next_ticket_];
    if (!dead_.ok()) {
      done.status = dead_;
      return next_ticket_++;
    }
    try {
      done.status = body();
    } catch (const std::invalid_argument& error) {
      done.status = absl::InvalidArgumentError(error.what());
    } catch (const std::exception& error) {
      done.status = Die(error.what());
    }
    return next_ticket_++;
  }
  absl::Status Die(const char* what);

  // The item's ids, the one drawn last among them, which it no longer is.
  Work Begin(const PlanItem& item, ItemResult* result);
  void IngestPart(std::span<Work> work, StepTimings* timings);
  void RunRounds(std::span<Work> work, StepTimings* timings);
  // Draws on the host.
  void Draw(int32_t slot, int64_t position, std::span<const float> logits, ItemResult* result);

  const std::unique_ptr<SlotRunner> runner_;
  ExecutorInfo info_;
  std::vector<Slot> slots_;
  std::map<Ticket, Done> done_;
  Ticket next_ticket_ = 1;
  absl::Status dead_;

 private:
  absl::Status CheckItem(const PlanItem& item);
  // Logits of these works' slots, after appending the next id of each (step) or as they stand.
  void Evaluate(std::span<Work* const> batch, bool step, size_t round, StepTimings* timings);
  void Use(Work& work, std::span<const float> logits);

  Sampler sampler_;
  std::vector<float> logits_;  // of one batch, [items, V]
};

}  // namespace smt
