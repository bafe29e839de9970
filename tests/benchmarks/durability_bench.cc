// What durability costs a server that is busy all the time: no burst that is over before the disk was waited for twice.
#include <algorithm>
#include <array>
#include <iostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/base/status_macros.h"
#include "tests/benchmarks/bench_util.h"
#include "tests/benchmarks/loopback_client.h"
#include "tests/benchmarks/server_under_test.h"
#include "tests/benchmarks/session_server_bench.h"
#include "tests/benchmarks/turn_client.h"

namespace smt::bench {
namespace {

using nlohmann::json;
using testing::ServerProcess;

struct Kind {
  const char* name;
  v1::Durability durability;
};
constexpr std::array<Kind, 3> kKinds = {
    {{"none", v1::DURABILITY_NONE}, {"turn", v1::DURABILITY_TURN}, {"token", v1::DURABILITY_TOKEN}}};

// All six, one after the other: what one kind leaves to be written falls into the time of the next.
std::array<int, 3> OrderOf(int round) {
  std::array<int, 3> order = {0, 1, 2};
  for (int i = 0; i < round % 6; ++i) std::next_permutation(order.begin(), order.end());
  return order;
}

json ToJson(int round, const Kind& kind, const TurnInterval& interval) {
  const WindowTally::Figures& f = interval.figures;
  return {{"round", round},
          {"durability", kind.name},
          {"tok_s", f.tokens_per_s},
          {"tokens_a_message", f.tokens_a_message},
          {"gap_p50_ms", f.gap_p50 * 1e3},
          {"gap_p99_ms", f.gap_p99 * 1e3},
          {"first_token_p50_ms", f.first_token_p50 * 1e3},
          {"first_token_p99_ms", f.first_token_p99 * 1e3},
          {"turns", f.turns},
          {"client_cores", interval.client_cores},
          {"server_cores", interval.server_cores}};
}

// "round 0 turn: 99,844 tokens/s, …", on stderr while it runs.
void Tell(int round, const Kind& kind, const TurnInterval& interval) {
  const WindowTally::Figures& f = interval.figures;
  std::cerr << absl::StrFormat(
                   "\nround %d %-5s %7.0f tokens/s, gap p50 %.2f p99 %.2f ms, first token p50 %.1f p99 %.1f ms, %d "
                   "turns, cores %.2f client %.2f server",
                   round, kind.name, f.tokens_per_s, f.gap_p50 * 1e3, f.gap_p99 * 1e3, f.first_token_p50 * 1e3,
                   f.first_token_p99 * 1e3, f.turns, interval.client_cores, interval.server_cores)
            << std::flush;
}

std::vector<double> Ratios(const std::vector<double>& kind, const std::vector<double>& none) {
  std::vector<double> ratios;
  for (size_t round = 0; round < kind.size(); ++round)
    ratios.push_back(none[round] > 0 ? kind[round] / none[round] : 0);
  return ratios;
}

}  // namespace

absl::StatusOr<json> DurabilityFigures(const SessionBenchOptions& options) {
  const int streams = options.quick ? 4 : options.streams;
  ServerProcess::Options server_options = ServerOptionsOf(
      options, {absl::StrCat("--max_slots=", 3 * streams), absl::StrCat("--ingest_tokens_per_step=", 1 << 20)});
  if (options.step_us >= 0) {
    server_options.program = "smt_paced_server";
    server_options.flags.push_back(absl::StrCat("--step_time=", options.step_us, "us"));
    server_options.flags.push_back(absl::StrCat("--state_bytes=", options.state_bytes));
  }
  ServerProcess server(server_options);
  RETURN_IF_ERROR(server.Start());
  TurnLoad load = {.streams = streams, .tokens = options.quick ? 16 : options.tokens, .temperature = 0.8f};
  load.top_p = 0.95f;
  load.seconds = options.quick ? 0.3 : options.seconds;
  load.warm_up_s = options.quick ? 0.1 : options.warm_up_s;
  ASSIGN_OR_RETURN(load.vocabulary, Vocabulary(*server.NewClient()));
  LoopbackClient client(server.address(), (streams + 15) / 16);
  std::array<std::vector<double>, 3> rates;
  json intervals = json::array();
  for (int round = -1; round < options.rounds; ++round) {  // the first is not counted
    for (const int k : OrderOf(round + 1)) {
      const Kind& kind = kKinds[static_cast<size_t>(k)];
      load.durability = kind.durability;
      load.session_prefix = absl::StrCat("sessions/d", k, "-");
      load.request_prefix = absl::StrCat("r", round + 1, "-");
      ASSIGN_OR_RETURN(const TurnInterval interval, RunTurns(client.stubs(), load, server.pid()));
      Tell(round, kind, interval);
      if (round < 0) continue;
      rates[static_cast<size_t>(k)].push_back(interval.figures.tokens_per_s);
      intervals.push_back(ToJson(round, kind, interval));
    }
  }
  std::cerr << "\n";
  json result = {{"streams", streams}, {"tokens_a_turn", load.tokens}, {"seconds", load.seconds}};
  for (size_t k = 0; k < kKinds.size(); ++k) {
    const std::string name = kKinds[k].name;
    result[name + "_tok_s"] = Median(rates[k]);
    result[name + "_rounds"] = rates[k];
    if (k == 0 || rates[k].empty()) continue;
    const std::vector<double> ratios = Ratios(rates[k], rates[0]);
    const auto [least, greatest] = std::minmax_element(ratios.begin(), ratios.end());
    result[name + "_over_none"] = Median(ratios);
    result[name + "_over_none_range"] = {*least, *greatest};
  }
  result["intervals"] = std::move(intervals);
  return result;
}

}  // namespace smt::bench
