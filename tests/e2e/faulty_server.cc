// smt_server as it is, but its device fails after --fail_after_steps, or hangs then with --hang. A program of its own,
// so that the end of a whole process can be tested without a way to make the real one fail.
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "server/engine/torch_executor.h"
#include "server/serve.h"
#include "tests/server/engine/failing_executor.h"
#include "tests/testing/server_flags.h"

ABSL_FLAG(int64_t, fail_after_steps, 0, "Steps of the engine before the one whose results never come.");
ABSL_FLAG(bool, warm_up, false, "Whether it is warmed up as a GPU is.");
ABSL_FLAG(bool, hang, false, "Whether it never answers, in place of saying that it failed.");

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  smt::ServerOptions options = smt::OptionsFromTestFlags();
  if (!absl::GetFlag(FLAGS_warm_up)) options.warmup_batches = "";
  const auto fault = std::make_shared<smt::DeviceFault>();
  fault->steps_before = absl::GetFlag(FLAGS_fail_after_steps);
  fault->hangs = absl::GetFlag(FLAGS_hang);
  return smt::Serve(
      options,
      [&](const smt::RunnerOptions& runner, std::string* note) -> absl::StatusOr<std::unique_ptr<smt::Executor>> {
        auto executor = smt::NewTorchExecutor(runner, note);
        if (!executor.ok()) return executor.status();
        return std::make_unique<smt::FailingExecutor>(*std::move(executor), fault);
      });
}
