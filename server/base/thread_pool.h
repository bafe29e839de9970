// A fixed number of threads that run what they are given, first come first served. For work that blocks: store I/O,
// tokenising. Thread-safe.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace smt {

class ThreadPool {
 public:
  // `name`: of the threads, at most 15 bytes. At most `max_queue` tasks wait.
  ThreadPool(std::string name, int threads, size_t max_queue);
  ~ThreadPool();  // Shutdown
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // False, and `task` is dropped, when the queue is full or the pool is shutting down.
  [[nodiscard]] bool TrySchedule(std::function<void()> task) ABSL_LOCKS_EXCLUDED(mu_);

  // Runs everything scheduled so far and ends the threads. Must not be called from a task.
  void Shutdown() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Work();

  const size_t max_queue_;
  absl::Mutex mu_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace smt
