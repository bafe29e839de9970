// The interface between the programs and libsmt_cuda.so, which they load at run time. Both are built from one source
// tree with one compiler, so it passes C++ objects; the version refuses a module of another build of it.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <memory>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/cpu/weight_source.h"
#include "model/cuda/cuda_slot_runner.h"
#include "model/slot_runner.h"

// Raised whenever the meaning of the interface changes.
#define SMT_CUDA_ABI_VERSION 4
#define SMT_CUDA_ENTRY "smt_cuda_entry"

namespace smt {

struct CudaModule {
  // Checks device `index` and returns its name. UNAVAILABLE: no driver, one too old, no device; INVALID_ARGUMENT: no
  // device of that index.
  absl::StatusOr<std::string> (*open)(int index);
  absl::StatusOr<std::unique_ptr<SlotRunner>> (*new_runner)(const StrideHybridConfig& config,
                                                            const WeightSource& source,
                                                            const CudaSlotRunnerOptions& options);
};

}  // namespace smt

// Null where the module has another version than `abi_version`.
extern "C" typedef const smt::CudaModule* (*SmtCudaEntry)(uint32_t abi_version);
