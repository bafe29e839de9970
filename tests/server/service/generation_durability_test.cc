// What is on disk when a client hears of it, and what becomes of streams whose store fails.
#include <atomic>
#include <thread>

#include "model/base/strings.h"
#include "tests/server/service/service_testing.h"

namespace smt {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

class GenerationDurabilityTest : public ServiceTest {};

TEST_F(GenerationDurabilityTest, AFailedSyncIsToldInsteadOfFinished) {
  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 50);
  spec.set_session("sessions/s");
  model_->step_us = 1000;
  const Streamed out = Stream(spec, [&](const v1::GenerationEvent& event) {
    if (event.has_chunk()) store_->FailCommits(1000, absl::UnavailableError("the disk is gone"));
    return true;
  });
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::UNAVAILABLE) << out.status.error_message();
  EXPECT_THAT(out.finished.reason(), v1::FINISH_REASON_UNSPECIFIED);
}

// The request runs while its record is on the way to the disk; its client hears nothing before that is there.
TEST_F(GenerationDurabilityTest, NothingIsToldBeforeTheRequestIsOnDisk) {
  int turns = 0;
  for (const v1::Durability durability : {v1::DURABILITY_TURN, v1::DURABILITY_TOKEN}) {
    const std::string id = durability == v1::DURABILITY_TURN ? "turn" : "token";
    CreateSession(id);
    v1::GenerationSpec spec = Spec("hello", 20);
    spec.set_session("sessions/" + id);
    spec.set_request_id("r");
    spec.mutable_output()->set_echo(true);
    spec.set_durability(durability);
    store_->Hold(true);
    std::atomic<bool> told{false};
    Streamed out;
    std::thread reader([&] {
      out = Stream(spec, [&](const v1::GenerationEvent&) {
        told = true;
        return true;
      });
    });
    store_->WaitUntilCommitWaits();
    const std::string ended = StrCat("smt_generations_finished_total{reason=\"max_tokens\"} ", ++turns, "\n");
    EXPECT_TRUE(Eventually([&] { return metrics_.Text().find(ended) != std::string::npos; }));
    absl::SleepFor(absl::Milliseconds(50));
    EXPECT_FALSE(told);
    v1::GetGenerationRequest get;
    get.set_session(spec.session());
    get.set_request_id("r");
    v1::GetGenerationResponse got;
    grpc::ClientContext context;
    ASSERT_TRUE(generation().GetGeneration(&context, get, &got).ok());
    EXPECT_EQ(got.generation().position(), 5) << "of what is not told yet";
    store_->Hold(false);
    reader.join();
    ASSERT_TRUE(out.status.ok()) << out.status.error_message();
    ASSERT_TRUE(out.events[0].has_started());
    EXPECT_EQ(out.started.durable_position(), 5);
    EXPECT_EQ(out.echo, "hello");
    EXPECT_EQ(out.text, Expected(5, 20));
    EXPECT_EQ(out.finished.durable_position(), 25);
  }
}

TEST_F(GenerationDurabilityTest, ARequestThatCannotBeRecordedIsRefusedAndItsSessionStaysAsItWas) {
  CreateSession("s");
  v1::GenerationSpec spec = Spec("hello", 3);
  spec.set_session("sessions/s");
  ASSERT_TRUE(Stream(spec).status.ok());
  const v1::Session before = GetSession("s");
  model_->step_us = 500;
  for (const int64_t max_tokens : {int64_t{0}, int64_t{1}, int64_t{100'000}}) {  // it ends before or after it fails
    spec.set_request_id("r");
    spec.mutable_stopping()->set_max_tokens(max_tokens);
    store_->FailCommits(1, absl::ResourceExhaustedError("no space left"));
    const Streamed out = Stream(spec);
    EXPECT_EQ(out.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(out.status.error_message(), "no space left");
    EXPECT_THAT(out.events, IsEmpty());
    const v1::Session after = GetSession("s");
    EXPECT_EQ(after.position(), 8);
    EXPECT_EQ(after.etag(), before.etag());
    EXPECT_FALSE(after.active());
    v1::GetGenerationRequest get;
    get.set_session("sessions/s");
    get.set_request_id("r");
    v1::GetGenerationResponse got;
    grpc::ClientContext context;
    EXPECT_EQ(generation().GetGeneration(&context, get, &got).error_code(), grpc::StatusCode::NOT_FOUND);
  }
  spec.mutable_stopping()->set_max_tokens(4);
  const Streamed again = Stream(spec);
  ASSERT_TRUE(again.status.ok()) << again.status.error_message();
  EXPECT_EQ(again.started.start_position(), 8);
  EXPECT_EQ(again.text, Expected(13, 4));
}

TEST_F(GenerationDurabilityTest, ARequestThatCannotBeRecordedLeavesNoSessionBehind) {
  v1::GenerationSpec spec = Spec("hello", 100'000);
  spec.set_session("sessions/s");
  spec.set_create_session(true);
  generation();
  store_->FailWrite(absl::UnavailableError("the sync failed"),  // without which the session is made
                    [](const SessionWrite&, bool sync) { return sync; });
  const Streamed out = Stream(spec);
  EXPECT_EQ(out.status.error_message(), "the sync failed");
  EXPECT_THAT(out.events, IsEmpty());
  EXPECT_THAT(session_manager_->Get("s"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("'s'")));
}

TEST_F(GenerationDurabilityTest, ATurnThatMakesItsSessionSyncsOnceBeforeItStartsAndOnceAtItsEnd) {
  v1::GenerationSpec spec = Spec("hello", 3);
  spec.set_session("sessions/s");
  spec.set_create_session(true);
  generation();
  const int64_t syncs = store_->syncs();
  ASSERT_TRUE(Stream(spec).status.ok());
  EXPECT_EQ(store_->syncs() - syncs, 2);
}

TEST_F(GenerationDurabilityTest, WithTokenDurabilityNothingIsSentThatIsNotOnDisk) {
  CreateSession("s");
  model_->step_us = 200;
  v1::GenerationSpec spec = Spec("hello", 100);
  spec.set_session("sessions/s");
  spec.set_durability(v1::DURABILITY_TOKEN);
  const int64_t syncs = store_->syncs();
  const Streamed out = Stream(spec, [](const v1::GenerationEvent& event) {
    if (event.has_chunk()) {
      EXPECT_LE(event.chunk().position(), event.chunk().durable_position());
    }
    return true;
  });
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.text, Expected(5, 100));
  EXPECT_EQ(out.finished.durable_position(), 105);
  EXPECT_GT(store_->syncs(), syncs + 10);
}

TEST_F(GenerationDurabilityTest, WithTokenDurabilityAStoreThatFailsEndsTheStreamAtWhatIsOnDisk) {
  CreateSession("s");
  model_->step_us = 500;
  v1::GenerationSpec spec = Spec("hello", 5000);
  spec.set_session("sessions/s");
  spec.set_request_id("r");
  spec.set_durability(v1::DURABILITY_TOKEN);
  const Streamed out = Stream(spec, [&](const v1::GenerationEvent& event) {
    if (event.has_chunk() && event.chunk().position() > 20) {
      store_->FailCommits(1, absl::ResourceExhaustedError("no space left"));
    }
    return true;
  });
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << out.status.error_message();
  const auto sent = static_cast<int64_t>(out.text.size());
  EXPECT_EQ(out.text, Expected(5, sent));
  EXPECT_LT(sent, 5000);
  EXPECT_GE(GetSession("s").position(), 5 + sent) << "what was sent is in the log";
}

}  // namespace
}  // namespace smt
