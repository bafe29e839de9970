// What every Executor promises of what is drawn and scored.
#include <algorithm>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "tests/server/engine/executor_contract.h"

namespace smt {
namespace {

TEST_P(ExecutorTest, GreedyDrawsAreTheLikeliestIdsOfTheirScores) {
  executor_->BindSampling(0, Params([](SamplingParams& p) { p.temperature = 0, p.top_logprobs = 2; }), {}, {});
  Ids ids(text_.begin(), text_.begin() + 19);
  StepResult result = Run({{.slot = 0, .ids = ids, .want = Want::kSample}});
  for (int i = 0; i < 30; ++i) {
    const ItemResult drawn = result.items[0];
    ASSERT_EQ(drawn.logprobs.top.size(), 2u);
    EXPECT_EQ(drawn.logprobs.top[0].first, drawn.id);
    EXPECT_EQ(drawn.logprobs.top[0].second, drawn.logprobs.logprob);
    // The same text scored in another slot, at once.
    executor_->Reset(1);
    Ids targets(ids.begin() + 1, ids.end());
    targets.push_back(drawn.id);
    const StepResult scored =
        Run({{.slot = 1, .ids = ids, .want = Want::kScore, .targets = targets, .top_logprobs = 1}});
    ASSERT_EQ(scored.items[0].scores.size(), targets.size());
    EXPECT_EQ(scored.items[0].scores.back().logprob, drawn.logprobs.logprob);
    EXPECT_EQ(scored.items[0].scores.back().top[0].first, drawn.id);
    ids.push_back(drawn.id);
    result = Run({{.slot = 0, .append_last_sampled = true, .want = Want::kSample}});
  }
}

TEST_P(ExecutorTest, DrawsDependOnSeedAndTextAndNotOnSlotCompanyOrChunks) {
  executor_->BindSampling(0, Seeded(7), {}, {});
  const Ids expected = Generate(0, Text(0, 30), 25);
  executor_->BindSampling(0, Seeded(8), {}, {});
  executor_->Reset(0);
  EXPECT_NE(Generate(0, Text(0, 30), 25), expected);

  executor_->BindSampling(2, Seeded(7), {}, {});
  executor_->BindSampling(3, Seeded(9), {}, {});
  Ingest(2, Text(0, 13));
  Ingest(2, Text(13, 1));
  Run({{.slot = 2, .ids = Text(14, 16)}, {.slot = 1, .ids = Text(3, 9)}});
  Ids drawn;
  for (size_t i = 0; i < 25; ++i) {
    const StepResult result = Run({{.slot = 3, .append_last_sampled = i > 0, .ids = Text(i, 2), .want = Want::kSample},
                                   {.slot = 1, .ids = Text(i, i % 5)},
                                   {.slot = 2, .append_last_sampled = i > 0, .want = Want::kSample}});
    drawn.push_back(result.items[2].id);
  }
  EXPECT_EQ(drawn, expected);
}

// As the engine goes on: the next step is submitted before the last one's ids are known, for sessions of all phases and
// with saves between, and every session draws what it draws alone.
TEST_P(ExecutorTest, StepsInFlightDrawWhatStepsAloneDraw) {
  constexpr int kIds = 40;
  std::vector<Ids> alone(kSlots), together(kSlots);
  std::vector<Bytes> states;
  for (int32_t slot = 0; slot < kSlots; ++slot) {
    executor_->Reset(slot);
    executor_->BindSampling(slot, Seeded(100 + slot), {}, {});
    alone[slot] = Generate(slot, Text(slot, 17 + 2 * slot), kIds);
    Run({{.slot = slot, .append_last_sampled = true}});
    states.push_back(Save(slot));
  }
  for (int32_t slot = 0; slot < kSlots; ++slot) {
    executor_->Reset(slot);
    executor_->BindSampling(slot, Seeded(100 + slot), {}, {});
    together[slot].push_back(
        Run({{.slot = slot, .ids = Text(slot, 17 + 2 * slot), .want = Want::kSample}}).items[0].id);
  }
  struct Flight {
    Ticket ticket;
    std::vector<PlanItem> plan;
  };
  std::deque<Flight> flights;
  Ids draws_in_flight(kSlots);
  std::vector<std::pair<Ticket, std::unique_ptr<Bytes>>> saves;
  const auto take = [&] {
    StepResult result;
    const absl::StatusOr<bool> done = executor_->Poll(flights.front().ticket, /*wait=*/true, &result);
    ASSERT_TRUE(done.ok() && *done) << done.status();
    for (size_t i = 0; i < result.items.size(); ++i) {
      const int32_t slot = flights.front().plan[i].slot;
      --draws_in_flight[slot];
      if (!result.items[i].deferred) together[slot].push_back(result.items[i].id);
    }
    flights.pop_front();
  };
  for (int step = 0; step < 1000; ++step) {
    std::vector<PlanItem> plan;
    for (int32_t slot = 0; slot < kSlots; ++slot) {
      const size_t drawn = together[slot].size() + static_cast<size_t>(draws_in_flight[slot]);
      if (drawn >= kIds || (step + slot) % 7 == 0) continue;  // now and then one stays out
      plan.push_back({.slot = slot, .append_last_sampled = true, .want = Want::kSample});
      ++draws_in_flight[slot];
    }
    if (step % 5 == 3) {
      saves.emplace_back(0, std::make_unique<Bytes>(executor_->info().state_bytes));
      saves.back().first = executor_->Save(step % kSlots, *saves.back().second);
    }
    if (!plan.empty()) {
      const absl::StatusOr<Ticket> ticket = executor_->Submit(plan);
      ASSERT_TRUE(ticket.ok()) << ticket.status();
      flights.push_back({*ticket, plan});
    }
    const auto complete = [&](const Ids& ids) { return ids.size() >= kIds; };
    if (flights.empty() && std::all_of(together.begin(), together.end(), complete)) break;
    if (!flights.empty() && (flights.size() >= static_cast<size_t>(executor_->info().max_in_flight) || plan.empty()))
      take();
  }
  EXPECT_TRUE(flights.empty());
  for (const auto& [ticket, bytes] : saves) Wait(ticket);
  for (int32_t slot = 0; slot < kSlots; ++slot) {
    EXPECT_EQ(together[slot], alone[slot]) << "slot " << slot;
    Run({{.slot = slot, .append_last_sampled = true}});
    EXPECT_EQ(Save(slot), states[slot]) << "slot " << slot;
  }
}

TEST_P(ExecutorTest, ScoringInPiecesIsScoringAtOnce) {
  std::vector<float> at_once, pieces;
  const StepResult whole = Run({{.slot = 0, .ids = Text(0, 39), .want = Want::kScore, .targets = Text(1, 39)}});
  for (const TokenLogprobs& score : whole.items[0].scores) {
    at_once.push_back(score.logprob);
    EXPECT_LT(score.logprob, 0);
    EXPECT_TRUE(score.top.empty());
  }
  ASSERT_EQ(at_once.size(), 39u);
  for (size_t at = 0; at < 39; at += 13) {
    // In company, and with the first target of each later piece scored at the position where the last one ended.
    const StepResult result =
        Run({{.slot = 1, .ids = Text(at, 5)},
             {.slot = 2, .ids = Text(at, 12), .want = Want::kScore, .targets = Text(at + 1, 12)}});
    for (const TokenLogprobs& score : result.items[1].scores) pieces.push_back(score.logprob);
    Ingest(2, Text(at + 12, 1));
    const StepResult last = Run({{.slot = 2, .want = Want::kScore, .targets = Text(at + 13, 1)}});
    ASSERT_EQ(last.items[0].scores.size(), 1u);
    pieces.push_back(last.items[0].scores[0].logprob);
  }
  EXPECT_EQ(pieces, at_once);
}

TEST_P(ExecutorTest, PenaltiesGoOnFromWhatBindingSaysWasGenerated) {
  const auto params = Params([](SamplingParams& p) {
    p.repetition_penalty = 1.5f, p.presence_penalty = 1, p.frequency_penalty = 2, p.seed = 5;
  });
  const Ids prior(text_.begin(), text_.begin() + 5);
  executor_->BindSampling(0, params, prior, {});
  const Ids whole = Generate(0, Text(0, 20), 24);

  executor_->BindSampling(1, params, prior, {});
  Ids resumed = Generate(1, Text(0, 20), 11);
  Run({{.slot = 1, .append_last_sampled = true}});
  const Bytes state = Save(1);
  Wait(executor_->Load(2, state));
  executor_->BindSampling(2, params, prior, resumed);
  const Ids rest = Generate(2, {}, 13);
  resumed.insert(resumed.end(), rest.begin(), rest.end());
  EXPECT_EQ(resumed, whole);
  // Without them the text is another one, so the test can fail.
  executor_->Reset(3);
  executor_->BindSampling(3, Seeded(5), {}, {});
  EXPECT_NE(Generate(3, Text(0, 20), 24), whole);
}

// Log-probabilities take the draw to the host where a device can draw by itself, so both samplers are compared.
TEST_P(ExecutorTest, AskingForLogprobsDoesNotChangeWhatIsDrawn) {
  const int32_t v = executor_->info().vocab_size;
  for (uint64_t seed = 0; seed < 24; ++seed) {
    SamplingParams params;
    params.seed = seed * 7919;
    params.temperature = seed % 6 == 5 ? 0.0f : 0.3f + 0.4f * static_cast<float>(seed % 5);
    if (seed % 2 == 1) params.top_k = 1 + static_cast<int32_t>(seed * 5) % v;
    if (seed % 3 != 0) params.top_p = 0.15f * static_cast<float>(1 + seed % 6);
    if (seed % 4 == 3) params.min_p = 0.02f * static_cast<float>(seed);
    executor_->Reset(0);
    executor_->Reset(1);
    executor_->BindSampling(0, std::make_shared<const SamplingParams>(params), {}, {});
    params.top_logprobs = 0;
    executor_->BindSampling(1, std::make_shared<const SamplingParams>(params), {}, {});
    EXPECT_EQ(Generate(0, Text(seed, 5), 12), Generate(1, Text(seed, 5), 12)) << "seed " << seed;
  }
}

}  // namespace
}  // namespace smt
