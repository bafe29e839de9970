// What a streaming reactor pulls its messages from. The source keeps what has not been sent yet; because the reactor
// asks only when the last write is done, whatever piles up meanwhile goes out as one message.
//
// Thread-safe. `Notify` is called without locks held whenever Take may have something new.
#pragma once

#include <functional>

#include "absl/status/status.h"

namespace smt {

enum class TakeResult {
  kMessage,  // filled in
  kNothing,  // not now; Notify will be called
  kEnd,      // everything was taken; see end_status()
};

template <typename Message>
class EventSource {
 public:
  virtual ~EventSource() = default;
  // Before anything else, once. Called at once if something is there already.
  virtual void SetNotify(std::function<void()> notify) = 0;
  virtual TakeResult Take(Message* message) = 0;
  virtual absl::Status end_status() const = 0;  // after kEnd
  virtual void OnWritten() {}                   // the message taken last has left
  virtual void OnDisconnect() = 0;              // the reader is gone; nothing will be taken any more
};

}  // namespace smt
