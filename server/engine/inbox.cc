#include "server/engine/inbox.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status_details.h"

namespace smt {

absl::StatusOr<RequestHandle> Inbox::Submit(std::unique_ptr<Request> request) {
  PlainLock lock(mu_);
  if (!closed_.ok()) return closed_;
  if (waiting() >= max_queue_) {
    return WithDetails(absl::UnavailableError(absl::StrCat("the engine's queue is full (", max_queue_, " requests)")),
                       {.reason = "QUEUE_FULL", .retry_delay = absl::Seconds(1)});
  }
  const std::string& key = request->spec.session_key;
  if (!key.empty() && !keys_.insert(key).second) {
    return absl::FailedPreconditionError(absl::StrCat("session key '", key, "' has a request in the engine already"));
  }
  waiting_.fetch_add(1, std::memory_order_relaxed);
  const RequestHandle handle = ++last_handle_;
  request->handle = handle;
  Add({.kind = Command::Kind::kSubmit, .handle = handle, .request = std::move(request)});
  return handle;
}

void Inbox::Push(Command command) {
  PlainLock lock(mu_);
  Add(std::move(command));
}

bool Inbox::PushUnlessClosed(Command* command) {
  PlainLock lock(mu_);
  if (!closed_.ok()) return false;
  Add(std::move(*command));
  return true;
}

void Inbox::Add(Command command) {
  // Any number of wake-ups is one.
  if (command.kind == Command::Kind::kWake && !commands_.empty()) return;
  commands_.push_back(std::move(command));
  filled_.store(true, std::memory_order_release);
  if (sleeping_) arrived_.NotifyOne();
}

void Inbox::Close(absl::Status why) {
  PlainLock lock(mu_);
  if (closed_.ok()) closed_ = std::move(why);
}

absl::Status Inbox::closed() const {
  PlainLock lock(mu_);
  return closed_;
}

void Inbox::TakeAll(std::vector<Command>* commands) {
  commands->clear();
  if (!filled_.load(std::memory_order_acquire)) return;
  PlainLock lock(mu_);
  commands->swap(commands_);
  filled_.store(false, std::memory_order_relaxed);
}

void Inbox::Wait(absl::Time deadline) {
  PlainLock lock(mu_);
  sleeping_ = true;
  while (commands_.empty() && (deadline == absl::InfiniteFuture() || absl::Now() < deadline)) {
    arrived_.WaitUntil(mu_, deadline);
  }
  sleeping_ = false;
}

void Inbox::ReleaseKey(const std::string& key) {
  PlainLock lock(mu_);
  keys_.erase(key);
}

}  // namespace smt
