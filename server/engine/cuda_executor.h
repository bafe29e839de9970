// CudaExecutor: the Executor over a runner whose steps run in the background, which is libsmt_cuda.so's. Two steps may
// be in flight: the second appends ids that the first one draws, on the device, before anybody here knows them.
//
// All draws are made on the device, with bias, penalties and log-probabilities; they are those of the host's sampler on
// equal logits.
//
// Refuses what TorchExecutor refuses, and dies as it does.
#pragma once

#include <memory>
#include <string>

#include "model/slot_runner.h"
#include "server/engine/executor.h"

namespace smt {

// `runner->async()` is not null. `device` and `dtype` are reported in info().
std::unique_ptr<Executor> NewCudaExecutor(std::unique_ptr<SlotRunner> runner, std::string device, std::string dtype);

}  // namespace smt
