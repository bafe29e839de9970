#include "tests/fuzz/fuzz_target.h"

namespace smt::fuzz {

#define SMT_FUZZ_TARGET_LIST(TARGET) \
  TARGET(record)                     \
  TARGET(session_header)             \
  TARGET(session_file)               \
  TARGET(request)                    \
  TARGET(snapshot)                   \
  TARGET(names)                      \
  TARGET(safetensors)                \
  TARGET(tokenizer_files)            \
  TARGET(tokenizer)                  \
  TARGET(model_config)               \
  TARGET(flags)                      \
  TARGET(wal)

#define SMT_FUZZ_DECLARE(name) extern const FuzzTarget name##_target;
SMT_FUZZ_TARGET_LIST(SMT_FUZZ_DECLARE)
#undef SMT_FUZZ_DECLARE

std::span<const FuzzTarget> FuzzTargets() {
#define SMT_FUZZ_ENTRY(name) name##_target,
  static const FuzzTarget targets[] = {SMT_FUZZ_TARGET_LIST(SMT_FUZZ_ENTRY)};
#undef SMT_FUZZ_ENTRY
  return targets;
}

}  // namespace smt::fuzz
