#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "model/base/status_macros.h"
#include "model/device.h"
#include "model/state_layout.h"
#include "server/engine/torch_executor.h"

namespace smt {
namespace {

// The slots of this model must fit into the machine's memory; the rest of the program needs some too.
absl::Status CheckMemory(int32_t slots, int64_t slot_bytes) {
  const int64_t memory = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  const int64_t fits = memory / 10 * 9 / slot_bytes;
  if (slots <= fits) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("slots is ", slots, ": at ", slot_bytes, " bytes each they need ",
                                                 slots * slot_bytes / 1000000, " MB and the machine has ",
                                                 memory / 1000000, " MB; allowed: 1 to ", fits));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Executor>> NewTorchExecutor(const RunnerOptions& options, std::string* note) {
  if (note != nullptr) note->clear();
  if (options.slots < 1) {
    return absl::InvalidArgumentError(absl::StrCat("slots is ", options.slots, "; allowed: >= 1"));
  }
  RunnerOptions resolved = options;
  if (resolved.dtype == "auto") resolved.dtype = "float32";
  if (resolved.dtype != "float32" && resolved.dtype != "bfloat16") {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype is \"", resolved.dtype, "\"; allowed: auto, float32, bfloat16"));
  }
  ASSIGN_OR_RETURN(const StrideHybridConfig config, StrideHybridConfig::Load(options.model_dir));
  RETURN_IF_ERROR(CheckMemory(options.slots, static_cast<int64_t>(StateLayout(config).bytes())));
  ASSIGN_OR_RETURN(const Device device, ResolveServingDevice(options.device));
  if (note != nullptr) *note = device.note;
  resolved.device = device.name;
  if (device.kernels) resolved.impl = RunnerOptions::Impl::kCudaKernels;
  ASSIGN_OR_RETURN(std::unique_ptr<SlotRunner> runner, NewSlotRunner(resolved));
  if (device.name == "cpu") {
    RETURN_IF_ERROR(CheckMemory(options.slots, runner->slot_bytes()));
  }
  return NewTorchExecutor(std::move(runner), device.description, resolved.dtype);
}

}  // namespace smt
