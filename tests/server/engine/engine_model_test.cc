// The engine over a real model: what requests get batched together, cut into chunks, evicted and restored is what the
// offline loop gives each of them alone, id for id.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "model/cpu_slot_runner.h"
#include "model/generate.h"
#include "server/engine/torch_executor.h"
#include "tests/model/tiny_models.h"
#include "tests/server/engine/engine_fixture.h"

namespace smt {
namespace {

std::unique_ptr<SlotRunner> NewRunner(const StrideHybridConfig& config, int32_t slots) {
  const StrideHybridModel model = RandomModel(config);
  const WeightSource source = [&](const std::string& name, const std::vector<int64_t>&) {
    const at::Tensor value = model->named_parameters()[name].detach().contiguous();
    return absl::StatusOr<std::vector<float>>(
        std::vector<float>(value.data_ptr<float>(), value.data_ptr<float>() + value.numel()));
  };
  return *NewCpuSlotRunner(config, source, {.slots = slots, .threads = 2});
}

class EngineModelTest : public testing::TestWithParam<TinyCase> {};

TEST_P(EngineModelTest, BatchedTurnsWithEvictionsEqualTheOfflineLoop) {
  constexpr int32_t kSessions = 5, kTurns = 4;
  const StrideHybridConfig& config = GetParam().config;
  std::map<std::string, FakeSession> sessions;
  PlainMutex mu;
  Engine::Options options{.ingest_tokens_per_step = 7, .ingest_tokens_per_step_idle = 11, .snapshot_interval = 20};
  options.on_evicted = [&](const std::string& key, int64_t position, std::shared_ptr<const StateBuffer> state) {
    PlainLock lock(mu);
    sessions[key].snapshots[position] = std::move(state);
  };
  Engine engine(options, NewTorchExecutor(NewRunner(config, 3), "cpu", "float32"), nullptr);
  const std::unique_ptr<SlotRunner> alone = NewRunner(config, kSessions);

  std::mt19937 random(4);
  for (int32_t turn = 0; turn < kTurns; ++turn) {
    struct Running {
      std::shared_ptr<RecordingSink> sink = std::make_shared<RecordingSink>();
      std::vector<int32_t> offline_prompt;  // the id drawn last is in the log but not yet absorbed
      SamplingParams params = {};
      int64_t max_tokens = 0;
    };
    std::vector<Running> running(kSessions);
    for (int32_t i = 0; i < kSessions; ++i) {
      Running& r = running[i];
      const std::string key(1, static_cast<char>('a' + i));
      const std::vector<int32_t> prompt =
          RandomIds(1 + static_cast<int64_t>(random() % 40), config.vocab_size, static_cast<uint32_t>(random()));
      r.max_tokens = 1 + static_cast<int64_t>(random() % 25);
      r.params.seed = random();
      r.params.temperature = i % 2 == 0 ? 1.0f : 0.0f;
      r.params.top_p = i % 3 == 0 ? 0.8f : 1.0f;
      EngineRequest request;
      {
        PlainLock lock(mu);
        FakeSession& session = sessions[key];
        request.head = static_cast<int64_t>(session.log.size());
        request.restore = [&mu, &session, head = request.head]() -> absl::StatusOr<RestoredState> {
          PlainLock lock(mu);
          return session.Restore(head);
        };
        if (!session.log.empty()) r.offline_prompt.push_back(session.log.back());
        session.log.insert(session.log.end(), prompt.begin(), prompt.end());
      }
      r.offline_prompt.insert(r.offline_prompt.end(), prompt.begin(), prompt.end());
      request.session_key = key;
      request.prompt = prompt;
      request.sampling = std::make_shared<SamplingParams>(r.params);
      request.max_tokens = r.max_tokens;
      request.sink = r.sink;
      r.sink->set_engine(&engine);
      ASSERT_TRUE(engine.Submit(std::move(request)).ok());
    }
    for (int32_t i = 0; i < kSessions; ++i) {
      Running& r = running[i];
      EXPECT_EQ(r.sink->Await().reason, FinishReason::kMaxTokens);
      const auto expected = Generate(*alone, i, r.offline_prompt, {.sampling = r.params, .max_tokens = r.max_tokens});
      ASSERT_TRUE(expected.ok()) << expected.status();
      ASSERT_EQ(r.sink->ids(), *expected) << "session " << i << " turn " << turn;
      PlainLock lock(mu);
      FakeSession& session = sessions[std::string(1, static_cast<char>('a' + i))];
      session.log.insert(session.log.end(), expected->begin(), expected->end());
      for (const auto& [position, state] : r.sink->snapshots()) session.snapshots[position] = state;
    }
  }
  engine.Drain();
  // Everything was saved at the end, and is byte for byte the state of the session alone at that position.
  for (int32_t i = 0; i < kSessions; ++i) {
    const FakeSession& session = sessions[std::string(1, static_cast<char>('a' + i))];
    ASSERT_FALSE(session.snapshots.empty());
    const auto& [position, state] = *session.snapshots.rbegin();
    alone->Reset(i);
    const SlotRunner::Chunk chunk{i, std::span(session.log).first(static_cast<size_t>(position))};
    alone->Ingest({&chunk, 1});
    StateBuffer expected(state->size());
    alone->Save(i, expected.span());
    EXPECT_EQ(std::memcmp(expected.span().data(), state->span().data(), state->size()), 0) << "session " << i;
  }
}

TEST_P(EngineModelTest, StatesAskedForAreThoseOfASessionThatStoodThere) {
  const StrideHybridConfig& config = GetParam().config;
  Engine engine({.ingest_tokens_per_step = 7, .ingest_tokens_per_step_idle = 11},
                NewTorchExecutor(NewRunner(config, 3), "cpu", "float32"), nullptr);
  const std::unique_ptr<SlotRunner> alone = NewRunner(config, 1);
  const auto expect_state = [&](const std::vector<int32_t>& log, int64_t position, const StateBuffer& state) {
    alone->Reset(0);
    const SlotRunner::Chunk chunk{0, std::span(log).first(static_cast<size_t>(position))};
    alone->Ingest({&chunk, 1});
    StateBuffer expected(state.size());
    alone->Save(0, expected.span());
    EXPECT_EQ(std::memcmp(expected.span().data(), state.span().data(), state.size()), 0) << "at position " << position;
  };

  std::vector<int32_t> log = RandomIds(60, config.vocab_size);
  std::vector<std::vector<int32_t>> generated;
  for (const bool save : {false, true}) {
    auto sink = std::make_shared<RecordingSink>();
    EngineRequest request;
    request.session_key = save ? "saved" : "";
    request.prompt = log;
    request.sampling = std::make_shared<SamplingParams>();
    request.max_tokens = 10;
    if (save) request.save_at = {1, 2, 7, 8, 41, 60};
    request.sink = sink;
    sink->set_engine(&engine);
    ASSERT_TRUE(engine.Submit(std::move(request)).ok());
    EXPECT_EQ(sink->Await().reason, FinishReason::kMaxTokens);
    generated.push_back(sink->ids());
    EXPECT_EQ(sink->snapshots().size(), save ? 6u : 0u);
    for (const auto& [position, state] : sink->snapshots()) expect_state(log, position, *state);
  }
  EXPECT_EQ(generated[0], generated[1]);

  log.insert(log.end(), generated[1].begin(), generated[1].end());
  absl::Notification done;
  engine.SaveState("saved", [&](int64_t position, std::shared_ptr<const StateBuffer> state) {
    EXPECT_GE(position, 69);
    if (state != nullptr) expect_state(log, position, *state);
    done.Notify();
  });
  done.WaitForNotification();
}

INSTANTIATE_TEST_SUITE_P(Models, EngineModelTest, testing::ValuesIn(TinyCases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace smt
