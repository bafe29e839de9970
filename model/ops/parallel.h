// A small thread pool for jobs of microseconds that shares the machine with gRPC's threads.
//
// Workers sleep unless a Region is open; within one they spin for work (yielding now and then), so a job costs well
// under a microsecond to hand out. Pieces are claimed one at a time and the caller takes part, so a worker that the
// system has taken off its core delays nobody but the piece it holds.
//
// One thread at a time opens regions and calls For. Which thread runs a piece never changes a result.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace smt::ops {

class ThreadPool {
 public:
  // `threads` counts the caller: 1 runs everything inline; 0 takes one a hardware thread, 16 at most.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Keeps the workers awake while it lives. For works without one too: on the caller alone.
  class Region {
   public:
    explicit Region(ThreadPool& pool);
    ~Region();
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;

   private:
    ThreadPool& pool_;
  };

  // body(i) for each i in [0, count), in any order; returns when all are done. `body` must not throw.
  template <typename Body>
  void For(int64_t count, const Body& body) {
    if (count <= 1 || workers_.empty() || !open_) {
      for (int64_t i = 0; i < count; ++i) body(i);
      return;
    }
    Run(
        count, [](const void* context, int64_t i) { (*static_cast<const Body*>(context))(i); }, &body);
  }

 private:
  using Piece = void (*)(const void* context, int64_t i);

  void Run(int64_t count, Piece piece, const void* context);
  // Claims and runs pieces of job `epoch` until none is left.
  void Help(uint32_t epoch);
  void WorkerLoop();

  std::vector<std::thread> workers_;
  bool open_ = false;  // caller's

  // The job. Its fields change only while no piece of it is left, so a claim that succeeds has read the right ones; a
  // worker that reads them while they are replaced fails to claim, because `claim_` has changed meanwhile.
  std::atomic<Piece> piece_{nullptr};
  std::atomic<const void*> context_{nullptr};
  alignas(64) std::atomic<uint64_t> claim_{0};  // epoch << 32 | pieces not yet claimed
  alignas(64) std::atomic<uint32_t> done_{0};   // pieces of the present job
  alignas(64) std::atomic<uint32_t> awake_{0};  // odd: a region is open; what sleeping workers wait on
  std::atomic<bool> stop_{false};
};

}  // namespace smt::ops
