#include "tests/benchmarks/baseline.h"

#include <gtest/gtest.h>

namespace smt::bench {
namespace {

using nlohmann::json;

TEST(CompareTest, AddsHowManyTimesAsFastEachOfTheBaselinesFiguresIs) {
  const json baseline = json::parse(R"({
    "copy_TB_s": 4, "hop_whole": {"64": {"graph_ms": 4, "graph_tok_s": 1000, "limit_tok_s": 8000, "note": "x"}},
    "mamba_step": {"1": {"graph_ms": 2, "limit_ms": 0.5}}})");
  json figures = json::parse(R"({
    "hop_whole": {"64": {"tok_s": 2000, "token_ms": 2}, "256": {"skipped": "too many"}},
    "mamba_step": {"1": {"ms": 1}}, "machine": {"1": {"device": "d"}}})");
  Compare(baseline, &figures);
  const json expected = json::parse(R"({
    "hop_whole": {"64": {"tok_s": 2000, "token_ms": 2, "speed_over_graph_ms": 2, "speed_over_graph_tok_s": 2,
                         "speed_over_limit_tok_s": 0.25}, "256": {"skipped": "too many"}},
    "mamba_step": {"1": {"ms": 1, "speed_over_graph_ms": 2, "speed_over_limit_ms": 0.5}},
    "machine": {"1": {"device": "d"}}})");
  EXPECT_EQ(figures, expected);
}

TEST(ReadBaselineTest, RefusesWhatIsNotAJsonObject) {
  EXPECT_EQ(ReadBaseline("README.md").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace smt::bench
