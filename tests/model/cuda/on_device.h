// What tests of single kernels have in common: values in device memory, and a fixture that skips where there is no GPU.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <vector>

#include "model/cuda/kernels.h"

namespace smt::cuda {

// Device memory with values of its own.
template <typename T>
class OnDevice {
 public:
  explicit OnDevice(std::span<const T> values) : size_(values.size()) {
    CheckCuda(cudaMalloc(&data_, std::max<size_t>(values.size_bytes(), 1)), "allocating");
    Put(values);
  }
  explicit OnDevice(const std::vector<T>& values) : OnDevice(std::span<const T>(values)) {}
  ~OnDevice() { cudaFree(data_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  T* get() const { return static_cast<T*>(data_); }
  // From the first on, at most as many as it was made of. Streams of all kinds find them there.
  void Put(std::span<const T> values) const {
    CheckCuda(cudaMemcpy(data_, values.data(), values.size_bytes(), cudaMemcpyHostToDevice), "uploading");
    CheckCuda(cudaDeviceSynchronize(), "uploading");
  }
  std::vector<T> Fetch() const { return Fetch(size_); }
  std::vector<T> Fetch(size_t count) const {
    CheckCuda(cudaDeviceSynchronize(), "running");
    std::vector<T> values(count);
    CheckCuda(cudaMemcpy(values.data(), data_, count * sizeof(T), cudaMemcpyDeviceToHost), "fetching");
    return values;
  }

 private:
  void* data_ = nullptr;
  size_t size_;
};

// Of test suites below; also of those with parameters.
template <typename Base>
class OnGpu : public Base {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no GPU";
  }
};

}  // namespace smt::cuda
