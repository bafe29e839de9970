// What the tests of forks, rollbacks and all that comes of them have in common. A session's states are functions of its
// ids, so that one of the wrong branch is known by its bytes.
#pragma once

#include <gmock/gmock.h>

#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "server/store/record_format.h"
#include "tests/server/session/session_testing.h"

namespace smt {

// A state that only these ids make.
inline std::shared_ptr<const StateBuffer> StateOf(std::span<const int32_t> ids) {
  auto state = std::make_shared<StateBuffer>(kTestStateBytes);
  const uint64_t hash = Xxh3({reinterpret_cast<const char*>(ids.data()), ids.size() * 4});
  for (size_t i = 0; i < state->size(); i += 8) std::memcpy(state->span().data() + i, &hash, 8);
  return state;
}
inline bool Same(const StateBuffer& a, const StateBuffer& b) {
  return a.size() == b.size() && std::memcmp(a.span().data(), b.span().data(), a.size()) == 0;
}

class BranchingTest : public SessionTest {
 protected:
  BranchingTest() { OpenRocks(); }

  absl::StatusOr<SessionInfo> Fork(std::string from, std::string to, std::string checkpoint = "",
                                   std::string request_id = "") {
    ForkSpec spec;
    spec.session_id = std::move(from);
    spec.new_id = std::move(to);
    spec.checkpoint_id = std::move(checkpoint);
    spec.request_id = std::move(request_id);
    return manager_->Fork(spec);
  }
  absl::StatusOr<SessionInfo> Undo(std::string id, int32_t turns) {
    RollbackSpec spec;
    spec.session_id = std::move(id);
    spec.turns = turns;
    return manager_->Rollback(spec);
  }
  absl::StatusOr<SessionInfo> GoBack(std::string id, std::string checkpoint) {
    RollbackSpec spec;
    spec.session_id = std::move(id);
    spec.checkpoint_id = std::move(checkpoint);
    return manager_->Rollback(spec);
  }
  absl::StatusOr<CheckpointInfo> Mark(std::string id, std::string checkpoint) {
    CheckpointSpec spec;
    spec.session_id = std::move(id);
    spec.checkpoint_id = std::move(checkpoint);
    return manager_->CreateCheckpoint(spec);
  }
  std::vector<int32_t> Log(const std::string& id) {
    const auto info = manager_->Get(id);
    EXPECT_OK(info);
    if (!info.ok() || info->position == 0) return {};
    const auto log = manager_->ReadLog(id, 1, info->position);
    EXPECT_OK(log);
    return log.ok() ? *log : std::vector<int32_t>();
  }
  std::vector<std::string> Checkpoints(const std::string& id) {
    std::vector<std::string> out;
    std::string token;
    do {
      const auto page = manager_->ListCheckpoints(id, 3, token);
      EXPECT_OK(page);
      if (!page.ok()) break;
      for (const CheckpointInfo& c : page->checkpoints) out.push_back(c.id);
      token = page->next_page_token;
    } while (!token.empty());
    return out;
  }
  // A turn that leaves a snapshot of the whole log behind.
  void SayAndSave(const std::string& id, std::vector<int32_t> prompt) {
    auto turn = Begin(Spec(id, prompt));
    ASSERT_NE(turn, nullptr);
    auto log = Log(id);
    turn->Snapshot(static_cast<int64_t>(log.size()), StateOf(log));
    ASSERT_OK(FinishAndWait(*turn).status);
    ASSERT_OK(manager_->Flush());
  }
};

}  // namespace smt
