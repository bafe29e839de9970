// smt_bench: the project's figures, each a ratio of two things measured alternately in one run. JSON on stdout.
#include <functional>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_join.h"
#include "tests/benchmarks/gpu_bench.h"
#include "tests/benchmarks/model_bench.h"
#include "tests/benchmarks/runner_util.h"
#include "tests/benchmarks/server_bench.h"
#include "tests/benchmarks/session_bench.h"
#include "tests/benchmarks/session_server_bench.h"
#include "tests/testing/process.h"

namespace {

CLI::App* AddGpu(CLI::App& app, smt::bench::GpuBenchOptions& gpu) {
  CLI::App* command = app.add_subcommand("gpu", "One device, used as the server uses it");
  command->add_option("--model_dir", gpu.model_dir, "Model folder")->required();
  command->add_option("--device", gpu.device, "cuda:N, or cpu for a dry run")->capture_default_str();
  command->add_option("--dtype", gpu.dtype, "bfloat16, float16 or float32")->capture_default_str();
  command->add_option("--batches", gpu.batches, "Sessions that step together. Default: 1,64,256,1024")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20));
  command->add_option("--lines", gpu.lines, "Default: all of " + absl::StrJoin(smt::bench::GpuLineNames(), ", "))
      ->delimiter(',');
  command->add_option("--baseline", gpu.baseline, "JSON of another implementation's figures to compare with")
      ->check(CLI::ExistingFile);
  command->add_option("--reference", gpu.reference, "Folder of a trained model, for the line equality");
  command->add_option("--text", gpu.text, "What it reads there: a text, or a JSON array of ids");
  command->add_option("--out", gpu.out, "File that gets the figures so far after each line");
  command->add_option("--rounds", gpu.rounds, "Runs of each figure; the median counts")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_flag("--quick", gpu.quick, "Few tokens and sessions: whether it works, not what it gives");
  return command;
}

CLI::App* AddSessions(CLI::App& app, smt::bench::SessionBenchOptions& sessions) {
  CLI::App* command = app.add_subcommand("sessions", "What durability, restores, forks, recovery and drain cost");
  command->add_option("--model_dir", sessions.model_dir, "Model folder")->capture_default_str();
  command->add_option("--device", sessions.device, "cpu or cuda:N")->capture_default_str();
  command->add_option("--dtype", sessions.dtype, "auto, bfloat16, float16 or float32")->capture_default_str();
  command->add_option("--dir", sessions.dir, "Folder for the stores, which go afterwards. Default: $TMPDIR, or /tmp");
  command->add_option("--store_url", sessions.store_url, "A Redis: instead, for fork; besides, for restore");
  command->add_option("--streams", sessions.streams, "At once")->check(CLI::Range(1, 1 << 16))->capture_default_str();
  command->add_option("--tokens", sessions.tokens, "Of a turn")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  command
      ->add_option("--step_us", sessions.step_us,
                   "For durability: no model, but steps of so many microseconds; -1: the model's")
      ->check(CLI::Range(-1, 1 << 20))
      ->capture_default_str();
  command->add_option("--state_bytes", sessions.state_bytes, "With --step_us: of a session")
      ->check(CLI::Range(8, 1 << 30))
      ->capture_default_str();
  command->add_option("--lengths", sessions.lengths, "Ids of the sessions that are restored and forked")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 27))
      ->capture_default_str();
  command->add_option("--rounds", sessions.rounds, "The median counts")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--seconds", sessions.seconds, "For durability: that each kind is measured in each round")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  command->add_option("--warm_up", sessions.warm_up_s, "For durability: seconds of the same load before that")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  command->add_flag("--quick", sessions.quick, "Whether it works, not what it gives");
  return command;
}

}  // namespace

