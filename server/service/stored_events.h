// An event source over a fixed list: a stored outcome being replayed.
#pragma once

#include <deque>
#include <functional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/service/event_source.h"

namespace smt {

template <typename Message>
class StoredEvents final : public EventSource<Message> {
 public:
  explicit StoredEvents(std::deque<Message> events) : events_(std::move(events)) {}

  void SetNotify(std::function<void()> notify) override { notify(); }
  TakeResult Take(Message* message) override {
    absl::MutexLock lock(&mu_);
    if (events_.empty()) return TakeResult::kEnd;
    *message = std::move(events_.front());
    events_.pop_front();
    return TakeResult::kMessage;
  }
  absl::Status end_status() const override { return absl::OkStatus(); }
  void OnDisconnect() override {}

 private:
  absl::Mutex mu_;
  std::deque<Message> events_ ABSL_GUARDED_BY(mu_);
};

}  // namespace smt
