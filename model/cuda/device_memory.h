// Owners of device memory. Sizes are checked by the CUDA runtime; failures throw (CheckCuda).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <utility>

#include "model/cuda/kernels.h"

namespace smt::cuda {

// Zeroed device memory, freed with the object.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    CheckCuda(cudaMalloc(&data_, bytes), "allocating device memory");
    CheckCuda(cudaMemset(data_, 0, bytes), "clearing device memory");
    // Which other streams do not wait for.
    CheckCuda(cudaStreamSynchronize(cudaStreamLegacy), "clearing device memory");
  }
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceMemory() {
    if (data_ != nullptr) cudaFree(data_);
  }

  size_t bytes() const { return bytes_; }
  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace smt::cuda
