// A matrix of working memory that grows and never shrinks, its rows padded so that they do not share cache sets.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace smt {

class Scratch {
 public:
  // Room for [rows, columns]; contents are lost when it grows.
  float* Resize(int64_t rows, int64_t columns) {
    stride_ = (columns + 15) / 16 * 16 + 16;
    const int64_t size = rows * stride_;
    if (size > capacity_) {
      data_.reset(static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(size) * sizeof(float))));
      if (data_ == nullptr) throw std::bad_alloc();
      capacity_ = size;
    }
    return data_.get();
  }
  int64_t stride() const { return stride_; }  // floats from one row to the next
  float* row(int64_t i) { return data_.get() + i * stride_; }
  float* data() { return data_.get(); }

 private:
  int64_t stride_ = 0, capacity_ = 0;
  std::unique_ptr<float, decltype(&std::free)> data_{nullptr, &std::free};
};

}  // namespace smt
