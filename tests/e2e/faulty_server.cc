// smt_server as it is, but its device fails after --fail_after_steps. A program of its own, so that the end of a whole
// process can be tested without a way to make the real one fail.
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/time/time.h"
#include "server/engine/torch_executor.h"
#include "server/serve.h"
#include "tests/server/engine/failing_executor.h"

// Those of smt_server's flags that the tests give.
ABSL_FLAG(std::string, model_dir, "", "");
ABSL_FLAG(std::string, store_dir, "", "");
ABSL_FLAG(std::string, listen_address, "", "");
ABSL_FLAG(std::string, metrics_address, "", "");
ABSL_FLAG(std::string, address_file, "", "");
ABSL_FLAG(std::string, device, "cpu", "");
ABSL_FLAG(absl::Duration, drain_delay, absl::ZeroDuration(), "");
ABSL_FLAG(int64_t, fail_after_steps, 0, "Steps of the engine before the one whose results never come.");

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  smt::ServerOptions options;
  options.model_dir = absl::GetFlag(FLAGS_model_dir);
  options.store_dir = absl::GetFlag(FLAGS_store_dir);
  options.listen_address = absl::GetFlag(FLAGS_listen_address);
  options.metrics_address = absl::GetFlag(FLAGS_metrics_address);
  options.address_file = absl::GetFlag(FLAGS_address_file);
  options.device = absl::GetFlag(FLAGS_device);
  options.drain_delay = absl::GetFlag(FLAGS_drain_delay);
  const auto fault = std::make_shared<smt::DeviceFault>();
  fault->steps_before = absl::GetFlag(FLAGS_fail_after_steps);
  return smt::Serve(
      options,
      [&](const smt::RunnerOptions& runner, std::string* note) -> absl::StatusOr<std::unique_ptr<smt::Executor>> {
        auto executor = smt::NewTorchExecutor(runner, note);
        if (!executor.ok()) return executor.status();
        return std::make_unique<smt::FailingExecutor>(*std::move(executor), fault);
      });
}
