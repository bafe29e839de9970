#include "model/ops/parallel.h"

#include <algorithm>

namespace smt::ops {
namespace {

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Pauses before the thread offers its core to others.
constexpr int kSpinsBeforeYield = 256;

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads == 0) threads = std::min(16, static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { WorkerLoop(); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  awake_.fetch_add(2);
  awake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

ThreadPool::Region::Region(ThreadPool& pool) : pool_(pool) {
  pool_.open_ = true;
  if (pool_.workers_.empty()) return;
  pool_.awake_.fetch_add(1);
  pool_.awake_.notify_all();
}

ThreadPool::Region::~Region() {
  pool_.open_ = false;
  if (!pool_.workers_.empty()) pool_.awake_.fetch_add(1);
}

void ThreadPool::Run(int64_t count, Piece piece, const void* context) {
  const uint32_t epoch = static_cast<uint32_t>(claim_.load(std::memory_order_relaxed) >> 32) + 1;
  piece_.store(piece, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  claim_.store(static_cast<uint64_t>(epoch) << 32 | static_cast<uint32_t>(count), std::memory_order_release);
  Help(epoch);
  for (int spins = 0; done_.load(std::memory_order_acquire) != static_cast<uint32_t>(count); ++spins) {
    if (spins < kSpinsBeforeYield) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::Help(uint32_t epoch) {
  uint64_t claim = claim_.load(std::memory_order_acquire);
  while (static_cast<uint32_t>(claim >> 32) == epoch) {
    const Piece piece = piece_.load(std::memory_order_relaxed);
    const void* context = context_.load(std::memory_order_relaxed);
    const uint32_t left = static_cast<uint32_t>(claim);
    if (left == 0) return;
    if (!claim_.compare_exchange_weak(claim, claim - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    piece(context, left - 1);
    done_.fetch_add(1, std::memory_order_acq_rel);
    claim = claim_.load(std::memory_order_acquire);
  }
}

void ThreadPool::WorkerLoop() {
  uint32_t seen = 0;  // epoch of the last job helped with
  while (true) {
    const uint32_t awake = awake_.load();
    if (stop_.load()) return;
    if (awake % 2 == 0) {
      awake_.wait(awake);
      continue;
    }
    for (int spins = 0; awake_.load(std::memory_order_relaxed) == awake; ++spins) {
      const uint32_t epoch = static_cast<uint32_t>(claim_.load(std::memory_order_acquire) >> 32);
      if (epoch != seen) {
        Help(epoch);
        seen = epoch;
        spins = 0;
      } else if (spins < kSpinsBeforeYield) {
        Pause();
      } else {
        std::this_thread::yield();
      }
    }
  }
}

}  // namespace smt::ops
