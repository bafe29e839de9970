// One target of fuzz_target.h, SMT_FUZZ_TARGET, for libFuzzer.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const smt::fuzz::FuzzTarget* const target = [] {
    for (const auto& candidate : smt::fuzz::FuzzTargets()) {
      if (candidate.name == SMT_FUZZ_TARGET) return &candidate;
    }
    std::abort();
  }();
  target->run({reinterpret_cast<const char*>(data), size});
  return 0;
}
