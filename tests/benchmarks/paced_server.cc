// smt_server as it is, but on an executor that computes nothing (paced_executor.h): what a turn costs beside the model.
// The model's folder gives the vocabulary.
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/time/time.h"
#include "model/checkpoint.h"
#include "server/serve.h"
#include "tests/benchmarks/paced_executor.h"
#include "tests/testing/server_flags.h"

ABSL_FLAG(absl::Duration, step_time, absl::ZeroDuration(), "Of each step, whatever is in it.");
ABSL_FLAG(int64_t, state_bytes, 4096, "Of a session.");

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  smt::ServerOptions options = smt::OptionsFromTestFlags();
  options.warmup_batches = "";
  return smt::Serve(
      options, [](const smt::RunnerOptions& runner, std::string*) -> absl::StatusOr<std::unique_ptr<smt::Executor>> {
        const auto checkpoint = smt::Checkpoint::Open(runner.model_dir);
        if (!checkpoint.ok()) return checkpoint.status();
        const auto vocabulary = static_cast<int32_t>((*checkpoint)->config().vocab_size);
        return std::make_unique<smt::bench::PacedExecutor>(runner.slots, vocabulary, absl::GetFlag(FLAGS_step_time),
                                                           absl::GetFlag(FLAGS_state_bytes));
      });
}
