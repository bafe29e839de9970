// Memory that session files hold on their way in and out, all of them together.
#pragma once

#include <atomic>
#include <cstdint>

namespace smt {

// Thread-safe.
class TransferBudget {
 public:
  // One file's part; given back at the end. One thread at a time.
  class Hold {
   public:
    Hold(TransferBudget* budget, int64_t limit) : budget_(*budget), limit_(limit) {}
    ~Hold() { budget_.held_ -= bytes_; }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

    // False, taking nothing, when that would pass the limit. A file that is alone may pass it.
    [[nodiscard]] bool Take(int64_t bytes) {
      int64_t held = budget_.held_.load();
      do {
        if (held + bytes > limit_ && held > bytes_) return false;
      } while (!budget_.held_.compare_exchange_weak(held, held + bytes));
      bytes_ += bytes;
      return true;
    }
    int64_t bytes() const { return bytes_; }

   private:
    TransferBudget& budget_;
    const int64_t limit_;
    int64_t bytes_ = 0;
  };

  int64_t held() const { return held_.load(); }

 private:
  std::atomic<int64_t> held_{0};
};

}  // namespace smt
