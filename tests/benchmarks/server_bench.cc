#include "tests/benchmarks/server_bench.h"

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/benchmarks/bench_util.h"
#include "tests/benchmarks/engine_rate.h"
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

double ServerRate(client::Client& client, int vocabulary, int streams, int tokens) {
  std::vector<double> first(streams), last(streams);
  std::vector<int64_t> counts(streams);
  std::vector<std::thread> threads;
  for (int i = 0; i < streams; ++i) {
    threads.emplace_back([&, i] {
      const client::Error error =
          client.StreamGenerate(Request(vocabulary, 64 + i, tokens, i), [&](const v1::GenerationEvent& event) {
            if (!event.has_chunk()) return true;
            if (counts[i] == 0) first[i] = Seconds();
            counts[i] += event.chunk().token_ids_size();
            last[i] = Seconds();
            return true;
          });
      if (!error.ok()) {
        std::cerr << "smt_bench: " << error.message << "\n";
        std::exit(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  int64_t total = 0;
  for (const int64_t count : counts) total += count;
  const double seconds = *std::max_element(last.begin(), last.end()) - *std::max_element(first.begin(), first.end());
  return static_cast<double>(total) * (1.0 - 1.0 / tokens) / seconds;
}

}  // namespace

nlohmann::json ServerOverEngine(const ModelBenchOptions& options, int streams, int tokens) {
  ServerProcess server({.model_dir = options.model_dir});
  StartOrDie(server);
  auto client = server.NewClient();
  EngineUnderTest engine(options, streams);
  const int vocabulary = engine.vocabulary();
  const Pair rate = Alternate(
      options.rounds, [&] { return ServerRate(*client, vocabulary, streams, tokens); },
      [&] { return engine.Rate(streams, tokens); });
  return {{"server_tok_s", rate.a}, {"engine_tok_s", rate.b}, {"ratio", rate.a / rate.b}, {"streams", streams}};
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
