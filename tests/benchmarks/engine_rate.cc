#include "tests/benchmarks/engine_rate.h"

#include <memory>
#include <span>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/synchronization/blocking_counter.h"
#include "model/base/status_macros.h"
#include "server/engine/engine.h"
#include "server/engine/torch_executor.h"
#include "tests/benchmarks/runner_util.h"

namespace smt::bench {
namespace {

Engine::Options AllAtOnce() {
  Engine::Options options;
  options.ingest_tokens_per_step = 1 << 20;  // all streams start together: decode is what is compared
  return options;
}

class TallyingSink : public GenerationSink {
 public:
  TallyingSink(int stream, StreamTally* tally, absl::BlockingCounter* done)
      : stream_(stream), tally_(tally), done_(done) {}
  void OnTokens(std::span<const TokenOutput> tokens) override {
    tally_->Add(stream_, static_cast<int64_t>(tokens.size()));
    consumed += static_cast<int64_t>(tokens.size());
  }
  void OnFinished(const FinishInfo& info) override { done_->DecrementCount(); }

 private:
  const int stream_;
  StreamTally* const tally_;
  absl::BlockingCounter* const done_;
};

double EngineRate(Engine& engine, const StreamLoad& load) {
  absl::BlockingCounter done(load.streams);
  StreamTally tally(load.streams);
  for (int i = 0; i < load.streams; ++i) {
    EngineRequest request;
    request.prompt = PromptOf(engine.info().vocab_size, i);
    auto sampling = std::make_shared<SamplingParams>();
    sampling->temperature = load.temperature;
    sampling->top_p = load.top_p;
    sampling->seed = static_cast<uint64_t>(i);
    request.sampling = sampling;
    request.max_tokens = load.tokens;
    request.sink = std::make_shared<TallyingSink>(i, &tally, &done);
    OrDie(engine.Submit(std::move(request)));
  }
  done.Wait();
  return tally.Rate();
}

}  // namespace

class EngineUnderTest::Impl {
 public:
  explicit Impl(std::unique_ptr<Executor> executor) : engine(AllAtOnce(), std::move(executor), nullptr) {}
  Engine engine;
};

absl::StatusOr<std::unique_ptr<EngineUnderTest>> EngineUnderTest::New(const ModelBenchOptions& options, int streams) {
  ASSIGN_OR_RETURN(std::unique_ptr<Executor> executor, NewTorchExecutor(Runner(options, streams)));
  return absl::WrapUnique(new EngineUnderTest(std::make_unique<Impl>(std::move(executor))));
}
EngineUnderTest::EngineUnderTest(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
EngineUnderTest::~EngineUnderTest() { impl_->engine.Drain(); }
int EngineUnderTest::vocabulary() const { return impl_->engine.info().vocab_size; }
double EngineUnderTest::Rate(const StreamLoad& load) { return EngineRate(impl_->engine, load); }

}  // namespace smt::bench
