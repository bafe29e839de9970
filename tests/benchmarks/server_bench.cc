#include "tests/benchmarks/server_bench.h"

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/base/status_macros.h"
#include "tests/benchmarks/bench_util.h"
#include "tests/benchmarks/engine_rate.h"
#include "tests/benchmarks/loopback_client.h"
#include "tests/e2e/server_process.h"

namespace smt::bench {
namespace {

using testing::ServerProcess;

void StartOrDie(ServerProcess& server) {
  if (const absl::Status status = server.Start(); !status.ok()) {
    std::cerr << "smt_bench: " << status.message() << "\n";
    std::exit(1);
  }
}

v1::GenerationSpec Request(int vocabulary, int prompt, int tokens, uint32_t seed) {
  v1::GenerationSpec spec;
  std::mt19937 random(seed);
  for (int i = 0; i < prompt; ++i) {
    spec.mutable_token_ids()->add_ids(static_cast<int32_t>(random() % static_cast<uint32_t>(vocabulary)));
  }
  spec.mutable_sampling()->set_temperature(0);
  spec.mutable_stopping()->set_max_tokens(tokens);
  spec.mutable_stopping()->set_ignore_eos(true);
  return spec;
}

}  // namespace

absl::StatusOr<nlohmann::json> ServerOverEngine(const ModelBenchOptions& options, const StreamLoad& load) {
  // As many slots as streams, and prompts all at once as in EngineUnderTest: decoding is what is compared.
  ServerProcess server(
      {.model_dir = options.model_dir,
       .device = options.device,
       .flags = {"--dtype=" + options.dtype, absl::StrCat("--max_slots=", load.streams),
                 absl::StrCat("--ingest_tokens_per_step=", 1 << 20), absl::StrCat("--max_queue=", load.streams)}});
  RETURN_IF_ERROR(server.Start());
  constexpr int kStreamsAConnection = 16;
  LoopbackClient client(server.address(), (load.streams + kStreamsAConnection - 1) / kStreamsAConnection);
  ASSIGN_OR_RETURN(const std::unique_ptr<EngineUnderTest> engine, EngineUnderTest::New(options, load.streams));
  std::vector<double> through_server, alone;
  for (int i = 0; i < options.rounds; ++i) {
    ASSIGN_OR_RETURN(through_server.emplace_back(), client.Rate(engine->vocabulary(), load));
    alone.push_back(engine->Rate(load));
  }
  const double server_rate = Median(through_server), engine_rate = Median(alone);
  return nlohmann::json{{"server_tok_s", server_rate},
                        {"engine_tok_s", engine_rate},
                        {"ratio", server_rate / engine_rate},
                        {"streams", load.streams}};
}

nlohmann::json ContinueAfterRestart(const ModelBenchOptions& options, int sessions, int prompt_tokens) {
  ServerProcess server({.model_dir = options.model_dir});
  StartOrDie(server);
  auto client = server.NewClient();
  v1::Model model;
  client->GetModel(&model);
  auto request = [&](int i, int prompt, int tokens) {
    v1::GenerationSpec spec = Request(model.config().vocab_size(), prompt, tokens, i);
    if (prompt == 0) spec.clear_token_ids();
    spec.set_session(absl::StrCat("sessions/bench-", i));
    spec.set_create_session(true);
    return spec;
  };
  for (int i = 0; i < sessions; ++i) testing::Generate(*client, request(i, prompt_tokens + i, 20));
  server.Kill();
  StartOrDie(server);
  client = server.NewClient();
  testing::Generate(*client, request(sessions, 10, 1));  // the connection is made and the code is warm
  std::vector<double> times;
  for (int i = 0; i < sessions; ++i) {
    double first = 0;
    const double start = Seconds();
    const client::Error error = client->StreamGenerate(request(i, 0, 1), [&](const v1::GenerationEvent& event) {
      if (event.has_chunk() && first == 0) first = Seconds();
      return true;
    });
    if (!error.ok() || first == 0) {
      std::cerr << "smt_bench: " << error.message << "\n";
      std::exit(1);
    }
    times.push_back(first - start);
  }
  std::sort(times.begin(), times.end());
  return {{"p50_s", Median(times)},
          {"p99_s", times[times.size() * 99 / 100]},
          {"sessions", sessions},
          {"log_tokens", prompt_tokens}};
}

}  // namespace smt::bench
