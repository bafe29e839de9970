// TorchExecutor: the Executor over model/'s SlotRunners, on the CPU (our kernels, or LibTorch's) or any LibTorch
// device. Draws on the host (model/sampling). Works in Submit: a ticket is done when it is handed out, max_in_flight
// is 1.
//
// Refuses what a caller got wrong (INVALID_ARGUMENT, nothing done): unknown or repeated slots, ids outside the
// vocabulary, sampling without bound parameters, ... A fault of the device or of the model makes it dead: INTERNAL then
// and ever after.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "model/runners.h"
#include "model/slot_runner.h"
#include "server/engine/executor.h"

namespace smt {

// Loads the model of `options` and makes its runner. `options.device` may be "auto" (cuda where the plugin and a device
// are found, else cpu) and `options.dtype` "auto" (float32). `note`, if not null, gets why "auto" fell back to the
// CPU, or stays empty. With `options.fewer_slots` as many of the slots as the device's memory holds, else they all.
// INVALID_ARGUMENT names the option, its value and what is allowed; RESOURCE_EXHAUSTED has the arithmetic of slots that
// do not fit; UNAVAILABLE says what is missing for a device that was asked for.
absl::StatusOr<std::unique_ptr<Executor>> NewTorchExecutor(const RunnerOptions& options, std::string* note = nullptr);

// Over a runner that exists already. `device` and `dtype` are reported in info().
std::unique_ptr<Executor> NewTorchExecutor(std::unique_ptr<SlotRunner> runner, std::string device, std::string dtype);

}  // namespace smt
