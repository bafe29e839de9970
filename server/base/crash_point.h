// Places at which tests end the process, as SIGKILL or a loss of power there would. The places are listed in
// docs/testing.md. Where no test has set a hook, and no program that is shipped does, one costs a load and a branch.
#pragma once

#include <atomic>

namespace smt {

using CrashHook = void (*)(const char* place);
inline std::atomic<CrashHook> crash_hook = nullptr;  // set before the server starts; any thread calls it

inline void CrashPoint(const char* place) {
  if (const CrashHook hook = crash_hook.load(std::memory_order_relaxed)) hook(place);
}

}  // namespace smt
