// A manager on a disk that may break, what clients do to it, and what they find. For session_crash_test.cc.
#pragma once

#include <gmock/gmock.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/base/status_macros.h"
#include "server/store/record_format.h"
#include "tests/server/session/session_testing.h"
#include "tests/server/store/crash_file_system.h"

namespace smt {

// Large enough that a few snapshots make RocksDB begin a new table and a new write-ahead log.
inline constexpr int64_t kStateBytes = 160'000;

inline uint64_t HashOf(std::span<const int32_t> ids) {
  return Xxh3({reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t)});
}
// A state that only these ids make.
inline std::shared_ptr<const StateBuffer> StateOf(std::span<const int32_t> ids) {
  auto state = std::make_shared<StateBuffer>(kStateBytes);
  const uint64_t hash = HashOf(ids);
  for (size_t i = 0; i < state->size(); i += 8) std::memcpy(state->span().data() + i, &hash, 8);
  return state;
}
inline bool IsStateOf(const StateBuffer& state, std::span<const int32_t> ids) {
  const auto expected = StateOf(ids);
  return state.size() == expected->size() &&
         std::memcmp(state.span().data(), expected->span().data(), state.size()) == 0;
}

// Counts writes, and shows where each ends.
struct WriteCount {
  std::atomic<int64_t> begun{0}, done{0};
  std::function<void()> after_each;  // of the writes that succeeded, which are then made one at a time
  bool ignore_sync = false;          // a mistake in the store
};
class CountingStore final : public SessionStore {
 public:
  CountingStore(std::unique_ptr<SessionStore> store, WriteCount& count) : store_(std::move(store)), count_(count) {}

  std::vector<absl::Status> Commit(std::span<const SessionWrite> writes, bool sync) override {
    count_.begun += static_cast<int64_t>(writes.size());
    std::vector<absl::Status> out;
    if (count_.after_each && !writes.empty()) {
      for (const SessionWrite& write : writes) {
        out.push_back(store_->Commit({&write, 1}, sync)[0]);
        Done(out.back());
      }
      return out;
    }
    out = store_->Commit(writes, sync && !count_.ignore_sync);
    for (const absl::Status& status : out) Done(status);
    return out;
  }
  absl::Status RemoveRequests(std::span<const StoredRequest> requests) override {
    ++count_.begun;
    const absl::Status status = store_->RemoveRequests(requests);
    Done(status);
    return status;
  }

  absl::StatusOr<StoredSession> Find(std::string_view id) override { return store_->Find(id); }
  absl::StatusOr<std::vector<StoredSession>> List(std::string_view after, size_t limit) override {
    return store_->List(after, limit);
  }
  absl::StatusOr<int64_t> Count() override { return store_->Count(); }
  absl::StatusOr<int64_t> LogEnd(const SessionKey& key, int64_t branch) override { return store_->LogEnd(key, branch); }
  absl::StatusOr<std::vector<int32_t>> ReadLog(const SessionKey& key, int64_t branch, int64_t first,
                                               int64_t last) override {
    return store_->ReadLog(key, branch, first, last);
  }
  absl::StatusOr<std::string> GetRequest(const SessionKey& key, std::string_view request_id) override {
    return store_->GetRequest(key, request_id);
  }
  absl::StatusOr<std::string> GetRemoval(std::string_view id, std::string_view request_id) override {
    return store_->GetRemoval(id, request_id);
  }
  absl::StatusOr<std::vector<StoredRequest>> ListRequests(std::string* cursor, size_t limit) override {
    return store_->ListRequests(cursor, limit);
  }
  absl::Status PutSnapshot(const SessionKey& key, const SnapshotName& name, std::string_view bytes,
                           std::span<const SnapshotName> drop) override {
    return store_->PutSnapshot(key, name, bytes, drop);
  }
  absl::StatusOr<std::vector<SnapshotName>> ListSnapshots(const SessionKey& key) override {
    return store_->ListSnapshots(key);
  }
  absl::StatusOr<std::string> GetSnapshot(const SessionKey& key, const SnapshotName& name) override {
    return store_->GetSnapshot(key, name);
  }
  absl::Status Health() override { return store_->Health(); }
  int64_t FreeBytes() override { return store_->FreeBytes(); }

 private:
  void Done(const absl::Status& status) {
    if (!status.ok()) return;
    ++count_.done;
    if (count_.after_each) count_.after_each();
  }

