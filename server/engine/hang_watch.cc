#include "server/engine/hang_watch.h"

#include <unistd.h>

#include "absl/time/clock.h"

namespace smt {

void HangWatch::Leave() {
  uint64_t expected = entered_++;
  if (calls_.compare_exchange_strong(expected, entered_, std::memory_order_acq_rel)) return;
  // What this thread worked on is another's. It cannot end either: that would take its stack apart, which may be in
  // use.
  while (true) pause();
}

bool HangWatch::Tick() {
  uint64_t now = calls_.load(std::memory_order_acquire);
  if (now == kTakenOver) return false;
  if (now != seen_ || now % 2 == 0) {
    seen_ = now;
    stalled_.store(0, std::memory_order_relaxed);
    return false;
  }
  if (stalled_.fetch_add(1, std::memory_order_relaxed) + 1 < kTicks) return false;
  return calls_.compare_exchange_strong(now, kTakenOver, std::memory_order_acq_rel);
}

void HangWatch::End() {
  PlainLock lock(mu_);
  ended_ = true;
  ended_changed_.NotifyAll();
}

bool HangWatch::AwaitEnd(absl::Duration timeout) {
  while (!Tick()) {
    const absl::Time next = absl::Now() + timeout / kTicks;
    PlainLock lock(mu_);
    while (!ended_ && absl::Now() < next) ended_changed_.WaitUntil(mu_, next);
    if (ended_) return true;
  }
  return false;
}

namespace {

class Call {
 public:
  explicit Call(HangWatch& watch) : watch_(watch) { watch_.Enter(); }
  ~Call() { watch_.Leave(); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

 private:
  HangWatch& watch_;
};

}  // namespace

void WatchedExecutor::Reset(int32_t slot) {
  const Call call(watch_);
  inner_.Reset(slot);
}

Ticket WatchedExecutor::Load(int32_t slot, std::span<const std::byte> state) {
  const Call call(watch_);
  return inner_.Load(slot, state);
}

Ticket WatchedExecutor::Save(int32_t slot, std::span<std::byte> state) {
  const Call call(watch_);
  return inner_.Save(slot, state);
}

Ticket WatchedExecutor::Copy(int32_t from, int32_t to) {
  const Call call(watch_);
  return inner_.Copy(from, to);
}

absl::StatusOr<Ticket> WatchedExecutor::Submit(std::span<const PlanItem> plan) {
  const Call call(watch_);
  return inner_.Submit(plan);
}

absl::StatusOr<bool> WatchedExecutor::Poll(Ticket ticket, bool wait, StepResult* result) {
  const Call call(watch_);
  return inner_.Poll(ticket, wait, result);
}

}  // namespace smt
