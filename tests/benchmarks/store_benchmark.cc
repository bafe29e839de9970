// What a session store takes: commits of groups, creations, snapshots, reading logs. Over RocksDB and over a Redis of
// this machine's, without persistence and with fsync before each answer.
//
//   smt_store_benchmark [--benchmark_filter=Commit]
#include <benchmark/benchmark.h>

#include <memory>
#include <string>
#include <vector>

#include "server/store/redis_store.h"
#include "server/store/rocksdb_store.h"
#include "tests/server/store/redis_testing.h"
#include "tests/server/store/rocksdb_testing.h"

namespace smt {
namespace {

enum Kind : int64_t { kRocksDb, kRedisMemory, kRedisAlways };

struct Store {
  explicit Store(int64_t kind) {
    if (kind == kRocksDb) {
      RocksDbStoreOptions options;
      options.dir = dir.path();
      store = *OpenRocksDbStore(options);
      return;
    }
    server = kind == kRedisAlways ? RedisServer::Start({"--appendonly", "yes", "--appendfsync", "always"})
                                  : RedisServer::Start();
    if (server != nullptr) store = *OpenRedisStore(server->Options());
  }
  TempDir dir;
  std::unique_ptr<RedisServer> server;
  std::unique_ptr<SessionStore> store;
};

bool Ready(benchmark::State& state, const Store& s) {
  if (s.store == nullptr) state.SkipWithError("redis-server is not installed");
  static constexpr const char* kNames[] = {"RocksDB", "Redis without persistence", "Redis, appendfsync always"};
  state.SetLabel(kNames[state.range(0)]);
  return s.store != nullptr;
}

SessionWrite Create(uint64_t uid) {
  SessionWrite w;
  w.kind = SessionWrite::Kind::kCreate;
  w.key = {"session-" + std::to_string(uid), uid};
  w.header = std::string(150, 'h');
  return w;
}

// A group of so many sessions, each with so many ids, synced.
void BM_Commit(benchmark::State& state) {
  Store s(state.range(0));
  if (!Ready(state, s)) return;
  std::vector<SessionWrite> group;
  for (int64_t i = 0; i < state.range(1); ++i) group.push_back(Create(static_cast<uint64_t>(i) + 1));
  s.store->Commit(group, true);
  for (SessionWrite& w : group) {
    w.kind = SessionWrite::Kind::kUpdate;
    w.header.reset();
    w.ids.resize(static_cast<size_t>(state.range(2)), 7);
    w.position = 0;
  }
  for (auto _ : state) {
    for (const absl::Status& status : s.store->Commit(group, true)) {
      if (!status.ok()) state.SkipWithError(status.ToString().c_str());
    }
    for (SessionWrite& w : group) *w.position += state.range(2);
  }
  state.SetItemsProcessed(state.iterations() * state.range(1));
}
BENCHMARK(BM_Commit)
    ->ArgNames({"store", "sessions", "ids"})
    ->ArgsProduct({{kRocksDb, kRedisMemory, kRedisAlways}, {1, 16, 128}, {1, 64}})
    ->UseRealTime();

void BM_CreateAndRemove(benchmark::State& state) {
  Store s(state.range(0));
  if (!Ready(state, s)) return;
  uint64_t uid = 0;
  for (auto _ : state) {
    std::vector<SessionWrite> group;
    for (int64_t i = 0; i < state.range(1); ++i) group.push_back(Create(++uid));
    s.store->Commit(group, true);
    for (SessionWrite& w : group) w.kind = SessionWrite::Kind::kRemove;
    for (const absl::Status& status : s.store->Commit(group, true)) {
      if (!status.ok()) state.SkipWithError(status.ToString().c_str());
    }
  }
  state.SetItemsProcessed(state.iterations() * state.range(1));
}
BENCHMARK(BM_CreateAndRemove)
    ->ArgNames({"store", "sessions"})
    ->ArgsProduct({{kRocksDb, kRedisMemory, kRedisAlways}, {1, 16}})
    ->UseRealTime();

void BM_Snapshot(benchmark::State& state) {
  Store s(state.range(0));
  if (!Ready(state, s)) return;
  const SessionWrite create = Create(1);
  s.store->Commit({&create, 1}, true);
  const std::string bytes(static_cast<size_t>(state.range(1)), 'x');
  int64_t position = 0;
  for (auto _ : state) {
    const std::vector<SnapshotName> drop = {{0, position - 1}};
    const absl::Status put = s.store->PutSnapshot(create.key, {0, ++position}, bytes, drop);
    const auto got = s.store->GetSnapshot(create.key, {0, position});
    if (!put.ok() || !got.ok() || got->size() != bytes.size()) state.SkipWithError("snapshot");
  }
  state.SetBytesProcessed(2 * state.iterations() * state.range(1));
}
BENCHMARK(BM_Snapshot)
    ->ArgNames({"store", "bytes"})
    ->ArgsProduct({{kRocksDb, kRedisMemory, kRedisAlways}, {2900000}})
    ->UseRealTime();

void BM_ReadLog(benchmark::State& state) {
  Store s(state.range(0));
  if (!Ready(state, s)) return;
  SessionWrite w = Create(1);
  w.position = 0;
  w.ids.resize(static_cast<size_t>(state.range(1)), 7);
  s.store->Commit({&w, 1}, true);
  for (auto _ : state) {
    if (!s.store->ReadLog(w.key, 0, 1, state.range(1)).ok()) state.SkipWithError("log");
  }
  state.SetItemsProcessed(state.iterations() * state.range(1));
}
BENCHMARK(BM_ReadLog)
    ->ArgNames({"store", "ids"})
    ->ArgsProduct({{kRocksDb, kRedisMemory}, {1024, 1 << 20}})
    ->UseRealTime();

// Of so many leases, in one call.
void BM_Renew(benchmark::State& state) {
  const std::unique_ptr<RedisServer> server = RedisServer::Start();
  if (server == nullptr) {
    state.SkipWithError("redis-server is not installed");
    return;
  }
  const std::unique_ptr<RedisStore> store = *OpenRedisStore(server->Options());
  std::vector<HeldLease> held;
  for (int64_t i = 0; i < state.range(0); ++i) {
    const SessionKey key{"s", static_cast<uint64_t>(i) + 1};
    held.push_back({key, store->Acquire(key, "owner", absl::Minutes(10))->token});
  }
  for (auto _ : state) {
    for (const absl::Status& status : store->Renew(held, absl::Minutes(10))) {
      if (!status.ok()) state.SkipWithError(status.ToString().c_str());
    }
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_Renew)->Arg(1)->Arg(1000)->UseRealTime();

}  // namespace
}  // namespace smt

BENCHMARK_MAIN();