  const std::unique_ptr<SessionStore> store_;
  WriteCount& count_;
};

// A manager on a disk that may break.
struct World {
  explicit World(const std::string& dir) : dir(dir) {}

  absl::Status Open() {
    manager.reset();
    if (env == nullptr) env = disk->NewEnv();
    RocksDbStoreOptions store;
    store.dir = dir;
    store.min_free_bytes = 0;
    store.env = env.get();
    SessionManager::Options options;
    options.model_fingerprint = "model-1";
    options.numerics_id = "cpu/test";
    options.state_bytes = kStateBytes;
    options.input_tokens = 8;
    options.sweep_interval = absl::InfiniteDuration();
    options.now = [this] { return clock.Now(); };
    ASSIGN_OR_RETURN(auto rocks, OpenRocksDbStore(store));
    ASSIGN_OR_RETURN(manager, SessionManager::Open(options, std::make_unique<CountingStore>(std::move(rocks), count)));
    return absl::OkStatus();
  }
  // What was written up to now was acknowledged as durable.
  void Acknowledged() { acknowledged = count.done; }
  // To the beginning, when nothing had expired.
  void RewindClock() { clock.Advance(FakeClock().Now() - clock.Now()); }

  const std::string dir;  // of the FORMAT file
  std::unique_ptr<CrashDisk> disk = std::make_unique<CrashDisk>();
  std::unique_ptr<rocksdb::Env> env;
  WriteCount count;
  FakeClock clock;
  int64_t acknowledged = 0;  // writes
  std::unique_ptr<SessionManager> manager;
};

// What clients do: every kind of change, one after the other, up to the first that fails.
class Script {
 public:
  explicit Script(World& world) : w_(world) {}

  absl::Status Run() {
    RETURN_IF_ERROR(w_.Open());
    RETURN_IF_ERROR(Turns());
    RETURN_IF_ERROR(Branches());
    RETURN_IF_ERROR(w_.Open());  // a clean end and a new beginning
    w_.Acknowledged();
    RETURN_IF_ERROR(Interruption());
    return Removals();
  }

 private:
  absl::Status Turns() {
    RETURN_IF_ERROR(Create("a"));
    RETURN_IF_ERROR(Create("b", absl::InfiniteDuration(), "make-b"));
    RETURN_IF_ERROR(Turn("a", 10, 70, Durability::kTurn, "r1", true));
    RETURN_IF_ERROR(Turn("b", 100, 70, Durability::kNone, "r2", false));
    RETURN_IF_ERROR(Turn("b", 3, 4, Durability::kToken, "r3", false));
    SessionManager::Update update;
    update.labels = std::map<std::string, std::string>{{"name", "value"}};
    RETURN_IF_ERROR(Acknowledge(manager().UpdateSession("b", update)));
    RETURN_IF_ERROR(Turn("b", 2, 0, Durability::kNone, "", false));
    RETURN_IF_ERROR(Turn("a", 5000, 20, Durability::kTurn, "r4", true));
    RETURN_IF_ERROR(Turn("m", 6, 5, Durability::kNone, "r14", false));  // which these make
    return Turn("n", 6, 5, Durability::kTurn, "r15", true);
  }

  absl::Status Branches() {
    RETURN_IF_ERROR(Mark("a", "mark"));
    RETURN_IF_ERROR(Turn("a", 7, 3, Durability::kTurn, "r5", true));
    RETURN_IF_ERROR(Fork("a", "c", ""));
    RETURN_IF_ERROR(Fork("a", "d", "mark"));
    RETURN_IF_ERROR(Turn("c", 2, 3, Durability::kToken, "r6", true));
    RETURN_IF_ERROR(Rollback("a", "", 1));
    RETURN_IF_ERROR(Turn("a", 4, 66, Durability::kNone, "r7", true));
    RETURN_IF_ERROR(Rollback("a", "mark", 0));
    RETURN_IF_ERROR(Turn("a", 4, 1, Durability::kTurn, "r8", true));
    RETURN_IF_ERROR(Fork("b", "b2", ""));
    RETURN_IF_ERROR(Turn("d", 1, 1, Durability::kTurn, "r9", true));
    RETURN_IF_ERROR(Mark("d", "other"));
    RETURN_IF_ERROR(Acknowledge(manager().DeleteCheckpoint("d", "other", "unmark")));
    // What nobody needs of branches that were left, once their requests are forgotten.
    w_.clock.Advance(absl::Hours(25));
    for (int i = 0; i < 3; ++i) RETURN_IF_ERROR(manager().Sweep());
    return absl::OkStatus();
  }

