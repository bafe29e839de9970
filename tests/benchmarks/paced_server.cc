// smt_server as it is, but on an executor that computes nothing (paced_executor.h): what a turn costs beside the model.
// The model's folder gives the vocabulary.
#include <memory>
#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/time/time.h"
#include "model/checkpoint.h"
#include "server/serve.h"
#include "tests/benchmarks/paced_executor.h"

// Those of smt_server's flags that the benchmark gives.
ABSL_FLAG(std::string, model_dir, "", "");
ABSL_FLAG(std::string, store_dir, "", "");
ABSL_FLAG(std::string, listen_address, "", "");
ABSL_FLAG(std::string, metrics_address, "", "");
ABSL_FLAG(std::string, address_file, "", "");
ABSL_FLAG(std::string, device, "cpu", "");
ABSL_FLAG(std::string, dtype, "auto", "");
ABSL_FLAG(int32_t, max_slots, 64, "");
ABSL_FLAG(int32_t, ingest_tokens_per_step, 256, "");
ABSL_FLAG(absl::Duration, drain_delay, absl::ZeroDuration(), "");
ABSL_FLAG(absl::Duration, step_time, absl::ZeroDuration(), "Of each step, whatever is in it.");

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  smt::ServerOptions options;
  options.model_dir = absl::GetFlag(FLAGS_model_dir);
  options.store_dir = absl::GetFlag(FLAGS_store_dir);
  options.listen_address = absl::GetFlag(FLAGS_listen_address);
  options.metrics_address = absl::GetFlag(FLAGS_metrics_address);
  options.address_file = absl::GetFlag(FLAGS_address_file);
  options.device = absl::GetFlag(FLAGS_device);
  options.warmup_batches = "";
  options.max_slots = absl::GetFlag(FLAGS_max_slots);
  options.ingest_tokens_per_step = absl::GetFlag(FLAGS_ingest_tokens_per_step);
  options.drain_delay = absl::GetFlag(FLAGS_drain_delay);
  return smt::Serve(
      options, [](const smt::RunnerOptions& runner, std::string*) -> absl::StatusOr<std::unique_ptr<smt::Executor>> {
        const auto checkpoint = smt::Checkpoint::Open(runner.model_dir);
        if (!checkpoint.ok()) return checkpoint.status();
        const auto vocabulary = static_cast<int32_t>((*checkpoint)->config().vocab_size);
        return std::make_unique<smt::bench::PacedExecutor>(runner.slots, vocabulary, absl::GetFlag(FLAGS_step_time));
      });
}
