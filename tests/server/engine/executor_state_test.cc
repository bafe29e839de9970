// What every Executor promises of states: saved, loaded, copied, refused, and what a warm-up leaves.
#include <span>
#include <vector>

#include "model/state_layout.h"
#include "server/engine/warm_up.h"
#include "tests/server/engine/executor_contract.h"

namespace smt {
namespace {

TEST_P(ExecutorTest, ASavedStateLoadedElsewhereGoesOnTheSame) {
  executor_->BindSampling(0, Seeded(3), {}, {});
  Ingest(0, Text(0, 26));
  const Bytes state = Save(0);
  const Ids expected = Generate(0, {}, 20);
  Wait(executor_->Load(3, state));
  EXPECT_EQ(executor_->position(3), 26);
  executor_->BindSampling(3, Seeded(3), {}, {});
  EXPECT_EQ(Generate(3, {}, 20), expected);
  EXPECT_EQ(Save(3), Save(0));
}

TEST_P(ExecutorTest, ASaveSeesWhatWasSubmittedBefore) {
  const absl::StatusOr<Ticket> step = executor_->Submit(std::vector<PlanItem>{{.slot = 0, .ids = Text(0, 33)}});
  ASSERT_TRUE(step.ok());
  Bytes state(executor_->info().state_bytes);
  const Ticket save = executor_->Save(0, state);
  Wait(save);
  Wait(*step);
  Ingest(1, Text(0, 33));
  EXPECT_EQ(state, Save(1));
}

TEST_P(ExecutorTest, ACopyIsAnotherSessionWithTheSamePast) {
  executor_->BindSampling(0, Seeded(1), {}, {});
  executor_->BindSampling(1, Seeded(1), {}, {});
  Ingest(0, Text(0, 22));
  Wait(executor_->Copy(0, 1));
  EXPECT_EQ(executor_->position(1), 22);
  const Ids expected = Generate(0, {}, 12);
  EXPECT_EQ(executor_->position(1), 22);
  EXPECT_EQ(Generate(1, {}, 12), expected);
}

TEST_P(ExecutorTest, RefusesAStateThatIsNotOneAndKeepsTheSlot) {
  Ingest(0, Text(0, 17));
  const Bytes state = Save(0);
  const Bytes small(state.size() - 1);
  EXPECT_EQ(executor_->Poll(executor_->Load(0, small), true, nullptr).status().code(),
            absl::StatusCode::kInvalidArgument);
  Bytes hostile = state;
  const StateLayout layout(TinyCases()[std::get<1>(GetParam())].config);
  layout.tokens(std::span<std::byte>(hostile))[0] = executor_->info().vocab_size;
  EXPECT_EQ(executor_->Poll(executor_->Load(0, hostile), true, nullptr).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Save(0), state);
  Ingest(0, Text(17, 4));
}

TEST_P(ExecutorTest, AWarmUpLeavesNoTrace) {
  const auto reports = Params([](SamplingParams& p) { p.seed = 4, p.top_logprobs = 2, p.frequency_penalty = 1; });
  // States and what two sessions draw, one after the other and with a word given in between.
  const auto serve = [&](std::vector<Bytes>& states) {
    std::vector<ItemResult> drawn;
    for (int32_t slot = 0; slot < kSlots; ++slot) states.push_back(Save(slot));
    for (const int32_t slot : {0, 2}) {
      executor_->BindSampling(slot, reports, {}, {});
      drawn.push_back(Run({{.slot = slot, .ids = Text(slot, 23), .want = Want::kSample}}).items[0]);
      for (int i = 0; i < 30; ++i) {
        drawn.push_back(Run({{.slot = slot, .append_last_sampled = true, .want = Want::kSample}}).items[0]);
      }
      Run({{.slot = slot, .append_last_sampled = true}});
      states.push_back(Save(slot));
    }
    return drawn;
  };
  std::vector<Bytes> cold_states, warm_states;
  const std::vector<ItemResult> cold = serve(cold_states);

  executor_ = std::get<0>(GetParam()).make(TinyCases()[std::get<1>(GetParam())].config);
  const auto report = WarmUp(*executor_, {.batches = {1, 3, kSlots, kSlots + 1}, .budget = absl::Minutes(5)});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->stopped.ok()) << report->stopped;
  EXPECT_THAT(report->batches, testing::ElementsAre(1, 3, kSlots));
  for (int32_t slot = 0; slot < kSlots; ++slot) {
    EXPECT_EQ(executor_->position(slot), 0);
    EXPECT_EQ(SubmitCode({{.slot = slot, .append_last_sampled = true}}), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(SubmitCode({{.slot = slot, .ids = Text(0, 1), .want = Want::kSample}}),
              absl::StatusCode::kInvalidArgument)
        << "something is bound";
  }
  const std::vector<ItemResult> warm = serve(warm_states);
  EXPECT_EQ(warm_states, cold_states);
  ASSERT_EQ(warm.size(), cold.size());
  for (size_t i = 0; i < warm.size(); ++i) {
    EXPECT_EQ(warm[i].id, cold[i].id) << "draw " << i;
    EXPECT_EQ(warm[i].logprobs.logprob, cold[i].logprobs.logprob) << "draw " << i;
    EXPECT_EQ(warm[i].logprobs.top, cold[i].logprobs.top) << "draw " << i;
  }
}

}  // namespace
}  // namespace smt