  // A turn that breaks off, and goes on later.
  absl::Status Interruption() {
    {
      ASSIGN_OR_RETURN(BeginTurnResult begun, manager().BeginTurn(Spec("b", Next(5), "r10")));
      RETURN_IF_ERROR(begun.turn->AwaitBegun());
      w_.Acknowledged();
      begun.turn->Append(Next(70));
      RETURN_IF_ERROR(Drain("b"));
    }
    RETURN_IF_ERROR(Drain("b"));
    ASSIGN_OR_RETURN(ResumeTurnResult resumed, manager().ResumeTurn("b", "r10"));
    RETURN_IF_ERROR(resumed.turn->AwaitBegun());
    w_.Acknowledged();
    resumed.turn->Append(Next(3));
    return Finish(*resumed.turn, true);
  }

  absl::Status Removals() {
    RETURN_IF_ERROR(Acknowledge(manager().Delete("a", std::nullopt)));  // which c and d read
    RETURN_IF_ERROR(Turn("c", 2, 2, Durability::kTurn, "r11", true));
    RETURN_IF_ERROR(Create("e", absl::Hours(1)));
    RETURN_IF_ERROR(Create("f", absl::Hours(1)));
    RETURN_IF_ERROR(Turn("e", 9, 9, Durability::kNone, "r12", true));
    w_.clock.Advance(absl::Hours(2));
    RETURN_IF_ERROR(Create("f"));  // in the place of one that has expired
    RETURN_IF_ERROR(manager().Sweep());
    RETURN_IF_ERROR(Acknowledge(manager().Delete("c", std::nullopt)));
    w_.clock.Advance(absl::Hours(25));
    RETURN_IF_ERROR(manager().Sweep());
    RETURN_IF_ERROR(Acknowledge(manager().Delete("d", std::nullopt)));
    RETURN_IF_ERROR(Turn("b2", 3, 3, Durability::kTurn, "r13", true));
    return Acknowledge(manager().Flush());
  }

  SessionManager& manager() { return *w_.manager; }
  absl::Status Acknowledge(const absl::Status& status) {
    if (status.ok()) w_.Acknowledged();
    return status;
  }
  template <typename T>
  absl::Status Acknowledge(const absl::StatusOr<T>& result) {
    return Acknowledge(result.status());
  }
  std::vector<int32_t> Next(int64_t n) {
    next_ += static_cast<int32_t>(n);
    return Ids(n, next_ - static_cast<int32_t>(n));
  }
  absl::Status Create(const std::string& id, absl::Duration ttl = absl::InfiniteDuration(),
                      const std::string& request_id = "") {
    return Acknowledge(manager().Create(id, ttl, {}, request_id));
  }
  absl::Status Mark(const std::string& id, const std::string& checkpoint) {
    CheckpointSpec spec;
    spec.session_id = id;
    spec.checkpoint_id = checkpoint;
    return Acknowledge(manager().CreateCheckpoint(spec));
  }
  absl::Status Fork(const std::string& from, const std::string& to, const std::string& checkpoint) {
    ForkSpec spec;
    spec.session_id = from;
    spec.new_id = to;
    spec.checkpoint_id = checkpoint;
    return Acknowledge(manager().Fork(spec));
  }
  absl::Status Rollback(const std::string& id, const std::string& checkpoint, int32_t turns) {
    RollbackSpec spec;
    spec.session_id = id;
    spec.checkpoint_id = checkpoint;
    spec.turns = turns;
    return Acknowledge(manager().Rollback(spec));
  }
  // Until all that was handed over is written: each run then makes the same writes.
  absl::Status Drain(const std::string& id) {
    RETURN_IF_ERROR(manager().ReadRequestLog(id, -1, 1, 0).status());
    return absl::OkStatus();
  }
  absl::Status Finish(Turn& turn, bool sync) {
    const Finished finished = FinishAndWait(turn);
    RETURN_IF_ERROR(finished.status);
    if (sync) w_.Acknowledged();
    return absl::OkStatus();
  }

