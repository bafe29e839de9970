// Random histories of sessions, and what of them stays in the store.
#include <map>
#include <random>

#include "tests/server/session/session_branching_testing.h"

namespace smt {
namespace {

class HistoriesTest : public BranchingTest {};

// Random sessions against a plain model of them: whatever was forked, rolled back, deleted and reopened, each log is
// what it should be and each restored state is that of its ids.
TEST_F(HistoriesTest, RandomHistoriesReadBack) {
  struct Model {
    std::vector<int32_t> log;
    std::map<std::string, std::vector<int32_t>> named;
    std::vector<int64_t> turns;  // starts, of the branch
  };
  options_.host_state_bytes = 5 * kTestStateBytes;
  OpenRocks();
  std::map<std::string, Model> model;
  std::mt19937 random(20261126);
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  const auto turns_of = [&](const std::string& id) {
    std::vector<int64_t> turns;
    const auto page = manager_->ListCheckpoints(id, 1000, "");
    EXPECT_OK(page);
    if (!page.ok()) return turns;
    for (const CheckpointInfo& c : page->checkpoints) {
      if (c.automatic) turns.push_back(c.position);
    }
    return turns;
  };
  int next_id = 0;
  for (int step = 0; step < 900; ++step) {
    if (model.empty() || (model.size() < 8 && below(10) == 0)) {
      const std::string id = "s" + std::to_string(next_id++);
      Create(id);
      model[id];
      continue;
    }
    auto it = std::next(model.begin(), static_cast<int64_t>(below(model.size())));
    const std::string id = it->first;
    Model& m = it->second;
    SCOPED_TRACE("step " + std::to_string(step) + " on " + id);
    switch (below(10)) {
      case 0:
      case 1:
      case 2:
      case 3: {
        std::vector<int32_t> ids(below(8) == 0 ? 3000 + below(4000) : below(20));
        for (int32_t& x : ids) x = static_cast<int32_t>(random() % 1000);
        auto turn = Begin(Spec(id, ids));
        ASSERT_NE(turn, nullptr);
        const auto restored = turn->Restore();
        ASSERT_OK(restored);
        if (restored->state != nullptr) {
          ASSERT_TRUE(Same(*restored->state, *StateOf({m.log.data(), static_cast<size_t>(restored->position)})));
        }
        ASSERT_EQ(restored->tail, std::vector<int32_t>(m.log.begin() + restored->position, m.log.end()));
        std::erase(m.turns, static_cast<int64_t>(m.log.size()));
        m.turns.push_back(static_cast<int64_t>(m.log.size()));
        m.log.insert(m.log.end(), ids.begin(), ids.end());
        if (below(2) == 0 && !m.log.empty()) turn->Snapshot(static_cast<int64_t>(m.log.size()), StateOf(m.log));
        ASSERT_OK(FinishAndWait(*turn).status);
        if (m.turns.size() > static_cast<size_t>(kRememberedTurns)) m.turns.erase(m.turns.begin());
        break;
      }
      case 4: {
        const std::string name = "c" + std::to_string(below(6));
        const auto marked = Mark(id, name);
        ASSERT_EQ(marked.ok(), m.named.count(name) == 0);
        if (marked.ok()) m.named[name] = m.log;
        break;
      }
      case 5: {
        if (m.turns.empty()) break;
        const size_t back = 1 + below(m.turns.size());
        ASSERT_OK(Undo(id, static_cast<int32_t>(back)));
        m.log.resize(static_cast<size_t>(m.turns[m.turns.size() - back]));
        m.turns.resize(m.turns.size() - back);
        break;
      }
      case 6: {
        if (m.named.empty()) break;
        const auto c = std::next(m.named.begin(), static_cast<int64_t>(below(m.named.size())));
        ASSERT_OK(GoBack(id, c->first));
        m.log = c->second;
        m.turns = turns_of(id);
        break;
      }
      case 7: {
        const std::string child = "s" + std::to_string(next_id++);
        if (!m.named.empty() && below(2) == 0) {
          const auto c = std::next(m.named.begin(), static_cast<int64_t>(below(m.named.size())));
          ASSERT_OK(Fork(id, child, c->first));
          model[child].log = c->second;
          model[child].turns = turns_of(child);
          for (const int64_t turn : model[child].turns) ASSERT_LT(turn, static_cast<int64_t>(c->second.size()));
        } else {
          ASSERT_OK(Fork(id, child));
          model[child].log = std::vector<int32_t>(m.log);
          model[child].turns = m.turns;
          std::erase(model[child].turns, static_cast<int64_t>(m.log.size()));
          ASSERT_EQ(turns_of(child), model[child].turns);
        }
        break;
      }
      case 8:
        if (model.size() > 4) {
          ASSERT_OK(manager_->Delete(id, std::nullopt));
          model.erase(it);
        }
        break;
      case 9:
        if (below(4) == 0) OpenRocks();
        break;
    }
    if (step % 50 == 0 || step > 880) {
      for (auto& [name, expected] : model) {
        ASSERT_EQ(Log(name), expected.log) << name;
        for (const auto& [checkpoint, log] : expected.named) {
          const auto content = manager_->Export(name, checkpoint);
          ASSERT_OK(content);
          ASSERT_EQ(content->log, log);
          if (content->state != nullptr) {
            ASSERT_TRUE(Same(*content->state, *StateOf({log.data(), static_cast<size_t>(content->state_position)})));
          }
        }
      }
    }
  }
  for (const auto& [id, m] : model) ASSERT_OK(manager_->Delete(id, std::nullopt));
  manager_.reset();
  RocksDbStoreOptions options;
  options.dir = dir_.path();
  const auto store = *OpenRocksDbStore(options);
  EXPECT_EQ(*store->Count(), 0);
}

// A log of a branch that was left stays as long as a checkpoint, a request that may be sent again or a fork needs it.
TEST_F(HistoriesTest, LogsOfLeftBranchesGoWhenNothingNeedsThem) {
  const auto bytes_of = [&](int64_t branch) {  // as one who asks for all of it
    return manager_->ReadRequestLog("a", branch, 5001, 10'000).ok();
  };
  Create("a");
  Say("a", Ids(5000), {});
  Say("a", Ids(5000, 5000), {});
  ASSERT_OK(Mark("a", "kept"));            // at 10,000 of branch 0
  Say("a", Ids(10, 10'000), {}, "asked");  // on branch 0, up to 10,010
  ASSERT_OK(Undo("a", 2));                 // to 5,000: branch 1
  Say("a", Ids(5000, 20'000), {});
  ASSERT_OK(Fork("a", "child"));  // reads branch 1 up to 10,000
  ASSERT_OK(Undo("a", 1));        // to 5,000: branch 2
  Say("a", Ids(5000, 30'000), {});
  ASSERT_OK(Undo("a", 1));  // branch 3
  Say("a", {1}, {2});
  const std::vector<int32_t> log = Log("a"), child = Log("child");
  for (const int64_t branch : {0, 1, 2}) EXPECT_TRUE(bytes_of(branch)) << branch;

  const std::string etag = manager_->Get("a")->etag;
  ASSERT_OK(manager_->Sweep());
  EXPECT_TRUE(bytes_of(2)) << "somebody may just be reading it";
  for (int i = 0; i < 3; ++i) ASSERT_OK(manager_->Sweep());
  EXPECT_TRUE(bytes_of(0)) << "a checkpoint";
  EXPECT_TRUE(bytes_of(1)) << "a fork";
  EXPECT_FALSE(bytes_of(2));
  EXPECT_EQ(*manager_->ReadRequestLog("a", 0, 10'001, 10'010), Ids(10, 10'000)) << "a request";
  EXPECT_EQ(manager_->Get("a")->etag, etag);

  OpenRocks();
  clock_.Advance(options_.request_ttl + absl::Seconds(1));
  for (int i = 0; i < 4; ++i) ASSERT_OK(manager_->Sweep());
  EXPECT_TRUE(bytes_of(0));
  ASSERT_OK(manager_->DeleteCheckpoint("a", "kept", ""));
  ASSERT_OK(manager_->Delete("child", std::nullopt));
  OpenRocks();
  for (int i = 0; i < 2; ++i) ASSERT_OK(manager_->Sweep());
  EXPECT_FALSE(bytes_of(0));
  EXPECT_FALSE(bytes_of(1));
  EXPECT_EQ(Log("a"), log);
  OpenRocks();
  EXPECT_EQ(Log("a"), log);
  ASSERT_OK(Undo("a", 1));
  EXPECT_EQ(Log("a"), std::vector<int32_t>(log.begin(), log.begin() + 5000));
}

}  // namespace
}  // namespace smt
