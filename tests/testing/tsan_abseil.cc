// What ThreadSanitizer cannot see in the distribution's Abseil, which is not instrumented: that its locks order what is
// done under them. Linked into the tests of the preset tsan, these definitions stand before the library's, call those
// and tell ThreadSanitizer. They are in the way of gRPC's calls, too. Conditions are looked at by whichever thread lets
// go of the lock; what they read is left out, since no lock that ThreadSanitizer knows of is held then.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

// In the sanitizer's library, declared in none of its headers.
extern "C" void AnnotateIgnoreReadsBegin(const char* file, int line);
extern "C" void AnnotateIgnoreReadsEnd(const char* file, int line);

namespace {

#define SMT_STRING_OF(x) #x
#define SMT_STRING(x) SMT_STRING_OF(x)

// The library's function: `name` is the end of its mangled name, behind absl:: and its inline namespace.
template <typename Function>
Function* Next(const char* name, bool is_const = false) {
  const std::string space = SMT_STRING(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  const std::string symbol = (is_const ? "_ZNK4absl" : "_ZN4absl") + std::to_string(space.size()) + space + name;
  void* const found = dlsym(RTLD_NEXT, symbol.c_str());
  if (found == nullptr) {
    std::fprintf(stderr, "tsan_abseil.cc: Abseil has no %s\n", symbol.c_str());
    std::abort();
  }
  return reinterpret_cast<Function*>(found);
}

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

// A lock is taken: what was done under it before has happened.
#define SMT_TAKES(result, signature, mangled, arguments, ...)              \
  result Mutex::signature {                                                \
    static auto* const next = Next<result(__VA_ARGS__)>("5Mutex" mangled); \
    struct After {                                                         \
      Mutex* mutex;                                                        \
      ~After() { __tsan_acquire(mutex); }                                  \
    } const after{this};                                                   \
    return next arguments;                                                 \
  }
// It is let go of, and perhaps taken again.
#define SMT_GIVES(result, signature, mangled, arguments, ...)              \
  result Mutex::signature {                                                \
    static auto* const next = Next<result(__VA_ARGS__)>("5Mutex" mangled); \
    __tsan_release(this);                                                  \
    return next arguments;                                                 \
  }
#define SMT_WAITS(result, signature, mangled, arguments, ...)              \
  result Mutex::signature {                                                \
    static auto* const next = Next<result(__VA_ARGS__)>("5Mutex" mangled); \
    struct Around {                                                        \
      Mutex* mutex;                                                        \
      explicit Around(Mutex* m) : mutex(m) { __tsan_release(m); }          \
      ~Around() { __tsan_acquire(mutex); }                                 \
    } const around(this);                                                  \
    return next arguments;                                                 \
  }

SMT_TAKES(void, Lock(), "4LockEv", (this), Mutex*)
SMT_TAKES(bool, TryLock(), "7TryLockEv", (this), Mutex*)
SMT_TAKES(void, ReaderLock(), "10ReaderLockEv", (this), Mutex*)
SMT_TAKES(bool, ReaderTryLock(), "13ReaderTryLockEv", (this), Mutex*)
SMT_GIVES(void, Unlock(), "6UnlockEv", (this), Mutex*)
SMT_GIVES(void, ReaderUnlock(), "12ReaderUnlockEv", (this), Mutex*)
SMT_TAKES(void, LockWhen(const Condition& c), "8LockWhenERKNS0_9ConditionE", (this, c), Mutex*, const Condition&)
SMT_TAKES(void, ReaderLockWhen(const Condition& c), "14ReaderLockWhenERKNS0_9ConditionE", (this, c), Mutex*,
          const Condition&)
SMT_TAKES(bool, LockWhenWithTimeout(const Condition& c, Duration d),
          "19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE", (this, c, d), Mutex*, const Condition&, Duration)
SMT_TAKES(bool, LockWhenWithDeadline(const Condition& c, Time t), "20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE",
          (this, c, t), Mutex*, const Condition&, Time)
SMT_TAKES(bool, ReaderLockWhenWithTimeout(const Condition& c, Duration d),
          "25ReaderLockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE", (this, c, d), Mutex*, const Condition&,
          Duration)
SMT_TAKES(bool, ReaderLockWhenWithDeadline(const Condition& c, Time t),
          "26ReaderLockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE", (this, c, t), Mutex*, const Condition&, Time)
SMT_WAITS(void, Await(const Condition& c), "5AwaitERKNS0_9ConditionE", (this, c), Mutex*, const Condition&)
SMT_WAITS(bool, AwaitWithTimeout(const Condition& c, Duration d), "16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE",
          (this, c, d), Mutex*, const Condition&, Duration)
SMT_WAITS(bool, AwaitWithDeadline(const Condition& c, Time t), "17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE",
          (this, c, t), Mutex*, const Condition&, Time)

bool Condition::Eval() const {
  static auto* const next = Next<bool(const Condition*)>("9Condition4EvalEv", true);
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  const bool holds = next(this);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  return holds;
}

void CondVar::Wait(Mutex* mutex) {
  static auto* const next = Next<void(CondVar*, Mutex*)>("7CondVar4WaitEPNS0_5MutexE");
  __tsan_release(mutex);
  next(this, mutex);
  __tsan_acquire(mutex);
}
bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  static auto* const next =
      Next<bool(CondVar*, Mutex*, Duration)>("7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  __tsan_release(mutex);
  const bool late = next(this, mutex, timeout);
  __tsan_acquire(mutex);
  return late;
}
bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static auto* const next = Next<bool(CondVar*, Mutex*, Time)>("7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  __tsan_release(mutex);
  const bool late = next(this, mutex, deadline);
  __tsan_acquire(mutex);
  return late;
}

bool BlockingCounter::DecrementCount() {
  static auto* const next = Next<bool(BlockingCounter*)>("15BlockingCounter14DecrementCountEv");
  __tsan_release(this);
  return next(this);
}
void BlockingCounter::Wait() {
  static auto* const next = Next<void(BlockingCounter*)>("15BlockingCounter4WaitEv");
  next(this);
  __tsan_acquire(this);
}
void Notification::Notify() {
  static auto* const next = Next<void(Notification*)>("12Notification6NotifyEv");
  __tsan_release(this);
  next(this);
}
void Notification::WaitForNotification() const {
  static auto* const next = Next<void(const Notification*)>("12Notification19WaitForNotificationEv", true);
  next(this);
  __tsan_acquire(const_cast<Notification*>(this));
}
bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  static auto* const next =
      Next<bool(const Notification*, Duration)>("12Notification30WaitForNotificationWithTimeoutENS0_8DurationE", true);
  const bool notified = next(this, timeout);
  __tsan_acquire(const_cast<Notification*>(this));
  return notified;
}

ABSL_NAMESPACE_END
}  // namespace absl