  absl::Status Turn(const std::string& id, int64_t prompt, int64_t generated, Durability durability,
                    const std::string& request_id, bool snapshot) {
    const bool makes = absl::IsNotFound(manager().Get(id).status());
    TurnSpec spec = Spec(id, Next(prompt), request_id, durability);
    spec.create = makes;
    ASSIGN_OR_RETURN(BeginTurnResult begun, manager().BeginTurn(std::move(spec)));
    smt::Turn& turn = *begun.turn;
    RETURN_IF_ERROR(turn.AwaitBegun());
    if (durability != Durability::kNone || makes) w_.Acknowledged();
    int64_t end = turn.session().position + prompt;
    if (durability == Durability::kToken) {
      for (int64_t i = 0; i < generated; ++i) {
        turn.Append(Next(1));
        RETURN_IF_ERROR(Drain(id));
        RETURN_IF_ERROR(turn.status());
        if (turn.durable_position() == ++end) w_.Acknowledged();
      }
    } else {
      turn.Append(Next(generated));
      end += generated;
      RETURN_IF_ERROR(Drain(id));
    }
    RETURN_IF_ERROR(Finish(turn, durability != Durability::kNone));
    if (!snapshot) return absl::OkStatus();
    ASSIGN_OR_RETURN(const SessionInfo info, manager().Get(id));
    ASSIGN_OR_RETURN(const std::vector<int32_t> log, manager().ReadLog(id, 1, info.position));
    const size_t at = log.size() - 1;
    manager().SaveEvicted(info.key, static_cast<int64_t>(at), StateOf({log.data(), at}));
    // Waits for the snapshot, and synchronises nothing.
    return manager().VisitStates(id, [](const SessionManager::KeptState&) { return absl::OkStatus(); });
  }

  World& w_;
  int32_t next_ = 0;
};

// All that clients can find out, as text, but for what is drawn at random. Checks that states are of their ids.
inline absl::StatusOr<std::string> Describe(SessionManager& manager) {
  std::string out;
  ASSIGN_OR_RETURN(const SessionManager::Page page, manager.List(1000, ""));
  for (const SessionInfo& listed : page.sessions) {
    ASSIGN_OR_RETURN(const SessionInfo info, manager.Get(listed.id));
    absl::StrAppend(&out, info.id, ": position ", info.position, " branch ", info.branch, " updated ",
                    absl::ToUnixSeconds(info.update_time), " labels ",
                    absl::StrJoin(info.labels, ",", absl::PairFormatter("=")));
    std::vector<int32_t> log;
    if (info.position > 0) {
      ASSIGN_OR_RETURN(log, manager.ReadLog(info.id, 1, info.position));
    }
    absl::StrAppend(&out, " log ", log.size(), "/", absl::Hex(HashOf(log)));
    ASSIGN_OR_RETURN(const RestoredState state, manager.ReadState(info.id, nullptr));
    const size_t at = static_cast<size_t>(state.position);
    if (at + state.tail.size() != log.size() || !std::equal(state.tail.begin(), state.tail.end(), log.begin() + at)) {
      return absl::InternalError(absl::StrCat(info.id, ": the state at ", at, " and the tail are not the log"));
    }
    if (state.damaged_snapshots > 0 || (state.state != nullptr && !IsStateOf(*state.state, {log.data(), at}))) {
      return absl::InternalError(absl::StrCat(info.id, ": the state at ", at, " is not that of the log"));
    }
    ASSIGN_OR_RETURN(const SessionManager::CheckpointPage checkpoints, manager.ListCheckpoints(info.id, 1000, ""));
    for (const CheckpointInfo& c : checkpoints.checkpoints) {
      ASSIGN_OR_RETURN(const SessionContent content, manager.Export(info.id, c.id));
      absl::StrAppend(&out, "\n  checkpoint ", c.id, " at ", c.position, " branch ", c.branch, " of ", c.request_id,
                      " log ", content.log.size(), "/", absl::Hex(HashOf(content.log)));
    }
    for (int r = 1; r <= 15; ++r) {
      const std::string request_id = absl::StrCat("r", r);
      const absl::StatusOr<RequestRecord> q = manager.GetRequest(info.id, request_id);
      if (absl::IsNotFound(q.status())) continue;
      RETURN_IF_ERROR(q.status());
      absl::StrAppend(&out, "\n  request ", request_id, " state ", static_cast<int>(q->state), " branch ", q->branch,
                      " from ", q->start_position, "+", q->prompt_tokens, " to ", q->end_position, " ", q->outcome);
    }
    out += "\n";
  }
  return out;
}

}  // namespace smt
