// The promise of the whole: a session goes on after the server is killed, token for token as if nothing had happened.
// Real server processes, a real client, SIGKILL.
#include <signal.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/e2e/proxy.h"
#include "tests/e2e/server_process.h"

namespace smt::testing {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kOpening[] = "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals";
constexpr char kSecond[] = " The captain looked up from his chart and said";
constexpr char kThird[] = " Nobody had expected";

// Ids of three turns of one session on a server that is never disturbed.
std::vector<std::vector<int32_t>> Undisturbed(int64_t tokens) {
  ServerProcess server;
  EXPECT_TRUE(server.Start().ok());
  auto client = server.NewClient();
  std::vector<std::vector<int32_t>> turns;
  for (const char* prompt : {kOpening, kSecond, kThird}) {
    Outcome outcome = Generate(*client, Spec("story", prompt, tokens));
    EXPECT_TRUE(outcome.error.ok()) << outcome.error.message;
    turns.push_back(outcome.ids);
  }
  return turns;
}

TEST(SessionRestartTest, ContinuesAfterSigkillExactlyAsAnUndisturbedServerWould) {
  // Longer than a snapshot interval would need is too slow here; 90 ids cross several writes and end between two.
  const auto want = Undisturbed(90);
  ServerProcess server;
  for (int turn = 0; turn < 3; ++turn) {
    ASSERT_TRUE(server.Start().ok()) << server.Stderr();
    auto client = server.NewClient();
    const Outcome outcome = Generate(*client, Spec("story", turn == 0 ? kOpening : turn == 1 ? kSecond : kThird, 90));
    ASSERT_TRUE(outcome.error.ok()) << outcome.error.message;
    EXPECT_THAT(outcome.ids, ElementsAreArray(want[turn])) << "turn " << turn;
    EXPECT_EQ(outcome.finished.durable_position(), outcome.finished.position());
    server.Kill();
  }
}

TEST(SessionRestartTest, KeepsATokenBoundaryWhenKilledInTheMiddleOfATurn) {
  ServerProcess server;
  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  auto client = server.NewClient();
  const Outcome first = Generate(*client, Spec("story", kOpening, 20));
  ASSERT_TRUE(first.error.ok()) << first.error.message;
  std::thread killer;
  Outcome broken;
  broken.error = client->StreamGenerate(Spec("story", kSecond, 100000), [&](const v1::GenerationEvent& event) {
    if (event.has_chunk()) broken.last_position = event.chunk().position();
    if (event.has_chunk() && !killer.joinable()) killer = std::thread([&] { server.Kill(); });
    return true;
  });
  ASSERT_TRUE(killer.joinable());
  killer.join();
  EXPECT_FALSE(broken.error.ok());

  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  client = server.NewClient();
  v1::Session session;
  ASSERT_TRUE(client->GetSession("sessions/story", &session).ok());
  // The prompt was durable before `started`; of the generated ids a prefix may be.
  EXPECT_GT(session.position(), first.finished.position());
  EXPECT_FALSE(session.active());
  const Outcome next = Generate(*client, Spec("story", kThird, 20));
  EXPECT_TRUE(next.error.ok()) << next.error.message;
  EXPECT_EQ(next.started.start_position(), session.position());
}

// Sampling that looks back: a resumed stream must count what came before it.
v1::GenerationSpec LookingBack(int64_t tokens) {
  v1::GenerationSpec spec = Spec("story", kOpening, tokens);
  spec.set_request_id("long");
  spec.mutable_sampling()->set_repetition_penalty(1.2F);
  spec.mutable_sampling()->set_presence_penalty(0.3F);
  spec.mutable_sampling()->set_frequency_penalty(0.1F);
  spec.mutable_stopping()->add_stop_strings("no such text \x01");
  return spec;
}

struct Restarts {
  const char* name;
  v1::Durability durability;
  bool kill;  // else SIGTERM
};
class RestartedStreamTest : public ::testing::TestWithParam<Restarts> {};

TEST_P(RestartedStreamTest, GoesOnAsIfNothingHadHappened) {
  constexpr int64_t kTokens = 1500;
  Outcome want;
  {
    ServerProcess server;
    ASSERT_TRUE(server.Start().ok()) << server.Stderr();
    want = Generate(*server.NewClient(), LookingBack(kTokens));
    ASSERT_TRUE(want.error.ok()) << want.error.message;
  }
  v1::GenerationSpec spec = LookingBack(kTokens);
  spec.set_durability(GetParam().durability);
  ServerProcess server({.same_address = true});
  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  const auto client = server.NewClient();  // of the address, which the next server has again
  std::vector<int32_t> ids;
  std::string text;
  std::thread restarter;
  size_t restart_at = 200;
  int starts = 0;
  v1::GenerationFinished finished;
  const auto restart = [&] {
    if (GetParam().kill) {
      server.Kill();
    } else {
      EXPECT_TRUE(server.Terminate().ok());
    }
    EXPECT_TRUE(server.Start().ok()) << server.Stderr();
  };
  const client::Error error =
      client->StreamThroughRestarts(spec, absl::Seconds(60), [&](const v1::GenerationEvent& event) {
        starts += event.has_started() ? 1 : 0;
        if (event.has_chunk()) {
          ids.insert(ids.end(), event.chunk().token_ids().begin(), event.chunk().token_ids().end());
          text += event.chunk().text();
          if (GetParam().durability == v1::DURABILITY_TOKEN) {
            EXPECT_LE(event.chunk().position(), event.chunk().durable_position());
          }
        }
        if (event.has_finished()) finished = event.finished();
        if (ids.size() >= restart_at && restart_at < 1200) {
          restart_at = ids.size() + 300;
          if (restarter.joinable()) restarter.join();
          restarter = std::thread(restart);
        }
        return true;
      });
  ASSERT_TRUE(restarter.joinable());
  restarter.join();
  ASSERT_TRUE(error.ok()) << error.message;
  EXPECT_THAT(ids, ElementsAreArray(want.ids));
  EXPECT_EQ(text, want.text);
  EXPECT_EQ(starts, 1) << "the caller sees one stream";
  EXPECT_EQ(finished.digest(), want.finished.digest());
  EXPECT_EQ(finished.usage().generated_tokens(), kTokens);
}
INSTANTIATE_TEST_SUITE_P(SessionRestart, RestartedStreamTest,
                         ::testing::Values(Restarts{"KilledTurn", v1::DURABILITY_TURN, true},
                                           Restarts{"KilledToken", v1::DURABILITY_TOKEN, true},
                                           Restarts{"DrainedTurn", v1::DURABILITY_TURN, false}),
                         [](const auto& info) { return info.param.name; });

TEST(SessionRestartTest, StopEndsAStreamInACallAndWhileTheServerIsAway) {
  ServerProcess server;
  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  const auto client = server.NewClient();
  v1::GenerationSpec spec = LookingBack(100'000);
  client::StreamStop in_call;
  std::thread stopper;
  client::Error error = client->StreamThroughRestarts(
      spec, absl::Minutes(5),
      [&](const v1::GenerationEvent& event) {
        if (event.has_chunk() && !stopper.joinable()) stopper = std::thread([&] { in_call.Stop(); });
        return true;
      },
      &in_call);
  ASSERT_TRUE(stopper.joinable());
  stopper.join();
  EXPECT_EQ(error.code, grpc::StatusCode::CANCELLED) << error.message;

  server.Kill();
  client::StreamStop away;
  std::thread later([&] {
    absl::SleepFor(absl::Milliseconds(300));
    away.Stop();
  });
  const absl::Time began = absl::Now();
  error = client->StreamThroughRestarts(
      spec, absl::Minutes(5), [](const v1::GenerationEvent&) { return true; }, &away);
  later.join();
  EXPECT_FALSE(error.ok());
  EXPECT_LT(absl::Now() - began, absl::Minutes(1)) << "patience would have lasted five";
}

TEST(SessionRestartTest, AStreamGoesOnThatBrokeOffBeforeItCouldSayThatItHadBegun) {
  ServerProcess server;
  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  v1::GenerationSpec spec = LookingBack(2000);
  spec.set_on_disconnect(v1::DISCONNECT_POLICY_CONTINUE);
  const Outcome want = Generate(*server.NewClient(), spec);
  ASSERT_TRUE(want.error.ok()) << want.error.message;

  spec.set_session(client::SessionName("far"));
  Proxy proxy(1);
  proxy.SetUpstream(server.address());
  client::Client far({.address = proxy.address(0)});
  ASSERT_TRUE(far.WaitForConnection(absl::Seconds(10)));
  // The request arrives, its answer does not.
  proxy.Delay(0, absl::Milliseconds(400), absl::Milliseconds(100));
  std::thread breaker([&] {
    v1::Generation generation;
    const auto near = server.NewClient();
    while (!near->GetGeneration(spec.session(), spec.request_id(), &generation).ok()) {
      absl::SleepFor(absl::Milliseconds(5));
    }
    proxy.Drop(0);
  });
  Outcome got;
  int starts = 0;
  got.error = far.StreamThroughRestarts(spec, absl::Seconds(60), [&](const v1::GenerationEvent& event) {
    starts += event.has_started() ? 1 : 0;
    got.ids.insert(got.ids.end(), event.chunk().token_ids().begin(), event.chunk().token_ids().end());
    return true;
  });
  breaker.join();
  EXPECT_TRUE(got.error.ok()) << got.error.message;
  EXPECT_EQ(starts, 1);
  EXPECT_THAT(got.ids, ElementsAreArray(want.ids));
}

TEST(SessionRestartTest, EndsRunningStreamsWithTheirPositionOnSigterm) {
  ServerProcess server;
  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  auto client = server.NewClient();
  std::thread terminator;
  absl::StatusOr<int> exit_code = absl::UnknownError("not ended");
  int64_t last = 0;
  const client::Error error =
      client->StreamGenerate(Spec("story", kOpening, 1000000), [&](const v1::GenerationEvent& event) {
        if (event.has_chunk()) last = event.chunk().position();
        if (event.has_chunk() && !terminator.joinable()) {
          terminator = std::thread([&] { exit_code = server.Terminate(absl::Seconds(10)); });
        }
        return true;
      });
  ASSERT_TRUE(terminator.joinable());
  terminator.join();
  ASSERT_TRUE(exit_code.ok()) << "still running after 10 s: " << server.Stderr();
  EXPECT_EQ(*exit_code, 0);
  EXPECT_EQ(error.code, grpc::StatusCode::UNAVAILABLE) << error.message;
  const int64_t reported = PositionOf(error);
  EXPECT_GE(reported, last);

  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  v1::Session session;
  ASSERT_TRUE(server.NewClient()->GetSession("sessions/story", &session).ok());
  EXPECT_EQ(session.position(), reported);
}

TEST(SessionRestartTest, ADeviceFaultEndsTheProcessWithItsStatusAndTheNextServerGoesOnExactly) {
  const auto want = Undisturbed(90);
  // The first turn takes 91 steps at most, so the fault comes in the second.
  ServerProcess faulty({.program = "smt_faulty_server", .flags = {"--drain_delay=60s", "--fail_after_steps=120"}});
  ASSERT_TRUE(faulty.Start().ok()) << faulty.Stderr();
  auto client = faulty.NewClient();
  const Outcome first = Generate(*client, Spec("story", kOpening, 90));
  ASSERT_TRUE(first.error.ok()) << first.error.message;
  EXPECT_THAT(first.ids, ElementsAreArray(want[0]));
  const Outcome broken = Generate(*client, Spec("story", kSecond, 90));
  EXPECT_EQ(broken.error.code, grpc::StatusCode::UNAVAILABLE) << broken.error.message;
  EXPECT_EQ(broken.error.reason, "DEVICE_FAULT");
  const int64_t position = PositionOf(broken.error);
  EXPECT_GE(position, broken.last_position);
  const auto exit_code = faulty.WaitForExit(absl::Seconds(10));
  ASSERT_TRUE(exit_code.ok()) << "still running after 10 s: " << faulty.Stderr();
  EXPECT_EQ(*exit_code, 6) << faulty.Stderr();
  EXPECT_THAT(faulty.Stderr(), HasSubstr("\"msg\":\"the device failed"));
  EXPECT_THAT(faulty.Stderr(), HasSubstr("\"msg\":\"stopped\""));

  ServerProcess next({.store_dir = faulty.store_dir()});
  ASSERT_TRUE(next.Start().ok()) << next.Stderr();
  client = next.NewClient();
  v1::Session session;
  ASSERT_TRUE(client->GetSession("sessions/story", &session).ok());
  EXPECT_EQ(session.position(), position);
  const int64_t done = position - broken.started.start_position() - broken.started.prompt_tokens();
  ASSERT_GE(done, static_cast<int64_t>(broken.ids.size()));
  ASSERT_LT(done, 90);
  const Outcome rest = Generate(*client, Spec("story", "", 90 - done));
  ASSERT_TRUE(rest.error.ok()) << rest.error.message;
  EXPECT_THAT(rest.ids, ElementsAreArray(want[1].begin() + done, want[1].end()));
  const Outcome third = Generate(*client, Spec("story", kThird, 90));
  EXPECT_THAT(third.ids, ElementsAreArray(want[2]));
}

TEST(SessionRestartTest, ADeviceThatHangsEndsTheProcessAndTheNextServerGoesOnExactly) {
  const auto want = Undisturbed(90);
  ServerProcess hanging({.program = "smt_faulty_server",
                         .flags = {"--drain_delay=60s", "--fail_after_steps=40", "--hang", "--device_timeout=2s"}});
  ASSERT_TRUE(hanging.Start().ok()) << hanging.Stderr();
  const Outcome broken = Generate(*hanging.NewClient(), Spec("story", kOpening, 90));
  EXPECT_EQ(broken.error.code, grpc::StatusCode::UNAVAILABLE) << broken.error.message;
  EXPECT_EQ(broken.error.reason, "DEVICE_FAULT");
  const int64_t position = PositionOf(broken.error);
  const auto exit_code = hanging.WaitForExit(absl::Seconds(10));
  ASSERT_TRUE(exit_code.ok()) << "still running after 10 s: " << hanging.Stderr();
  EXPECT_EQ(*exit_code, 6) << hanging.Stderr();
  EXPECT_THAT(hanging.Stderr(), HasSubstr("it has not answered for 2s"));

  ServerProcess next({.store_dir = hanging.store_dir()});
  ASSERT_TRUE(next.Start().ok()) << next.Stderr();
  const int64_t done = position - broken.started.start_position() - broken.started.prompt_tokens();
  ASSERT_GE(done, static_cast<int64_t>(broken.ids.size()));
  ASSERT_LT(done, 90);
  const Outcome rest = Generate(*next.NewClient(), Spec("story", "", 90 - done));
  ASSERT_TRUE(rest.error.ok()) << rest.error.message;
  EXPECT_THAT(rest.ids, ElementsAreArray(want[0].begin() + done, want[0].end()));
}

TEST(SessionRestartTest, ADeviceThatHangsInItsWarmUpEndsTheProcess) {
  ServerProcess hanging({.program = "smt_faulty_server",
                         .flags = {"--warm_up", "--fail_after_steps=3", "--hang", "--device_timeout=1s"}});
  EXPECT_FALSE(hanging.Start().ok());
  const auto exit_code = hanging.WaitForExit(absl::Seconds(10));
  ASSERT_TRUE(exit_code.ok()) << "still running after 10 s: " << hanging.Stderr();
  EXPECT_EQ(*exit_code, 6) << hanging.Stderr();
}

TEST(SessionRestartTest, SessionsThatDoNotFitIntoSlotsAreParkedAndComeBackUnchanged) {
  const auto want = Undisturbed(24);
  ServerProcess server({.flags = {"--max_slots=2"}});
  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  auto client = server.NewClient();
  for (int turn = 0; turn < 3; ++turn) {
    for (int i = 0; i < 5; ++i) {
      const char* prompt = turn == 0 ? kOpening : turn == 1 ? kSecond : kThird;
      const Outcome outcome = Generate(*client, Spec(absl::StrCat("story-", i), prompt, 24));
      ASSERT_TRUE(outcome.error.ok()) << outcome.error.message;
      EXPECT_THAT(outcome.ids, ElementsAreArray(want[turn])) << "turn " << turn << " of session " << i;
    }
  }
}

TEST(SessionRestartTest, ManyStreamsAtOnceGiveWhatEachGivesAlone) {
  ServerProcess server;
  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  auto client = server.NewClient();
  std::vector<Outcome> together(12);
  std::vector<std::thread> threads;
  const auto prompt = [](int i) { return std::string(kOpening).substr(0, 10 + 5 * i); };
  for (int i = 0; i < 12; ++i) {
    threads.emplace_back([&, i] { together[i] = Generate(*client, Spec("", prompt(i), 40 + i, i)); });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 12; ++i) {
    const Outcome alone = Generate(*client, Spec("", prompt(i), 40 + i, i));
    ASSERT_TRUE(alone.error.ok()) << alone.error.message;
    EXPECT_THAT(together[i].ids, ElementsAreArray(alone.ids)) << "stream " << i;
    EXPECT_EQ(together[i].text, alone.text);
  }
}

TEST(SessionRestartTest, AClientThatVanishesLeavesTheSessionAtATokenBoundary) {
  ServerProcess server;
  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  auto client = server.NewClient();
  for (int64_t after = 0; after < 40; after += 7) {
    const std::string name = absl::StrCat("gone-", after);
    Generate(*client, Spec(name, kOpening, 100000), after);
    v1::Session session;
    for (int i = 0; i < 500; ++i) {
      const client::Error error = client->GetSession("sessions/" + name, &session);
      ASSERT_TRUE(error.ok()) << error.message;
      if (!session.active()) break;
      absl::SleepFor(absl::Milliseconds(10));
    }
    ASSERT_FALSE(session.active()) << "the request still runs 5 s after its client went";
    const Outcome next = Generate(*client, Spec(name, kSecond, 10));
    EXPECT_TRUE(next.error.ok()) << next.error.message;
    EXPECT_EQ(next.started.start_position(), session.position());
    EXPECT_EQ(next.ids.size(), 10U);
  }
}

TEST(SessionRestartTest, ASecondWriterIsTurnedAwayAtOnce) {
  ServerProcess server;
  ASSERT_TRUE(server.Start().ok()) << server.Stderr();
  auto client = server.NewClient();
  client::Error second;
  bool asked = false;
  Generate(*client, Spec("story", kOpening, 3));
  client
      ->StreamGenerate(Spec("story", kOpening, 100000),
                       [&](const v1::GenerationEvent& event) {
                         if (!event.has_chunk()) return true;
                         second = Generate(*client, Spec("story", kSecond, 5)).error;
                         asked = true;
                         return false;
                       })
      .ok();
  ASSERT_TRUE(asked);
  EXPECT_EQ(second.code, grpc::StatusCode::ABORTED) << second.message;
  EXPECT_TRUE(second.retry_delay.has_value());
}

}  // namespace
}  // namespace smt::testing
