#include "tests/benchmarks/engine_rate.h"

#include <algorithm>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "server/engine/engine.h"
#include "server/engine/torch_executor.h"
#include "tests/benchmarks/bench_util.h"
#include "tests/benchmarks/runner_util.h"

namespace smt::bench {
namespace {

Engine::Options AllAtOnce() {
  Engine::Options options;
  options.ingest_tokens_per_step = 1 << 20;  // all streams start together: decode is what is compared
  return options;
}

class CountingSink : public GenerationSink {
 public:
  explicit CountingSink(absl::BlockingCounter* done) : done_(done) {}
  void OnTokens(std::span<const TokenOutput> tokens) override {
    if (count_ == 0) first_ = Seconds();
    count_ += static_cast<int64_t>(tokens.size());
    consumed = count_;
  }
  void OnFinished(const FinishInfo& info) override {
    last_ = Seconds();
    done_->DecrementCount();
  }
  int64_t count() const { return count_; }
  double first() const { return first_; }
  double last() const { return last_; }

 private:
  absl::BlockingCounter* done_;
  int64_t count_ = 0;
  double first_ = 0, last_ = 0;
};

double EngineRate(Engine& engine, const ExecutorInfo& info, int streams, int tokens) {
  absl::BlockingCounter done(streams);
  std::vector<std::shared_ptr<CountingSink>> sinks;
  for (int i = 0; i < streams; ++i) {
    EngineRequest request;
    request.prompt = Ids(info.vocab_size, 64 + i % info.stride, i);
    auto sampling = std::make_shared<SamplingParams>();
    sampling->temperature = 0;
    request.sampling = sampling;
    request.max_tokens = tokens;
    sinks.push_back(std::make_shared<CountingSink>(&done));
    request.sink = sinks.back();
    OrDie(engine.Submit(std::move(request)));
  }
  done.Wait();
  double first = 0, last = 0;
  int64_t total = 0;
  for (const auto& sink : sinks) {
    first = std::max(first, sink->first());
    last = std::max(last, sink->last());
    total += sink->count();
  }
  return static_cast<double>(total) * (1.0 - 1.0 / tokens) / (last - first);
}

}  // namespace

class EngineUnderTest::Impl {
 public:
  Impl(const ModelBenchOptions& options, int streams)
      : engine(AllAtOnce(), OrDie(NewTorchExecutor(Runner(options, streams), nullptr)), nullptr) {}
  Engine engine;
};

EngineUnderTest::EngineUnderTest(const ModelBenchOptions& options, int streams)
    : impl_(std::make_unique<Impl>(options, streams)) {}
EngineUnderTest::~EngineUnderTest() { impl_->engine.Drain(); }
int EngineUnderTest::vocabulary() const { return impl_->engine.info().vocab_size; }
double EngineUnderTest::Rate(int streams, int tokens) {
  return EngineRate(impl_->engine, impl_->engine.info(), streams, tokens);
}

}  // namespace smt::bench
