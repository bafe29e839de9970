#include "client/cli/interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <utility>

namespace smt::cli {

namespace {

sigset_t Signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

}  // namespace

void Interrupt::Block() {
  const sigset_t set = Signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

Interrupt::Interrupt(std::function<void()> on_first) : on_first_(std::move(on_first)) {
  thread_ = std::thread([this, set = Signals()] {
    const timespec tick{0, 50'000'000};
    while (!stopping_) {
      if (sigtimedwait(&set, nullptr, &tick) < 0) continue;
      if (happened_.exchange(true)) _exit(130);
      on_first_();
    }
  });
}

Interrupt::~Interrupt() {
  stopping_ = true;
  thread_.join();
}

}  // namespace smt::cli
