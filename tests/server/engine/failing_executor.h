// Another Executor until its device fails: the step that a test chooses is carried out, but its results never come.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <utility>

#include "absl/time/clock.h"
#include "server/engine/executor.h"

namespace smt {

// What a test turns while the executor runs.
struct DeviceFault {
  std::atomic<int64_t> steps_before{-1};  // so many steps are good from now on; negative: all
  std::atomic<bool> throws{false};        // instead of answering INTERNAL
  std::atomic<bool> hangs{false};         // instead of answering; a device is what can
  std::atomic<int64_t> step_us{0};        // each step takes so much longer
};

class FailingExecutor final : public Executor {
 public:
  FailingExecutor(std::unique_ptr<Executor> inner, std::shared_ptr<DeviceFault> fault)
      : inner_(std::move(inner)), fault_(std::move(fault)), info_(inner_->info()) {
    if (fault_->hangs) info_.device = "faulty";
  }

  const ExecutorInfo& info() const override { return info_; }
  int64_t position(int32_t slot) const override { return inner_->position(slot); }
  void Reset(int32_t slot) override { inner_->Reset(slot); }
  Ticket Load(int32_t slot, std::span<const std::byte> state) override { return inner_->Load(slot, state); }
  Ticket Save(int32_t slot, std::span<std::byte> state) override { return inner_->Save(slot, state); }
  Ticket Copy(int32_t from, int32_t to) override { return inner_->Copy(from, to); }
  void BindSampling(int32_t slot, std::shared_ptr<const SamplingParams> params, std::span<const int32_t> prior,
                    std::span<const int32_t> generated) override {
    inner_->BindSampling(slot, std::move(params), prior, generated);
  }
  absl::StatusOr<Ticket> Submit(std::span<const PlanItem> plan) override {
    if (failing_) return Fail();
    const int64_t left = fault_->steps_before.load();
    failing_ = left == 0;
    if (left > 0) fault_->steps_before.store(left - 1);
    if (const int64_t us = fault_->step_us.load(); us > 0) absl::SleepFor(absl::Microseconds(us));
    return inner_->Submit(plan);
  }
  absl::StatusOr<bool> Poll(Ticket ticket, bool wait, StepResult* result) override {
    return failing_ ? Fail() : inner_->Poll(ticket, wait, result);
  }

 private:
  absl::Status Fail() const {
    while (fault_->hangs) absl::SleepFor(absl::Milliseconds(1));
    if (fault_->throws) throw std::runtime_error(kWhy);
    return absl::InternalError(kWhy);
  }

  static constexpr char kWhy[] = "the device has fallen off the bus";
  const std::unique_ptr<Executor> inner_;
  const std::shared_ptr<DeviceFault> fault_;
  ExecutorInfo info_;
  bool failing_ = false;
};

}  // namespace smt
