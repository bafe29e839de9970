// tokens/s of an engine in this process, while all streams run.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "tests/benchmarks/model_bench.h"
#include "tests/benchmarks/stream_load.h"

namespace smt::bench {

class EngineUnderTest {
 public:
  // With a slot for each of `streams`.
  static absl::StatusOr<std::unique_ptr<EngineUnderTest>> New(const ModelBenchOptions& options, int streams);
  ~EngineUnderTest();
  int vocabulary() const;
  double Rate(const StreamLoad& load);

 private:
  class Impl;
  explicit EngineUnderTest(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace smt::bench
