#include "server/engine/restore_pool.h"

#include <utility>

namespace smt {

RestorePool::RestorePool(int32_t threads, Inbox* inbox) : inbox_(inbox) {
  for (int32_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
}

RestorePool::~RestorePool() { Stop(); }

void RestorePool::Run(std::shared_ptr<RestoreJob> job) {
  PlainLock lock(mu_);
  jobs_.push_back(std::move(job));
  arrived_.NotifyOne();
}

void RestorePool::Stop() {
  std::deque<std::shared_ptr<RestoreJob>> forgotten;
  {
    PlainLock lock(mu_);
    stopping_ = true;
    forgotten.swap(jobs_);
    for (size_t i = 0; i < threads_.size(); ++i) arrived_.NotifyOne();
  }
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void RestorePool::Work() {
  while (true) {
    std::shared_ptr<RestoreJob> job;
    {
      PlainLock lock(mu_);
      while (jobs_.empty() && !stopping_) arrived_.Wait(mu_);
      if (stopping_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    if (job->abandoned.load(std::memory_order_relaxed)) continue;
    absl::StatusOr<RestoredState> restored = job->restore();
    inbox_->Push({.kind = Command::Kind::kRestored, .handle = job->handle, .restored = std::move(restored)});
    // What the function holds on to (a session's turn) goes here, off the engine thread.
    job->restore = nullptr;
  }
}

}  // namespace smt
