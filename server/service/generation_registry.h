// The running generations that can be asked for by (session, request_id). Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace smt {

class GenerationRun;

class GenerationRegistry {
 public:
  using Key = std::pair<std::string, std::string>;  // session id, request id

  void Add(const Key& key, std::weak_ptr<GenerationRun> run) {
    absl::MutexLock lock(&mu_);
    runs_[key] = std::move(run);
  }
  // Only if `run` is still the one registered.
  void Remove(const Key& key, const GenerationRun* run) {
    absl::MutexLock lock(&mu_);
    const auto it = runs_.find(key);
    if (it == runs_.end()) return;
    const std::shared_ptr<GenerationRun> found = it->second.lock();
    if (found == nullptr || found.get() == run) runs_.erase(it);
  }
  std::shared_ptr<GenerationRun> Find(const Key& key) {
    absl::MutexLock lock(&mu_);
    const auto it = runs_.find(key);
    return it == runs_.end() ? nullptr : it->second.lock();
  }

 private:
  absl::Mutex mu_;
  std::map<Key, std::weak_ptr<GenerationRun>> runs_ ABSL_GUARDED_BY(mu_);
};

}  // namespace smt
