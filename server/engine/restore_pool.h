// Threads that fetch the states of sessions that are not in a slot: what they run may block on the store.
#pragma once

#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "server/engine/inbox.h"
#include "server/engine/mutex.h"
#include "server/engine/request.h"

namespace smt {

class RestorePool {
 public:
  // Results go to `inbox` as kRestored.
  RestorePool(int32_t threads, Inbox* inbox);
  ~RestorePool();  // Stop

  void Run(std::shared_ptr<RestoreJob> job) ABSL_LOCKS_EXCLUDED(mu_);
  // Waits for the jobs that have begun and forgets the others.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Work() ABSL_LOCKS_EXCLUDED(mu_);

  Inbox* const inbox_;
  PlainMutex mu_;
  PlainCondition arrived_;
  std::deque<std::shared_ptr<RestoreJob>> jobs_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace smt
