// A whole server and its device: slots that do not fit; a warm-up; a device that fails, who is told what, and that the
// sessions go on under the next server.
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/engine/torch_executor.h"
#include "server/server.h"
#include "tests/e2e/server_process.h"
#include "tests/server/engine/failing_executor.h"

namespace smt {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAreArray;
using testing::Generate;
using ::testing::HasSubstr;
using testing::Outcome;
using testing::PositionOf;
using testing::Spec;

constexpr char kOpening[] = "It was a dark and stormy night; the rain fell in torrents";
constexpr int64_t kTokens = 300;

// Of the bundled model, with room for two sessions.
ServerOptions Options(const std::string& store_dir) {
  ServerOptions options;
  options.model_dir = "models/books-6m";
  options.store_dir = store_dir;
  options.listen_address = options.metrics_address = "127.0.0.1:0";
  options.device = "cpu";
  options.max_slots = 2;
  options.device_timeout = absl::Seconds(1);
  return options;
}

// Makes executors that fail as `fault` says; null: that do not.
Server::ExecutorFactory Failing(std::shared_ptr<DeviceFault> fault) {
  return [fault](const RunnerOptions& runner, std::string* note) -> absl::StatusOr<std::unique_ptr<Executor>> {
    auto executor = NewTorchExecutor(runner, note);
    if (!executor.ok() || fault == nullptr) return executor;
    return std::make_unique<FailingExecutor>(*std::move(executor), fault);
  };
}

// A server in this process.
class TestServer {
 public:
  explicit TestServer(const std::string& store_dir, std::shared_ptr<DeviceFault> fault = nullptr,
                      const std::string& warmup_batches = "") {
    ServerOptions options = Options(store_dir);
    options.warmup_batches = warmup_batches;
    // A server that has failed must not wait for it.
    options.drain_delay = fault == nullptr ? absl::ZeroDuration() : absl::Minutes(1);
    Server::ExitCode exit_code = Server::kOk;
    auto server = Server::Start(options, &exit_code, Failing(fault));
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    const auto line = nlohmann::json::parse(server_->Announcement());
    client_ = std::make_unique<client::Client>(
        client::Client::Options{.address = line["address"], .stream_timeout = absl::Seconds(60)});
  }

  Server& server() { return *server_; }
  client::Client& client() { return *client_; }
  bool Serving(const std::string& service) {
    bool serving = false;
    EXPECT_TRUE(client_->Health(service, &serving).ok());
    return serving;
  }
  // Until a request writes the session; false after 20 s.
  bool AwaitActive(const std::string& session) {
    for (const absl::Time deadline = absl::Now() + absl::Seconds(20); absl::Now() < deadline;
         absl::SleepFor(absl::Milliseconds(1))) {
      v1::Session found;
      if (client_->GetSession(client::SessionName(session), &found).ok() && found.active()) return true;
    }
    return false;
  }
  int64_t Position(const std::string& session) {
    v1::Session found;
    EXPECT_TRUE(client_->GetSession(client::SessionName(session), &found).ok());
    EXPECT_FALSE(found.active());
    return found.position();
  }

