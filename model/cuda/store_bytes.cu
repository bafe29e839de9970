// A few bytes from the host as arguments of a kernel: part of the chain of kernels, while a copy would be waited for by
// the kernel after it, and would wait for the one before, on another engine.
#include <algorithm>
#include <cstring>

#include "model/cuda/chain.cuh"
#include "model/cuda/kernels.h"

namespace smt::cuda {
namespace {

constexpr int kWord = 16;

struct alignas(kWord) Bytes {
  uint4 of[kMostStoredBytes / kWord];
};

// A word a thread, the last one byte by byte.
__global__ void StoreBytesKernel(std::byte* to, int bytes, const __grid_constant__ Bytes from) {
  AwaitPrevious();
  LetNextBegin();
  const int at = static_cast<int>(threadIdx.x) * kWord;
  if (at + kWord <= bytes) {
    *reinterpret_cast<uint4*>(to + at) = from.of[threadIdx.x];
    return;
  }
  for (int i = at; i < bytes; ++i) to[i] = reinterpret_cast<const std::byte*>(from.of)[i];
}

}  // namespace

void StoreBytes(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  Bytes values;
  std::memcpy(&values, from, bytes);
  LaunchChained(StoreBytesKernel, 1, static_cast<unsigned>((bytes + kWord - 1) / kWord), 0, stream, "storing bytes",
                static_cast<std::byte*>(to), static_cast<int>(bytes), values);
}

}  // namespace smt::cuda
