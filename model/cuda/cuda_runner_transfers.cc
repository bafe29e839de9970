// Copies of states in the background: on the device into memory of their own, and from there to the host on a stream of
// their own.
#include <algorithm>
#include <cstring>

#include "model/cuda/cuda_runner.h"

namespace smt::cuda {

CudaSlotRunner::Transfer& CudaSlotRunner::FreeTransfer() {
  Transfer* chosen = nullptr;
  for (Transfer& transfer : transfers_) {
    if (transfer.number != 0) continue;
    chosen = &transfer;
    if (transfer.done.Done()) break;
  }
  if (chosen == nullptr) {  // the oldest is written down early, so that its room is free
    chosen = &*std::min_element(transfers_.begin(), transfers_.end(),
                                [](const Transfer& a, const Transfer& b) { return a.number < b.number; });
    FinishTransfer(*chosen);
  }
  chosen->done.Wait();
  chosen->host.Reserve(stride_);
  return *chosen;
}

int64_t CudaSlotRunner::QueueSave(int32_t index, std::span<std::byte> state) {
  Begin();
  Know({&index, 1});
  const Slot& slot = At(index);
  CheckBytes(state.size());
  AwaitWrites(slot.written);
  Transfer& transfer = FreeTransfer();
  if (transfer.device.bytes() == 0) transfer.device = DeviceMemory(stride_);
  CheckCuda(cudaMemcpyAsync(transfer.device.data(), StateOf(index), stride_, cudaMemcpyDeviceToDevice, stream_.get()),
            "saving a slot");
  transfer.copied.Record(stream_);
  transfer.copied.HoldBack(copy_stream_);
  CheckCuda(cudaMemcpyAsync(transfer.host.as<std::byte>(), transfer.device.data(), state.size(), cudaMemcpyDeviceToHost,
                            copy_stream_.get()),
            "saving a slot");
  transfer.done.Record(copy_stream_);
  window_busy_ = true;
  transfer.number = ++last_transfer_;
  transfer.position = slot.position;
  transfer.tokens = slot.tokens;
  transfer.to = state;
  return last_transfer_;
}

void CudaSlotRunner::FinishTransfer(Transfer& transfer) {
  transfer.done.Wait();
  std::memcpy(transfer.to.data(), transfer.host.as<std::byte>(), transfer.to.size());
  layout_.position(transfer.to) = transfer.position;
  const std::span<int32_t> tokens = layout_.tokens(transfer.to);
  std::fill(tokens.begin(), tokens.end(), 0);
  std::copy(transfer.tokens.begin(), transfer.tokens.end(), tokens.begin());
  transfer.number = 0;
}

bool CudaSlotRunner::TakeTransfer(int64_t number, bool wait) {
  for (Transfer& transfer : transfers_) {
    if (transfer.number != number) continue;
    Begin();
    if (!wait && !transfer.done.Done()) return false;
    FinishTransfer(transfer);
    return true;
  }
  return true;  // written down early
}

}  // namespace smt::cuda
