// HangWatch: whether a call of the executor has not come back. A device that hangs does not fail the call, so another
// thread has to find out.
//
// It counts its own ticks and reads no clock: a process that was stopped, or a machine that slept, has missed a tick
// and not the device.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "server/engine/executor.h"
#include "server/engine/mutex.h"

namespace smt {

class HangWatch {
 public:
  static constexpr int kTicks = 8;

  // The thread that calls, around each call. Leave does not return after Tick has said true.
  void Enter() { calls_.store(++entered_, std::memory_order_release); }
  void Leave();
  // After the last call.
  void End() ABSL_LOCKS_EXCLUDED(mu_);
  // The thread that watches, at equal intervals: true, once, when the other one has been in the same call for kTicks of
  // them. What that did before the call is seen then, and it does nothing any more.
  bool Tick();
  // Until End, or until Tick says true, then false: a call has taken `timeout`, or up to an eighth more.
  bool AwaitEnd(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mu_);
  // Any thread: for how many intervals the present call has been seen.
  int stalled() const { return stalled_.load(std::memory_order_relaxed); }

 private:
  static constexpr uint64_t kTakenOver = ~uint64_t{0};

  uint64_t entered_ = 0;            // of the thread that calls: odd in a call
  std::atomic<uint64_t> calls_{0};  // entered_, or kTakenOver
  uint64_t seen_ = 0;               // of the thread that watches
  std::atomic<int> stalled_{0};
  PlainMutex mu_;
  PlainCondition ended_changed_;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
};

// Another Executor, each call of it that may wait for the device between Enter and Leave.
class WatchedExecutor final : public Executor {
 public:
  // Both must outlive this.
  WatchedExecutor(Executor& inner, HangWatch& watch) : inner_(inner), watch_(watch) {}

  const ExecutorInfo& info() const override { return inner_.info(); }
  int64_t position(int32_t slot) const override { return inner_.position(slot); }
  void Reset(int32_t slot) override;
  Ticket Load(int32_t slot, std::span<const std::byte> state) override;
  Ticket Save(int32_t slot, std::span<std::byte> state) override;
  Ticket Copy(int32_t from, int32_t to) override;
  void BindSampling(int32_t slot, std::shared_ptr<const SamplingParams> params, std::span<const int32_t> prior,
                    std::span<const int32_t> generated) override {
    inner_.BindSampling(slot, std::move(params), prior, generated);
  }
  absl::StatusOr<Ticket> Submit(std::span<const PlanItem> plan) override;
  absl::StatusOr<bool> Poll(Ticket ticket, bool wait, StepResult* result) override;

 private:
  Executor& inner_;
  HangWatch& watch_;
};

}  // namespace smt
