// How many sessions a device's memory holds, and how many of them a runner makes room for.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"

namespace smt {

struct SlotCapacity {
  int64_t total_bytes = 0;  // of the device
  int64_t free_bytes = 0;   // of these, what slots and work area may take: the weights are there already
  int64_t work_bytes = 0;   // of the work area, which does not grow with the slots
  int64_t slot_bytes = 0;   // of one slot, derived state included; 0: not known

  bool known() const { return slot_bytes > 0; }
  int64_t fits() const;  // slots
};

// The machine's memory, of which the rest of the program needs some too.
SlotCapacity MachineCapacity(int64_t slot_bytes);

// `slots`, or with `fewer` as many of them as fit. RESOURCE_EXHAUSTED has the arithmetic of what does not fit.
absl::StatusOr<int32_t> SlotsThatFit(const SlotCapacity& capacity, int32_t slots, bool fewer);

}  // namespace smt
