// The delivery thread: calls the sinks, the metrics and the owner's callbacks, in the order in which the engine thread
// handed things over, for each sink. The engine thread collects what one iteration gives and hands it over at once.
// What piled up while the sinks were called goes to each of them in one call, so that many streams cost less the more
// they lag.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "server/engine/engine.h"
#include "server/engine/engine_metrics.h"
#include "server/engine/mutex.h"

namespace smt {

// Things that are worth an allocation.
struct RareEvent {
  std::vector<TokenLogprobs> logprobs;
  std::shared_ptr<const StateBuffer> state;
  std::string session_key;
  Engine::StateDone done;  // kSaved
  absl::Status fault;
  FinishInfo finish;
  StepMetrics step;
  absl::Duration duration;
  // Destroyed here rather than on the engine thread.
  std::shared_ptr<GenerationSink> sink;
  std::function<absl::StatusOr<RestoredState>()> restore;
};

struct Event {
  enum class Kind {
    kStarted,
    kIngested,
    kPromptLogprobs,
    kToken,
    kSnapshot,
    kFinished,
    kEvicted,
    kSaved,
    kFault,
    kStep
  };
  Kind kind = Kind::kToken;
  GenerationSink* sink = nullptr;  // alive until its kFinished, which owns it
  int64_t position = 0;            // kIngested: done; kPromptLogprobs, kSnapshot, kEvicted, kSaved
  int64_t total = 0;               // kIngested
  TokenOutput token = {};          // kToken
  std::unique_ptr<RareEvent> rare = nullptr;
};

class Delivery {
 public:
  Delivery(const Engine::Options& options, EngineMetrics* metrics);
  ~Delivery();  // Stop

  // Engine thread. Add collects, Flush hands over.
  Event& Add(Event::Kind kind, GenerationSink* sink) {
    collected_.emplace_back();
    collected_.back().kind = kind;
    collected_.back().sink = sink;
    return collected_.back();
  }
  RareEvent& AddRare(Event::Kind kind, GenerationSink* sink, int64_t position = 0) {
    Event& event = Add(kind, sink);
    event.position = position;
    event.rare = std::make_unique<RareEvent>();
    return *event.rare;
  }
  void Flush() ABSL_LOCKS_EXCLUDED(mu_);

  // Delivers everything handed over and ends the thread.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mu_);
  void Deliver(Event& event);
  void Gather(Event& event);  // a token
  void HandOver(GenerationSink* sink);
  void HandOverAll();

  const Engine::Options& options_;
  EngineMetrics* const metrics_;
  std::vector<Event> collected_;  // engine thread

  // Delivery thread: tokens of the batch that are not handed over yet.
  struct Gathered {
    GenerationSink* sink;
    std::vector<TokenOutput> tokens;
  };
  std::vector<Gathered> gathered_;
  absl::flat_hash_map<GenerationSink*, size_t> gathered_at_;
  std::vector<std::vector<TokenOutput>> spare_;  // empty

  PlainMutex mu_;
  PlainCondition arrived_;
  std::vector<Event> queue_ ABSL_GUARDED_BY(mu_);
  bool sleeping_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace smt
