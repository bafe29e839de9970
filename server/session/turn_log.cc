#include "server/session/turn_log.h"

#include <algorithm>
#include <utility>

namespace smt {
namespace {

SessionWrite WithoutContent(const SessionWrite& open) {
  SessionWrite log;
  log.key = open.key;
  log.lease = open.lease;
  log.branch = open.branch;
  log.log_begin = open.log_begin;
  return log;
}

}  // namespace

TurnLog::TurnLog(SessionWrite open, int64_t durable, bool sync)
    : log_(WithoutContent(open)),
      sync_(sync),
      open_(std::move(open)),
      ids_(std::exchange(open_->ids, {})),
      end_(*open_->position + static_cast<int64_t>(ids_.size())),
      given_(end_),
      durable_(durable) {}

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
  absl::MutexLock lock(&mu_);
  SessionWrite write = open_ ? *std::exchange(open_, std::nullopt) : log_;
  queued_ = false;
  given_ = end_;
  write.position = end_ - static_cast<int64_t>(ids_.size());
  write.ids = std::exchange(ids_, {});
  return write;
}

bool TurnLog::begun() const {
  absl::MutexLock lock(&mu_);
  return begun_;
}

absl::Status TurnLog::AwaitBegun() {
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(this, &TurnLog::settled));
  return begun_ ? absl::OkStatus() : status_;
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

bool TurnLog::Settle(const absl::Status& status, std::optional<int64_t> durable) {
  absl::MutexLock lock(&mu_);
  begun_ = status.ok();
  if (durable) durable_ = std::max(durable_, *durable);
  if (status_.ok()) status_ = status;
  settled_.store(true, std::memory_order_release);
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
