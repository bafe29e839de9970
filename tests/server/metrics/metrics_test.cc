#include <CivetServer.h>
#include <gmock/gmock.h>

#include <atomic>
#include <regex>
#include <set>

#include "absl/time/clock.h"
#include "server/metrics/engine_metrics_adapter.h"
#include "server/metrics/http_server.h"
#include "server/metrics/server_metrics.h"
#include "tests/server/store/status_testing.h"

namespace smt {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;

TEST(MetricTableTest, IsOrderedByIdWithUniqueConventionalNames) {
  ASSERT_EQ(MetricTable().size(), static_cast<size_t>(Metric::kCount));
  std::set<std::string> names;
  for (size_t i = 0; i < MetricTable().size(); ++i) {
    const MetricSpec& spec = MetricTable()[i];
    EXPECT_EQ(static_cast<size_t>(spec.id), i) << spec.name;
    EXPECT_TRUE(names.insert(spec.name).second) << spec.name;
    EXPECT_THAT(spec.name, MatchesRegex("(smt|grpc_server)_[a-z0-9_]+"));
    EXPECT_FALSE(spec.help.empty());
    EXPECT_EQ(spec.kind == MetricKind::kCounter, spec.name.ends_with("_total")) << spec.name;
    EXPECT_EQ(spec.kind == MetricKind::kHistogram, !spec.buckets.empty()) << spec.name;
    EXPECT_TRUE(std::is_sorted(spec.buckets.begin(), spec.buckets.end())) << spec.name;
    for (const std::string& label : spec.labels) EXPECT_NE(label, "session_id");
  }
}

TEST(ServerMetricsTest, ValuesAppearUnderTheirLabels) {
  ServerMetrics metrics;
  metrics.Add(Metric::kGenerationsFinishedTotal, 2, {"max_tokens"});
  metrics.Set(Metric::kStateSlots, 3, {"idle"});
  metrics.Observe(Metric::kTimeToFirstTokenSeconds, absl::Milliseconds(30), {"warm"});
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("smt_generations_finished_total{reason=\"max_tokens\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("smt_state_slots{state=\"idle\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("smt_time_to_first_token_seconds_bucket{session=\"warm\",le=\"0.025\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("smt_time_to_first_token_seconds_bucket{session=\"warm\",le=\"0.05\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("smt_prompt_tokens_total 0\n"));
  EXPECT_THAT(text, HasSubstr("process_resident_memory_bytes "));
}

TEST(ServerMetricsTest, EveryLineIsPrometheusText) {
  ServerMetrics metrics;
  NewEngineMetrics(&metrics)->OnStep({.batch_size = 4});
  const std::string text = metrics.Text();
  const std::regex line(
      R"((#.*|[a-z0-9_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [-+0-9.e]+|[a-z0-9_]+.* (\+Inf|NaN))?)");
  std::istringstream lines(text);
  for (std::string one; std::getline(lines, one);) EXPECT_TRUE(std::regex_match(one, line)) << one;
}

TEST(ServerMetricsTest, TheHookRunsBeforeEachScrapeUntilItIsTakenAway) {
  ServerMetrics metrics;
  int calls = 0;
  metrics.SetCollectHook([&] { metrics.Set(Metric::kNumRequestsRunning, ++calls); });
  metrics.Text();
  EXPECT_THAT(metrics.Text(), HasSubstr("smt_num_requests_running 2\n"));
  metrics.SetCollectHook(nullptr);
  metrics.Text();
  EXPECT_EQ(calls, 2);
}

TEST(EngineMetricsTest, APhaseThatAStepDidNotHaveIsNotObserved) {
  ServerMetrics metrics;
  StepMetrics step;
  step.batch_size = 5;
  step.timings.decode = 0.002;
  step.duration = absl::Milliseconds(3);
  NewEngineMetrics(&metrics)->OnStep(step);
  EXPECT_THAT(metrics.Text(), HasSubstr("smt_engine_step_duration_seconds_count{phase=\"decode\"} 1\n"));
  EXPECT_THAT(metrics.Text(), HasSubstr("smt_engine_step_duration_seconds_count{phase=\"write\"} 0\n"));
  EXPECT_THAT(metrics.Text(), HasSubstr("smt_engine_step_duration_seconds_sum{phase=\"all\"} 0.003\n"));
  EXPECT_THAT(metrics.Text(), HasSubstr("smt_batch_size_sum 5\n"));
}

std::string Get(int port, const std::string& path) {
  char error[128];
  mg_connection* connection =
      mg_download("127.0.0.1", port, 0, error, sizeof(error), "GET %s HTTP/1.0\r\n\r\n", path.c_str());
  if (connection == nullptr) return error;
  std::string body(1 << 16, '\0');
  const int status = mg_get_response_info(connection)->status_code;
  const int read = mg_read(connection, body.data(), body.size());
  mg_close_connection(connection);
  body.resize(std::max(read, 0));
  return std::to_string(status) + " " + body;
}

TEST(HttpServerTest, ServesMetricsHealthAndReadiness) {
  std::atomic<bool> ready{false};
  auto server = HttpServer::Start({.address = "127.0.0.1:0",
                                   .metrics = [] { return std::string("m 1\n"); },
                                   .ready = [&] { return ready.load(); }});
  ASSERT_OK(server);
  const int port = (*server)->port();
  EXPECT_EQ(Get(port, "/metrics"), "200 m 1\n");
  EXPECT_EQ(Get(port, "/healthz"), "200 ok\n");
  EXPECT_EQ(Get(port, "/readyz"), "503 not ready\n");
  ready = true;
  EXPECT_EQ(Get(port, "/readyz"), "200 ready\n");
  EXPECT_THAT(Get(port, "/etc/passwd"), testing::StartsWith("404"));
  const auto second =
      HttpServer::Start({.address = "127.0.0.1:" + std::to_string(port), .metrics = nullptr, .ready = nullptr});
  EXPECT_THAT(second, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("cannot listen")));
}

TEST(HttpServerTest, StopsAtOnce) {
  auto server = HttpServer::Start({.address = "127.0.0.1:0", .metrics = nullptr, .ready = nullptr});
  ASSERT_OK(server);
  const absl::Time start = absl::Now();
  server->reset();
  EXPECT_LT(absl::Now() - start, absl::Milliseconds(500));
}

}  // namespace
}  // namespace smt
