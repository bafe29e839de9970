#include "tests/benchmarks/session_bench.h"

#include <algorithm>
#include <atomic>
#include <iostream>
#include <memory>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "model/base/status_macros.h"
#include "tests/benchmarks/bench_util.h"
#include "tests/benchmarks/loopback_client.h"
#include "tests/benchmarks/random_ids.h"
#include "tests/e2e/server_process.h"
#include "tests/testing/http.h"

namespace smt::bench {
namespace {

using nlohmann::json;
using testing::ServerProcess;

absl::Status ToStatus(const client::Error& error, std::string_view what) {
  if (error.ok()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(what, ": ", error.message));
}

ServerProcess::Options ServerOptionsOf(const SessionBenchOptions& options, std::vector<std::string> flags) {
  flags.push_back("--dtype=" + options.dtype);
  return {.model_dir = options.model_dir, .device = options.device, .dir = options.dir, .flags = std::move(flags)};
}

absl::StatusOr<int> Vocabulary(client::Client& client) {
  v1::Model model;
  RETURN_IF_ERROR(ToStatus(client.GetModel(&model), "GetModel"));
  return static_cast<int>(model.config().vocab_size());
}

// A session with so many ids, its state saved by `another` taking its slot where the server has one.
absl::Status Fill(client::Client& client, const std::string& session, int vocabulary, int length) {
  constexpr int kPiece = 1 << 16;
  for (int at = 0; at < length; at += kPiece) {
    v1::GenerationSpec spec;
    spec.set_session(session);
    spec.set_create_session(true);
    for (const int32_t id : Ids(vocabulary, std::min(kPiece, length - at), static_cast<uint32_t>(at + 1))) {
      spec.mutable_token_ids()->add_ids(id);
    }
    spec.mutable_stopping()->set_max_tokens(0);
    RETURN_IF_ERROR(ToStatus(testing::Generate(client, spec).error, "filling a session"));
  }
  return absl::OkStatus();
}

// Seconds from the call to the first token of a turn of one.
absl::StatusOr<double> FirstToken(client::Client& client, const std::string& session) {
  v1::GenerationSpec spec;
  spec.set_session(session);
  spec.mutable_sampling()->set_temperature(0);
  spec.mutable_stopping()->set_max_tokens(1);
  spec.mutable_stopping()->set_ignore_eos(true);
  double first = 0;
  const double start = Seconds();
  const client::Error error = client.StreamGenerate(spec, [&](const v1::GenerationEvent& event) {
    if (event.has_chunk() && first == 0) first = Seconds();
    return true;
  });
  RETURN_IF_ERROR(ToStatus(error, "a turn"));
  return first - start;
}

// Sum and count of a histogram with this label.
struct Histogram {
  double sum = 0, count = 0;
};
absl::StatusOr<Histogram> ReadHistogram(const ServerProcess& server, std::string_view name, std::string_view label) {
  ASSIGN_OR_RETURN(const std::string text, testing::HttpGet(server.metrics_address(), "/metrics"));
  Histogram out;
  for (const std::string_view line : absl::StrSplit(text, '\n')) {
    double value = 0;
    const size_t space = line.rfind(' ');
    if (space == std::string_view::npos || line.find(label) == std::string_view::npos) continue;
    if (!absl::SimpleAtod(std::string(line.substr(space + 1)), &value)) continue;
    if (line.starts_with(absl::StrCat(name, "_sum"))) out.sum = value;
    if (line.starts_with(absl::StrCat(name, "_count"))) out.count = value;
  }
  return out;
}

json Spread(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {{"p50_ms", Median(seconds) * 1e3}, {"p99_ms", seconds[seconds.size() * 99 / 100] * 1e3}};
}

}  // namespace

absl::StatusOr<json> DurabilityFigures(const SessionBenchOptions& options) {
  const int streams = options.quick ? 4 : options.streams;
  ServerProcess server(ServerOptionsOf(
      options, {absl::StrCat("--max_slots=", streams), absl::StrCat("--ingest_tokens_per_step=", 1 << 20)}));
  RETURN_IF_ERROR(server.Start());
  ASSIGN_OR_RETURN(const int vocabulary, Vocabulary(*server.NewClient()));
  LoopbackClient client(server.address(), (streams + 15) / 16);
  StreamLoad load = {.streams = streams, .tokens = options.quick ? 16 : options.tokens, .temperature = 0.8f};
  load.top_p = 0.95f;
  const v1::Durability kinds[] = {v1::DURABILITY_NONE, v1::DURABILITY_TURN, v1::DURABILITY_TOKEN};
  std::vector<double> rates[3];
  constexpr int kTurns = 3;  // of each stream in a round
  for (int round = -1; round < options.rounds; ++round) {
    for (int kind = 0; kind < 3; ++kind) {
      load.durability = kinds[kind];
      load.session_prefix = absl::StrCat("sessions/d", kind, "-");
      const double start = Seconds();
      for (int turn = 0; turn < kTurns; ++turn) RETURN_IF_ERROR(client.Rate(vocabulary, load).status());
      if (round >= 0) rates[kind].push_back(kTurns * load.streams * load.tokens / (Seconds() - start));
    }
  }
  const double none = Median(rates[0]), turn = Median(rates[1]), token = Median(rates[2]);
  return json{{"streams", streams},         {"tokens_a_turn", load.tokens},
              {"none_tok_s", none},         {"turn_tok_s", turn},
              {"token_tok_s", token},       {"turn_over_none", turn / none},
              {"token_over_none", token / none}};
}

absl::StatusOr<json> RestoreFigures(const SessionBenchOptions& options) {
  json figures;
  const int times = options.quick ? 2 : 10 * options.rounds;
  for (const bool host : {true, false}) {
    std::vector<std::string> flags = {"--max_slots=1"};
    if (!host) flags.emplace_back("--host_state_bytes=0");
    if (!options.store_url.empty()) flags.push_back("--store_url=" + options.store_url);
    ServerProcess server(ServerOptionsOf(options, flags));
    RETURN_IF_ERROR(server.Start());
    auto client = server.NewClient();
    ASSIGN_OR_RETURN(const int vocabulary, Vocabulary(*client));
    const std::string label = host ? "tier=\"host\"" : "tier=\"store\"";
    constexpr char kName[] = "smt_session_restore_duration_seconds";
    for (const int length : options.lengths) {
      // Two of a length push each other out of the one slot.
      std::vector<std::string> sessions;
      for (const char* which : {"a", "b"}) {
        sessions.push_back(absl::StrCat("sessions/r", host ? "h" : "s", length, which));
        RETURN_IF_ERROR(Fill(*client, sessions.back(), vocabulary, length));
      }
      for (int i = 0; i < 4; ++i) RETURN_IF_ERROR(FirstToken(*client, sessions[static_cast<size_t>(i % 2)]).status());
      ASSIGN_OR_RETURN(const Histogram before, ReadHistogram(server, kName, label));
      std::vector<double> first;
      for (int i = 0; i < times; ++i) {
        ASSIGN_OR_RETURN(first.emplace_back(), FirstToken(*client, sessions[static_cast<size_t>(i % 2)]));
        absl::SleepFor(absl::Milliseconds(20));  // what left the slot is in its tier
      }
      ASSIGN_OR_RETURN(const Histogram after, ReadHistogram(server, kName, label));
      json& figure = figures[host ? "host" : "store"][absl::StrCat(length)];
      figure = Spread(first);
      figure["restores"] = after.count - before.count;
      figure["restore_mean_ms"] = after.count > before.count
                                      ? (after.sum - before.sum) / (after.count - before.count) * 1e3
                                      : 0.0;
    }
  }
  return figures;
}

absl::StatusOr<json> ForkFigures(const SessionBenchOptions& options) {
  std::vector<std::string> flags;
  if (!options.store_url.empty()) flags.push_back("--store_url=" + options.store_url);
  ServerProcess server(ServerOptionsOf(options, flags));
  RETURN_IF_ERROR(server.Start());
  auto client = server.NewClient();
  ASSIGN_OR_RETURN(const int vocabulary, Vocabulary(*client));
  const int times = options.quick ? 3 : 20 * options.rounds;
  json figures;
  for (const int length : options.lengths) {
    const std::string parent = absl::StrCat("sessions/f", length);
    RETURN_IF_ERROR(Fill(*client, parent, vocabulary, length));
    RETURN_IF_ERROR(FirstToken(*client, parent).status());
    std::vector<double> fork, rollback, first;
    for (int i = 0; i < times; ++i) {
      v1::ForkSessionRequest request;
      request.set_name(parent);
      v1::Session child;
      double start = Seconds();
      RETURN_IF_ERROR(ToStatus(client->ForkSession(request, &child), "ForkSession"));
      fork.push_back(Seconds() - start);
      if (i < times / 4 + 1) {
        ASSIGN_OR_RETURN(first.emplace_back(), FirstToken(*client, child.name()));
        v1::RollbackSessionRequest undo;
        undo.set_name(child.name());
        undo.set_turns(1);
        start = Seconds();
        RETURN_IF_ERROR(ToStatus(client->RollbackSession(undo, &child), "RollbackSession"));
        rollback.push_back(Seconds() - start);
      }
      v1::DeleteSessionRequest remove;
      remove.set_name(child.name());
      RETURN_IF_ERROR(ToStatus(client->DeleteSession(remove), "DeleteSession"));
    }
    figures[absl::StrCat(length)] = {
        {"fork", Spread(fork)}, {"rollback", Spread(rollback)}, {"first_token_of_fork", Spread(first)}};
  }
  return figures;
}

absl::StatusOr<json> RecoveryFigures(const SessionBenchOptions& options) {
  const int streams = options.quick ? 4 : options.streams;
  ServerProcess::Options server_options = ServerOptionsOf(options, {absl::StrCat("--max_queue=", 2 * streams)});
  server_options.same_address = true;
  ServerProcess server(server_options);
  RETURN_IF_ERROR(server.Start());
  ASSIGN_OR_RETURN(const int vocabulary, Vocabulary(*server.NewClient()));
  LoopbackClient client(server.address(), (streams + 15) / 16);
  StreamLoad load = {.streams = streams, .tokens = 1 << 20};
  load.session_prefix = "sessions/k-";
  load.request_id = "r";
  std::thread killer([&] {
    absl::SleepFor(absl::Seconds(options.quick ? 1 : 5));
    server.Kill();
  });
  client.Rate(vocabulary, load).status().IgnoreError();  // they are all cut off
  killer.join();
  const double killed = Seconds();
  RETURN_IF_ERROR(server.Start(absl::Minutes(2)));
  const double ready = Seconds();
  auto resumer = server.NewClient();
  v1::ResumeGenerateRequest resume;
  resume.set_session("sessions/k-0");
  resume.set_request_id("r");
  v1::Generation generation;
  RETURN_IF_ERROR(ToStatus(resumer->GetGeneration("sessions/k-0", "r", &generation), "GetGeneration"));
  resume.set_after_position(generation.position());
  double first = 0;
  const client::Error error = resumer->ResumeGenerate(resume, [&](const v1::GenerationEvent& event) {
    if (event.has_chunk()) first = Seconds();
    return first == 0;
  });
  if (first == 0) RETURN_IF_ERROR(ToStatus(error, "ResumeGenerate"));
  return json{{"streams", streams},
              {"position", generation.position()},
              {"start_to_ready_s", ready - killed},
              {"ready_to_first_token_s", first - ready}};
}

}  // namespace smt::bench
