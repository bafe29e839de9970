// Many streams from one server at once, read by gRPC's own few threads (its callback API) over a few connections, so
// that the client does not need a thread a stream.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "grpcpp/channel.h"
#include "smt/v1/generation_service.grpc.pb.h"
#include "tests/benchmarks/stream_load.h"

namespace smt::bench {

class LoopbackClient {
 public:
  LoopbackClient(const std::string& address, int connections);
  // tokens/s while all streams run. UNAVAILABLE with what a stream that failed was told.
  absl::StatusOr<double> Rate(int vocabulary, const StreamLoad& load);
  const std::vector<std::unique_ptr<v1::GenerationService::Stub>>& stubs() const { return stubs_; }

 private:
  std::vector<std::unique_ptr<v1::GenerationService::Stub>> stubs_;  // one a connection
};

}  // namespace smt::bench
