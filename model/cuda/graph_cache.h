// CUDA graphs of work that repeats: one launch instead of a hundred where a step is bound by launching.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <list>
#include <unordered_map>

#include "absl/functional/function_ref.h"

namespace smt::cuda {

// Not thread-safe; used by the stream's one thread.
class GraphCache {
 public:
  explicit GraphCache(cudaStream_t stream) : stream_(stream) {}
  ~GraphCache();
  GraphCache(const GraphCache&) = delete;
  GraphCache& operator=(const GraphCache&) = delete;

  // Queues what `queue` queues on the stream. Work of one `key` must be the same kernels with the same arguments each
  // time: from its third time on it is replayed from a graph. `queue` must neither allocate nor wait.
  void Run(uint64_t key, absl::FunctionRef<void()> queue);

 private:
  struct Entry {
    uint64_t key;
    int uses = 0;
    cudaGraphExec_t graph = nullptr;
  };
  static constexpr size_t kMaxEntries = 128;  // least recently used out

  void Capture(Entry& entry, absl::FunctionRef<void()> queue);

  const cudaStream_t stream_;
  std::list<Entry> entries_;  // most recently used first
  std::unordered_map<uint64_t, std::list<Entry>::iterator> by_key_;
};

}  // namespace smt::cuda