int main(int argc, char** argv) {
  using nlohmann::json;
  smt::bench::ModelBenchOptions options;
  std::vector<std::string> only;
  bool quick = false;
  CLI::App app("Measures SMT Serve. Prints one JSON object; progress goes to stderr.");
  app.add_option("--model_dir", options.model_dir, "Model folder")->capture_default_str();
  app.add_option("--device", options.device, "cpu or cuda:N, for what runs in this process")->capture_default_str();
  app.add_option("--rounds", options.rounds, "Rounds of each comparison; the median counts")->capture_default_str();
  app.add_option("--only", only, "Names of figures to measure; may be repeated. Default: all");
  app.add_flag("--quick", quick, "Fewer tokens: whether it works, not what it gives");
  smt::bench::GpuBenchOptions gpu;
  CLI::App* gpu_command = AddGpu(app, gpu);
  smt::bench::SessionBenchOptions sessions;
  CLI::App* sessions_command = AddSessions(app, sessions);
  CLI11_PARSE(app, argc, argv);
  if (*gpu_command) {
    std::cout << smt::bench::OrDie(GpuFigures(gpu)).dump(1) << "\n";
    return 0;
  }
  if (*sessions_command) {
    const std::vector<std::pair<std::string, absl::StatusOr<json> (*)(const smt::bench::SessionBenchOptions&)>> parts =
        {{"durability", smt::bench::DurabilityFigures},
         {"restore", smt::bench::RestoreFigures},
         {"fork", smt::bench::ForkFigures},
         {"recovery", smt::bench::RecoveryFigures},
         {"drain", smt::bench::DrainFigures}};
    json result;
    bool failed = false;
    const std::string base = sessions.dir;
    for (const auto& [name, measure] : parts) {
      if (!only.empty() && std::find(only.begin(), only.end(), name) == only.end()) continue;
      std::cerr << name << " … " << std::flush;
      const smt::testing::TempDir dir(base);  // with sessions of an earlier run it would measure something else
      if (dir.path().empty()) {
        std::cerr << "no folder can be made in " << base << "\n";
        return 1;
      }
      sessions.dir = dir.path();
      const absl::StatusOr<json> figures = measure(sessions);
      failed |= !figures.ok();
      result[name] = figures.ok() ? *figures : json{{"failed", std::string(figures.status().message())}};
      std::cerr << result[name].dump() << "\n";
    }
    std::cout << result.dump(1) << "\n";
    return failed ? 1 : 0;
  }
  const int scale = quick ? 20 : 1;

  const std::vector<std::pair<std::string, std::function<json()>>> figures = {
      {"engine_over_model_1", [&] { return EngineOverModel(options, 1, 2000 / scale); }},
      {"engine_over_model_16", [&] { return EngineOverModel(options, 16, 400 / scale); }},
      {"engine_over_model_64", [&] { return EngineOverModel(options, 64, 160 / scale); }},
      {"server_over_engine_16",
       [&] { return smt::bench::OrDie(ServerOverEngine(options, {.streams = 16, .tokens = 600 / scale})); }},
      {"flat_cost", [&] { return FlatCost(options, 1000, 100000 / scale, 800 / scale); }},
      {"hop_over_slide", [&] { return HopOverSlide(options, 320 / scale); }},
      {"continue_after_restart", [&] { return ContinueAfterRestart(options, 60 / scale + 1, 700); }},
      {"many_sessions", [&] { return smt::bench::ManySessions(100000 / scale, 5); }},
      {"ingest_over_step", [&] { return IngestOverStep(options, 100000 / scale); }},
      {"determinism_price_1", [&] { return DeterminismPrice(options, 1, 800 / scale); }},
      {"determinism_price_16", [&] { return DeterminismPrice(options, 16, 160 / scale); }},
      {"determinism_price_64", [&] { return DeterminismPrice(options, 64, 64 / scale + 2); }},
  };
  json result;
  for (const auto& [name, measure] : figures) {
    if (!only.empty() && std::find(only.begin(), only.end(), name) == only.end()) continue;
    std::cerr << name << " … " << std::flush;
    result[name] = measure();
    std::cerr << result[name].dump() << "\n";
  }
  std::cout << result.dump(1) << "\n";
  return 0;
}
