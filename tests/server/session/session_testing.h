// A manager over a store, with a clock that stands still until told.
#pragma once

#include <gmock/gmock.h>

#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "server/session/session_manager.h"
#include "server/store/rocksdb_store.h"
#include "tests/server/store/memory_store.h"
#include "tests/server/store/rocksdb_testing.h"
#include "tests/server/store/status_testing.h"

namespace smt {

inline constexpr int64_t kTestStateBytes = 4096;

class FakeClock {
 public:
  absl::Time Now() const {
    absl::MutexLock lock(&mu_);
    return now_;
  }
  void Advance(absl::Duration d) {
    absl::MutexLock lock(&mu_);
    now_ += d;
  }

 private:
  mutable absl::Mutex mu_;
  absl::Time now_ ABSL_GUARDED_BY(mu_) = absl::FromUnixSeconds(1'700'000'000);
};

inline std::vector<int32_t> Ids(int64_t n, int32_t first = 0) {
  std::vector<int32_t> out(static_cast<size_t>(n));
  std::iota(out.begin(), out.end(), first);
  return out;
}

// A state that says which position it is of.
inline std::shared_ptr<const StateBuffer> State(int64_t position) {
  auto state = std::make_shared<StateBuffer>(kTestStateBytes);
  for (size_t i = 0; i < state->size(); i += 8) std::memcpy(state->span().data() + i, &position, 8);
  return state;
}
inline int64_t PositionIn(const StateBuffer& state) {
  int64_t position = 0;
  std::memcpy(&position, state.span().data() + 8 * 100, 8);
  return position;
}

inline TurnSpec Spec(std::string session, std::vector<int32_t> prompt, std::string request_id = "",
                     Durability durability = Durability::kTurn) {
  TurnSpec spec;
  spec.session_id = std::move(session);
  spec.prompt = std::move(prompt);
  spec.request_id = std::move(request_id);
  spec.semantic_hash = "hash";
  spec.params = "params";
  spec.seed = 7;
  spec.durability = durability;
  return spec;
}

struct Finished {
  absl::Status status;
  int64_t durable = -1;
};
inline Finished FinishAndWait(Turn& turn, std::string outcome = "outcome",
                              RequestState state = RequestState::kFinished) {
  Finished out;
  absl::Notification done;
  turn.Finish(state, std::move(outcome), [&](absl::Status status, int64_t durable) {
    out = {std::move(status), durable};
    done.Notify();
  });
  done.WaitForNotification();
  return out;
}

class SessionTest : public testing::Test {
 protected:
  SessionTest() {
    options_.model_fingerprint = "model-1";
    options_.numerics_id = "cpu/test";
    options_.state_bytes = kTestStateBytes;
    options_.input_tokens = 8;
    options_.now = [this] { return clock_.Now(); };
    options_.sweep_interval = absl::InfiniteDuration();
    options_.host_state_bytes = 0;  // what is read comes from the store
    options_.on_removed = [this](std::string_view key) {
      absl::MutexLock lock(&removed_mu_);
      removed_.emplace_back(key);
    };
  }

  // (Re)opens the manager on the directory's RocksDB.
  void OpenRocks() {
    manager_.reset();
    RocksDbStoreOptions store;
    store.dir = dir_.path();
    store.min_free_bytes = 0;
    manager_ = *SessionManager::Open(options_, *OpenRocksDbStore(store));
  }
  // Opens it on a fresh store in memory, kept at memory_.
  void OpenMemory() {
    manager_.reset();
    auto store = std::make_unique<MemoryStore>();
    memory_ = store.get();
    manager_ = *SessionManager::Open(options_, std::move(store));
  }
  void Create(const std::string& id) { ASSERT_OK(manager_->Create(id, absl::InfiniteDuration(), {})); }
  std::unique_ptr<Turn> Begin(TurnSpec spec) {
    auto begun = manager_->BeginTurn(std::move(spec));
    EXPECT_OK(begun);
    if (!begun.ok()) return nullptr;
    EXPECT_OK(begun->turn->AwaitBegun());
    return std::move(begun->turn);
  }
  // A whole turn: prompt, `generated` more ids, finish.
  void Say(const std::string& id, std::vector<int32_t> prompt, std::vector<int32_t> generated,
           std::string request_id = "") {
    auto turn = Begin(Spec(id, std::move(prompt), std::move(request_id)));
    ASSERT_NE(turn, nullptr);
    turn->Append(generated);
    ASSERT_OK(FinishAndWait(*turn).status);
  }

  FakeClock clock_;
  TempDir dir_;
  SessionManager::Options options_;
  absl::Mutex removed_mu_;
  std::vector<std::string> removed_ ABSL_GUARDED_BY(removed_mu_);
  MemoryStore* memory_ = nullptr;
  std::unique_ptr<SessionManager> manager_;
};

}  // namespace smt
