#include "server/session/turn_log.h"

#include <algorithm>
#include <utility>

namespace smt {

TurnLog::TurnLog(SessionWrite log, int64_t end, int64_t durable, bool sync)
    : log_(std::move(log)), sync_(sync), end_(end), given_(end), durable_(durable) {}

int64_t TurnLog::end() const {
  absl::MutexLock lock(&mu_);
  return given_;
}

SessionWrite TurnLog::TakeRest() {
  SessionWrite write = log_;
  absl::MutexLock lock(&mu_);
  given_ = end_;
  write.position = end_;
  if (queued_) return write;
  *write.position -= static_cast<int64_t>(ids_.size());
  write.ids = std::exchange(ids_, {});
  return write;
}

SessionWrite TurnLog::TakeQueued() {
  SessionWrite write = log_;
  absl::MutexLock lock(&mu_);
  queued_ = false;
  given_ = end_;
  write.position = end_ - static_cast<int64_t>(ids_.size());
  write.ids = std::exchange(ids_, {});
  return write;
}

int64_t TurnLog::durable() const {
  absl::MutexLock lock(&mu_);
  return durable_;
}

absl::Status TurnLog::status() const {
  absl::MutexLock lock(&mu_);
  return status_;
}

bool TurnLog::asked_to_end() const {
  absl::MutexLock lock(&mu_);
  return asked_to_end_;
}

bool TurnLog::asked_to_cancel() const {
  absl::MutexLock lock(&mu_);
  return asked_to_cancel_;
}

void TurnLog::Watch(std::function<void()> changed) {
  absl::MutexLock lock(&mu_);
  changed_ = std::move(changed);
}

bool TurnLog::Durable(int64_t position) {
  absl::MutexLock lock(&mu_);
  durable_ = std::max(durable_, position);
  return MustTell();
}

bool TurnLog::Fail(const absl::Status& status) {
  absl::MutexLock lock(&mu_);
  if (status_.ok()) status_ = status;
  return MustTell();
}

bool TurnLog::AskToEnd(Handover handover) {
  absl::MutexLock lock(&mu_);
  (handover == Handover::kCancel ? asked_to_cancel_ : asked_to_end_) = true;
  return MustTell();
}

bool TurnLog::MustTell() {
  if (changed_ == nullptr || telling_) return false;
  telling_ = true;
  return true;
}

void TurnLog::Tell() {
  std::function<void()> changed;
  {
    absl::MutexLock lock(&mu_);
    telling_ = false;
    changed = changed_;
  }
  if (changed) changed();
}

}  // namespace smt
