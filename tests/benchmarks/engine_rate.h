// tokens/s of an engine in this process, from the moment that all streams run.
#pragma once

#include <memory>

#include "tests/benchmarks/model_bench.h"

namespace smt::bench {

class EngineUnderTest {
 public:
  EngineUnderTest(const ModelBenchOptions& options, int streams);
  ~EngineUnderTest();
  int vocabulary() const;
  double Rate(int streams, int tokens);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smt::bench