 private:
  std::unique_ptr<Server> server_;
  std::unique_ptr<client::Client> client_;
};

// How a device fails.
enum class Way { kSays, kThrows, kHangs };

class ServerFaultTest : public ::testing::TestWithParam<Way> {
 protected:
  static std::shared_ptr<DeviceFault> NewFault() {
    auto fault = std::make_shared<DeviceFault>();
    fault->throws = GetParam() == Way::kThrows;
    fault->hangs = GetParam() == Way::kHangs;
    return fault;
  }
  static const char* Why() {
    return GetParam() == Way::kHangs ? "DEADLINE_EXCEEDED: it has not answered for 1s"
                                     : "INTERNAL: the device has fallen off the bus";
  }
};

TEST_P(ServerFaultTest, ADeviceFaultEndsEveryRequestWithItsPositionAndDamagesNoSession) {
  const std::string prompts[] = {kOpening, "Once upon a time"};
  testing::TempDir dir;
  Outcome undisturbed[2];
  {
    TestServer server(dir.file("undisturbed"));
    for (int i = 0; i < 2; ++i) undisturbed[i] = Generate(server.client(), Spec("", prompts[i], kTokens, 7 + i));
  }
  ASSERT_EQ(undisturbed[1].ids.size(), static_cast<size_t>(kTokens));
  const auto fault = NewFault();
  int64_t idle_position = 0, waiting_position = 0, positions[2] = {};
  std::vector<int32_t> ids[2];
  {
    TestServer server(dir.file("store"), fault);
    EXPECT_TRUE(server.Serving("") && server.Serving("liveness"));
    idle_position = Generate(server.client(), Spec("idle", kOpening, 5)).finished.position();
    // Two sessions run, a third waits for a slot.
    fault->step_us = 2000;
    std::future<Outcome> running[2];
    for (int i = 0; i < 2; ++i) {
      running[i] = std::async(std::launch::async, [&, i] {
        return Generate(server.client(), Spec(absl::StrCat("running-", i), prompts[i], kTokens, 7 + i));
      });
    }
    ASSERT_TRUE(server.AwaitActive("running-0") && server.AwaitActive("running-1"));
    auto waiting =
        std::async(std::launch::async, [&] { return Generate(server.client(), Spec("waiting", kOpening, kTokens)); });
    ASSERT_TRUE(server.AwaitActive("waiting"));
    EXPECT_TRUE(server.server().fault().ok());
    fault->steps_before = 5;

    for (int i = 0; i < 2; ++i) {
      const Outcome outcome = running[i].get();
      EXPECT_EQ(outcome.error.code, grpc::StatusCode::UNAVAILABLE);
      EXPECT_EQ(outcome.error.reason, "DEVICE_FAULT");
      EXPECT_TRUE(outcome.error.retry_delay.has_value());
      positions[i] = PositionOf(outcome.error);
      ids[i] = outcome.ids;
      EXPECT_GE(positions[i], outcome.last_position);
      EXPECT_LT(static_cast<int64_t>(outcome.ids.size()), kTokens);
      EXPECT_THAT(outcome.error.message,
                  AllOf(HasSubstr(Why()),
                        HasSubstr(absl::StrCat("session 'running-", i, "' stands at position ", positions[i])),
                        HasSubstr("go on from there once the server has restarted")));
    }
    const Outcome waited = waiting.get();
    EXPECT_EQ(waited.error.code, grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(waited.error.reason, "DEVICE_FAULT");
    waiting_position = PositionOf(waited.error);
    EXPECT_GT(waiting_position, 0);

    // Whoever has been told finds health off already, and nothing turns it on again.
    for (int i = 0; i < 2; ++i) {
      for (const char* service : {"", "smt.v1.GenerationService", "liveness"}) EXPECT_FALSE(server.Serving(service));
      server.server().CheckHealth();
    }
    EXPECT_FALSE(server.server().fault().ok());
    // A refused request does not move its session.
    const Outcome refused = Generate(server.client(), Spec("idle", " and then", 5));
    EXPECT_EQ(refused.error.code, grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(refused.error.reason, "DEVICE_FAULT");
    EXPECT_EQ(server.Position("idle"), idle_position);
    EXPECT_EQ(Generate(server.client(), Spec("", kOpening, 5)).error.reason, "DEVICE_FAULT");
    const absl::Time begin = absl::Now();
    server.server().Stop();
    EXPECT_LT(absl::Now() - begin, absl::Seconds(10));
  }
  fault->hangs = false;  // the lost thread comes back, and does nothing

  TestServer next(dir.file("store"));
  EXPECT_TRUE(next.Serving(""));
  EXPECT_EQ(next.Position("idle"), idle_position);
  EXPECT_TRUE(Generate(next.client(), Spec("idle", " and then", 5)).error.ok());
  EXPECT_EQ(next.Position("waiting"), waiting_position);
  EXPECT_TRUE(Generate(next.client(), Spec("waiting", "", 5)).error.ok());
  for (int i = 0; i < 2; ++i) {
    const std::string session = absl::StrCat("running-", i);
    ASSERT_EQ(next.Position(session), positions[i]);
    // What was not sent any more is in the log: one text, as if nothing had happened.
    const std::vector<int32_t>& want = undisturbed[i].ids;
    const int64_t generated = positions[i] - undisturbed[i].started.prompt_tokens();
    ASSERT_GE(generated, static_cast<int64_t>(ids[i].size()));
    const Outcome rest = Generate(next.client(), Spec(session, "", kTokens - generated, 7 + i));
    ASSERT_TRUE(rest.error.ok()) << rest.error.message;
    EXPECT_THAT(ids[i], ElementsAreArray(want.begin(), want.begin() + static_cast<int64_t>(ids[i].size())));
    EXPECT_THAT(rest.ids, ElementsAreArray(want.begin() + generated, want.end()));
  }
}

TEST_P(ServerFaultTest, ADeviceThatFailsInItsWarmUpDoesNotStart) {
  testing::TempDir dir;
  ServerOptions options = Options(dir.file("store"));
  options.warmup_batches = "1,2";
  const auto fault = NewFault();
  fault->steps_before = 20;
  Server::ExitCode exit_code = Server::kOk;
  const auto server = Server::Start(options, &exit_code, Failing(fault));
  EXPECT_EQ(exit_code, Server::kDeviceFault);
  EXPECT_EQ(server.status(), absl::InternalError(absl::StrCat("the device failed in its warm-up: ", Why())));
  fault->hangs = false;
}

TEST(ServerWarmUpTest, AWarmServerGeneratesWhatAColdOneDoes) {
  testing::TempDir dir;
  Outcome outcomes[2];
  for (const bool warm : {false, true}) {
    TestServer server(dir.file(warm ? "warm" : "cold"), nullptr, warm ? "1,2" : "");
    outcomes[warm] = Generate(server.client(), Spec("", kOpening, 60));
  }
  EXPECT_EQ(outcomes[1].ids.size(), 60u);
  EXPECT_EQ(outcomes[1].ids, outcomes[0].ids);
}

TEST(ServerSlotsTest, SlotsThatDoNotFitNameTheFlagAndTheArithmetic) {
  testing::TempDir dir;
  ServerOptions options;
  options.model_dir = "models/books-6m";
  options.store_dir = dir.file("store");
  options.listen_address = options.metrics_address = "127.0.0.1:0";
  const SlotCapacity device = {
      .total_bytes = 1'000'000'000, .free_bytes = 900'000'000, .work_bytes = 100'000'000, .slot_bytes = 20'000'000};
  int32_t asked = 0;
  const auto start = [&](int32_t max_slots) {
    options.max_slots = max_slots;
    Server::ExitCode exit_code = Server::kOk;
    const auto server =
        Server::Start(options, &exit_code,
                      [&](const RunnerOptions& runner, std::string* note) -> absl::StatusOr<std::unique_ptr<Executor>> {
                        const auto slots = SlotsThatFit(device, runner.slots, runner.fewer_slots);
                        if (!slots.ok()) return slots.status();
                        asked = *slots;
                        return absl::UnavailableError("no device is needed to see that");
                      });
    EXPECT_EQ(exit_code, Server::kDevice);
    return server.status();
  };
  EXPECT_EQ(start(41),
            absl::ResourceExhaustedError(
                "--max_slots=41: slots is 41: at 20000000 bytes each they need 820 MB; the device offers 900 "
                "MB of its 1000 MB, 100 MB of them for the work area; allowed: 1 to 40; 0 takes as many as "
                "fit"));
  EXPECT_EQ(start(40).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(asked, 40);
  EXPECT_EQ(start(0).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(asked, 40);
}

INSTANTIATE_TEST_SUITE_P(Ways, ServerFaultTest, ::testing::Values(Way::kSays, Way::kThrows, Way::kHangs));

}  // namespace
}  // namespace smt
