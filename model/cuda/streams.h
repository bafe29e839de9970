// Owners of streams, events and pinned memory. Failures throw (CheckCuda).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "model/cuda/kernels.h"

namespace smt::cuda {

class Stream {
 public:
  enum class Priority { kLow, kHigh };
  explicit Stream(Priority priority = Priority::kLow) {
    int least = 0, greatest = 0;
    CheckCuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for stream priorities");
    CheckCuda(
        cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, priority == Priority::kHigh ? greatest : least),
        "creating a stream");
  }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  enum class Kind { kOrder, kTime };  // without times an event costs less
  explicit Event(Kind kind = Kind::kOrder) {
    CheckCuda(cudaEventCreateWithFlags(&event_, kind == Kind::kOrder ? cudaEventDisableTiming : cudaEventDefault),
              "creating an event");
  }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void Record(const Stream& stream) { CheckCuda(cudaEventRecord(event_, stream.get()), "recording an event"); }
  // What `stream` is asked from now on comes after what was recorded.
  void HoldBack(const Stream& stream) const {
    CheckCuda(cudaStreamWaitEvent(stream.get(), event_), "waiting for an event");
  }
  bool Done() const {
    const cudaError_t error = cudaEventQuery(event_);
    if (error == cudaErrorNotReady) return false;
    CheckCuda(error, "running the model");
    return true;
  }
  void Wait() const { CheckCuda(cudaEventSynchronize(event_), "running the model"); }
  // Between two of kTime that are done.
  double SecondsSince(const Event& earlier) const {
    float milliseconds = 0;
    CheckCuda(cudaEventElapsedTime(&milliseconds, earlier.event_, event_), "measuring a step");
    return static_cast<double>(milliseconds) / 1000;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// Page-locked host memory, which the device reads and writes by itself.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  ~PinnedMemory() {
    if (data_ != nullptr) cudaFreeHost(data_);
  }
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  // At least `bytes`; what was there is lost where there were fewer, and must not be in use.
  void Reserve(size_t bytes) {
    if (bytes <= bytes_) return;
    if (data_ != nullptr) cudaFreeHost(data_);
    data_ = nullptr;
    bytes_ = 0;
    CheckCuda(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault), "allocating pinned memory");
    bytes_ = bytes;
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace smt::cuda
