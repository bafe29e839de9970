#include "model/cuda/pinned_uploads.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "model/cuda/kernels.h"

namespace smt::cuda {
namespace {

constexpr size_t kAlignment = 16;

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

PinnedUploads::Event::Event() {
  CheckCuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "creating an event");
}

PinnedUploads::Event::~Event() { cudaEventDestroy(event_); }

void PinnedUploads::FreePinned::operator()(std::byte* memory) const { cudaFreeHost(memory); }

PinnedUploads::PinnedUploads(cudaStream_t stream, size_t bytes) : stream_(stream) { Allocate(bytes / kParts); }

PinnedUploads::~PinnedUploads() { cudaStreamSynchronize(stream_); }

void PinnedUploads::Allocate(size_t part_bytes) {
  memory_.reset();
  part_bytes_ = std::max(Aligned(part_bytes), kAlignment);
  void* memory = nullptr;
  CheckCuda(cudaMallocHost(&memory, kParts * part_bytes_), "allocating pinned memory");
  memory_.reset(static_cast<std::byte*>(memory));
  part_ = used_ = 0;
}

void PinnedUploads::NextPart() {
  CheckCuda(cudaEventRecord(left_[part_].get(), stream_), "marking uploads");
  part_ = (part_ + 1) % kParts;
  used_ = 0;
  CheckCuda(cudaEventSynchronize(left_[part_].get()), "waiting for uploads");  // at once where never recorded
}

void* PinnedUploads::Reserve(size_t bytes) {
  bytes = Aligned(bytes);
  if (bytes > part_bytes_) {
    CheckCuda(cudaStreamSynchronize(stream_), "waiting for uploads");
    Allocate(std::max(bytes, 2 * part_bytes_));
  }
  if (used_ + bytes > part_bytes_) NextPart();
  reserved_ = memory_.get() + part_ * part_bytes_ + used_;
  used_ += bytes;
  return reserved_;
}

void PinnedUploads::Upload(void* to, size_t bytes) {
  if (bytes == 0) return;
  CheckCuda(cudaMemcpyAsync(to, reserved_, bytes, cudaMemcpyHostToDevice, stream_), "uploading");
}

void PinnedUploads::Copy(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  if (bytes <= kMostStoredBytes && reinterpret_cast<uintptr_t>(to) % kAlignment == 0) {
    return StoreBytes(to, from, bytes, stream_);
  }
  std::memcpy(Reserve(bytes), from, bytes);
  Upload(to, bytes);
}

}  // namespace smt::cuda
