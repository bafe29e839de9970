// Where in a ring of memory jobs lie (WeightRing, grid.cuh): each in one piece, of any size, used in the order in which
// they came. Plain arithmetic, so that a test on the host can go through it.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SMT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SMT_HOST_DEVICE inline
#endif

namespace smt::cuda {

class RingPlaces {
 public:
  // size: bytes, at least those of the largest job.
  explicit SMT_HOST_DEVICE RingPlaces(uint32_t size) : size_(size) {}

  SMT_HOST_DEVICE int issued() const { return issued_; }
  SMT_HOST_DEVICE int used() const { return used_; }

  // Where the next job's bytes go, or -1: the jobs that are not used yet lie there. cursor_ is the end of the last one
  // that was used, or 0 where the ring was empty and the next did not fit behind it: it must not count as one that lies
  // before what is free.
  SMT_HOST_DEVICE int64_t Place(uint32_t bytes) {
    if (issued_ == used_ && head_ + bytes > size_) head_ = cursor_ = 0;  // nothing is before the start
    const int64_t head = head_, cursor = cursor_;
    if (issued_ == used_) return head;
    if (head <= cursor) return head + bytes <= cursor ? head : -1;  // they begin after the head
    if (head + bytes <= size_) return head;
    return bytes <= cursor ? 0 : -1;
  }
  SMT_HOST_DEVICE void Issue(int64_t at, uint32_t bytes) {
    head_ = static_cast<uint32_t>(at) + bytes;
    ++issued_;
  }
  // Where the oldest job that is not used lies. Once a job, then Use when it is over; nothing is placed in between.
  SMT_HOST_DEVICE uint32_t Next(uint32_t bytes) {
    const uint32_t at = cursor_ + bytes <= size_ ? cursor_ : 0;
    cursor_ = at + bytes;
    return at;
  }
  SMT_HOST_DEVICE void Use() { ++used_; }

 private:
  uint32_t size_;
  int issued_ = 0, used_ = 0;
  uint32_t head_ = 0, cursor_ = 0;  // ends of the last job issued, and used
};

}  // namespace smt::cuda
