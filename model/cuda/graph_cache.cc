#include "model/cuda/graph_cache.h"

#include "model/cuda/kernels.h"

namespace smt::cuda {

GraphCache::~GraphCache() {
  for (const Entry& entry : entries_) {
    if (entry.graph != nullptr) cudaGraphExecDestroy(entry.graph);
  }
}

void GraphCache::Run(uint64_t key, absl::FunctionRef<void()> queue) {
  const auto found = by_key_.find(key);
  if (found != by_key_.end()) {
    entries_.splice(entries_.begin(), entries_, found->second);
  } else {
    entries_.push_front({.key = key});
    by_key_[key] = entries_.begin();
    if (entries_.size() > kMaxEntries) {
      const Entry& oldest = entries_.back();
      // The runtime keeps what is still running.
      if (oldest.graph != nullptr) cudaGraphExecDestroy(oldest.graph);
      by_key_.erase(oldest.key);
      entries_.pop_back();
    }
  }
  Entry& entry = entries_.front();
  // The first time kernels are loaded, which a capture must not do; capturing what comes once would cost more.
  if (++entry.uses < 3) {
    queue();
    return;
  }
  if (entry.graph == nullptr) Capture(entry, queue);
  CheckCuda(cudaGraphLaunch(entry.graph, stream_), "launching a graph");
}

void GraphCache::Capture(Entry& entry, absl::FunctionRef<void()> queue) {
  CheckCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capturing a graph");
  cudaGraph_t graph = nullptr;
  try {
    queue();
  } catch (...) {
    cudaStreamEndCapture(stream_, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  CheckCuda(cudaStreamEndCapture(stream_, &graph), "capturing a graph");
  const cudaError_t made = cudaGraphInstantiate(&entry.graph, graph, 0);
  cudaGraphDestroy(graph);
  CheckCuda(made, "making a graph");
}

}  // namespace smt::cuda
