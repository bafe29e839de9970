// Ctrl-C (and SIGTERM) as a callback on a thread of its own, where any function may be called. The second one ends the
// process at once.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

namespace smt::cli {

class Interrupt {
 public:
  // Blocks both signals in the calling thread and those it starts later. Comes before anything that starts threads: the
  // signals go to any thread that does not block them, and end the process.
  static void Block();
  // Calls `on_first` at the first signal. Needs Block.
  explicit Interrupt(std::function<void()> on_first);
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  bool happened() const { return happened_; }

 private:
  std::function<void()> on_first_;
  std::atomic<bool> happened_{false}, stopping_{false};
  std::thread thread_;
};

}  // namespace smt::cli
