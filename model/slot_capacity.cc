#include "model/slot_capacity.h"

#include <unistd.h>

#include <algorithm>

#include "model/base/strings.h"

namespace smt {
namespace {

int64_t Megabytes(int64_t bytes) { return bytes / 1'000'000; }

}  // namespace

int64_t SlotCapacity::fits() const { return known() ? std::max<int64_t>(free_bytes - work_bytes, 0) / slot_bytes : 0; }

SlotCapacity MachineCapacity(int64_t slot_bytes) {
  const int64_t memory = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
  return {.total_bytes = memory, .free_bytes = memory / 10 * 9, .work_bytes = 0, .slot_bytes = slot_bytes};
}

absl::StatusOr<int32_t> SlotsThatFit(const SlotCapacity& capacity, int32_t slots, bool fewer) {
  const int64_t fits = capacity.fits();
  if (slots <= fits) return slots;
  if (fewer && fits > 0) return static_cast<int32_t>(fits);
  return absl::ResourceExhaustedError(
      StrCat("slots is ", slots, ": at ", capacity.slot_bytes, " bytes each they need ",
             Megabytes(slots * capacity.slot_bytes), " MB; the device offers ", Megabytes(capacity.free_bytes),
             " MB of its ", Megabytes(capacity.total_bytes), " MB, ", Megabytes(capacity.work_bytes),
             " MB of them for the work area; ", fits > 0 ? StrCat("allowed: 1 to ", fits) : "not one slot fits"));
}

}  // namespace smt
