// What the benchmarks of a server process share.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "model/base/status_macros.h"
#include "tests/benchmarks/session_server_bench.h"
#include "tests/e2e/server_process.h"

namespace smt::bench {

inline absl::Status ToStatus(const client::Error& error, std::string_view what) {
  if (error.ok()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(std::string(what), ": ", error.message));
}

inline testing::ServerProcess::Options ServerOptionsOf(const SessionBenchOptions& options,
                                                       std::vector<std::string> flags) {
  flags.push_back("--dtype=" + options.dtype);
  return {.model_dir = options.model_dir, .device = options.device, .dir = options.dir, .flags = std::move(flags)};
}

inline absl::StatusOr<int> Vocabulary(client::Client& client) {
  v1::Model model;
  RETURN_IF_ERROR(ToStatus(client.GetModel(&model), "GetModel"));
  return static_cast<int>(model.config().vocab_size());
}

}  // namespace smt::bench
