// Random schedules against the sequential oracle: whatever is batched, deferred, evicted, restored or cancelled, every
// request's ids are those it would get alone.
#include <random>

#include "tests/server/engine/engine_fixture.h"

namespace smt {
namespace {

class EngineRandomTest : public EngineFixture {};

TEST_P(EngineRandomTest, EveryScheduleGivesTheIdsOfARequestAlone) {
  for (uint32_t seed = 1; seed <= 6; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint32_t>(n)); };
    engine_ = nullptr;
    token_bytes_.clear();
    {
      PlainLock lock(mu_);
      evictions_.clear();  // of the last engine's sessions
    }
    Start({.slots = static_cast<int32_t>(1 + below(4)), .defer = 0.15, .late_transfers = 0.5, .seed = seed},
          {.ingest_tokens_per_step = static_cast<int32_t>(1 + below(12)),
           .ingest_tokens_per_step_idle = static_cast<int32_t>(1 + below(40)),
           .max_buffered_tokens = 1 + below(20),
           .snapshot_interval = 5 + below(30)});
    std::vector<FakeSession> sessions(8);
    for (size_t i = 0; i < sessions.size(); ++i) sessions[i].key = std::string(1, static_cast<char>('a' + i));
    for (int round = 0; round < 25; ++round) {
      struct Running {
        FakeSession* session;
        std::shared_ptr<RecordingSink> sink;
        RequestHandle handle;
        std::vector<int32_t> recent, stops, prompt;
        int64_t max_tokens;
        bool cancelled;
      };
      std::vector<Running> running;
      for (FakeSession& session : sessions) {
        if (below(3) == 0) continue;
        Running r{&session, std::make_shared<RecordingSink>(), 0, session.log, {}, {}, below(30), below(4) == 0};
        for (int64_t n = below(4) == 0 ? below(60) : below(5); n > 0; --n) {
          r.prompt.push_back(static_cast<int32_t>(below(97)));
        }
        if (r.prompt.empty() && session.log.empty()) r.prompt.push_back(1);
        for (int64_t n = below(3); n > 0; --n) r.stops.push_back(static_cast<int32_t>(below(97)));
        EngineRequest request = Turn(&session, r.prompt, r.max_tokens, r.sink);
        request.stop_tokens = r.stops;
        request.priority = static_cast<int32_t>(below(3));
        r.handle = Submit(std::move(request));
        running.push_back(std::move(r));
        if (below(4) == 0) engine_->Discard(sessions[below(8)].key);
      }
      for (Running& r : running) {
        if (!r.cancelled) continue;
        if (below(2) == 0 && r.max_tokens > 2) r.sink->AwaitTokens(static_cast<size_t>(below(r.max_tokens)));
        engine_->Cancel(r.handle);
      }
      for (Running& r : running) {
        const FinishInfo info = r.sink->Await();
        SamplingParams params;
        params.seed = 1;
        std::vector<int32_t> expected =
            Oracle(r.session->log, r.recent, r.prompt.size(), params, r.max_tokens, r.stops);
        const std::vector<int32_t> ids = r.sink->ids();
        if (info.reason == FinishReason::kCancelled) {
          ASSERT_TRUE(r.cancelled);
          ASSERT_LE(ids.size(), expected.size());
          expected.resize(ids.size());
        }
        ASSERT_EQ(ids, expected) << "seed " << seed << " round " << round << " session " << r.session->key;
        for (const auto& [position, state] : r.sink->snapshots()) r.session->snapshots[position] = state;
        r.session->log.insert(r.session->log.end(), ids.begin(), ids.end());
        ASSERT_EQ(info.position, static_cast<int64_t>(r.session->log.size()));
      }
      PlainLock lock(mu_);
      for (const Eviction& eviction : evictions_) {
        FakeSession& session = sessions[static_cast<size_t>(eviction.key[0] - 'a')];
        ASSERT_EQ(StateIn(*eviction.state).hash,
                  FakeState::Of(std::span(session.log).first(static_cast<size_t>(eviction.position))).hash);
        session.snapshots[eviction.position] = eviction.state;
      }
      evictions_.clear();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(StepsInFlight, EngineRandomTest, testing::Values(1, 2, 3));

}  // namespace
}  // namespace smt
