#include "tests/benchmarks/session_server_bench.h"

#include <algorithm>
#include <memory>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "model/base/status_macros.h"
#include "server/session/session_manager.h"
#include "server/store/redis_store.h"
#include "server/store/rocksdb_store.h"
#include "tests/benchmarks/bench_util.h"
#include "tests/benchmarks/executor_drive.h"
#include "tests/benchmarks/gpu_executor.h"
#include "tests/benchmarks/loopback_client.h"
#include "tests/benchmarks/random_ids.h"
#include "tests/benchmarks/server_under_test.h"
#include "tests/e2e/server_process.h"

namespace smt::bench {
namespace {

using nlohmann::json;
using testing::ServerProcess;

// A session with so many ids.
absl::Status Fill(client::Client& client, const std::string& session, int vocabulary, int length) {
  constexpr int kPiece = 1 << 16;
  for (int at = 0; at < length; at += kPiece) {
    v1::GenerationSpec spec;
    spec.set_session(session);
    spec.set_create_session(true);
    for (const int32_t id : Ids(vocabulary, std::min(kPiece, length - at), static_cast<uint32_t>(at + 1))) {
      spec.mutable_token_ids()->add_ids(id);
    }
    spec.mutable_stopping()->set_max_tokens(0);
    RETURN_IF_ERROR(ToStatus(testing::Generate(client, spec).error, "filling a session"));
  }
  return absl::OkStatus();
}

// Seconds from the call to the first token of a turn of one.
absl::StatusOr<double> FirstToken(client::Client& client, const std::string& session) {
  v1::GenerationSpec spec;
  spec.set_session(session);
  spec.mutable_sampling()->set_temperature(0);
  spec.mutable_stopping()->set_max_tokens(1);
  spec.mutable_stopping()->set_ignore_eos(true);
  double first = 0;
  const double start = Seconds();
  const client::Error error = client.StreamGenerate(spec, [&](const v1::GenerationEvent& event) {
    if (event.has_chunk() && first == 0) first = Seconds();
    return true;
  });
  RETURN_IF_ERROR(ToStatus(error, "a turn"));
  return first - start;
}

json Spread(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {{"p50_ms", Median(seconds) * 1e3}, {"p99_ms", seconds[seconds.size() * 99 / 100] * 1e3}};
}

}  // namespace

absl::StatusOr<json> RestoreFigures(const SessionBenchOptions& options) {
  json figures;
  const int times = options.quick ? 2 : 20 * options.rounds;
  const GpuBenchOptions device = {
      .model_dir = options.model_dir, .device = options.device, .dtype = options.dtype, .quick = options.quick};
  testing::TempDir dir;
  const auto measure = [&](Executor& executor, int) -> absl::StatusOr<json> {
    const int64_t bytes = executor.info().state_bytes;
    ExecutorDrive drive(executor);
    std::vector<std::string> tiers = {"host", "rocksdb"};
    if (!options.store_url.empty()) tiers.push_back("redis");
    for (const std::string& tier : tiers) {
      const bool host = tier == "host";
      SessionManager::Options sessions;
      sessions.model_fingerprint = "model";
      sessions.numerics_id = executor.info().numerics_id;
      sessions.state_bytes = bytes;
      sessions.host_state_bytes = host ? 64 * bytes : 0;
      std::unique_ptr<SessionStore> store;
      if (tier == "redis") {
        RedisStoreOptions redis;
        redis.address = options.store_url;
        ASSIGN_OR_RETURN(std::unique_ptr<RedisStore> shared, OpenRedisStore(std::move(redis)));
        sessions.leases = shared.get();
        store = std::move(shared);
      } else {
        RocksDbStoreOptions rocks;
        rocks.dir = absl::StrCat(options.dir.empty() ? dir.path() : options.dir, "/restore-", tier);
        ASSIGN_OR_RETURN(store, OpenRocksDbStore(std::move(rocks)));
      }
      ASSIGN_OR_RETURN(auto manager, SessionManager::Open(std::move(sessions), std::move(store)));
      for (const int length : options.lengths) {
        const std::string id = absl::StrCat("restore-", length);
        manager->Delete(id, std::nullopt).IgnoreError();  // of an earlier run
        RETURN_IF_ERROR(manager->Create(id, absl::InfiniteDuration(), {}).status());
        executor.Reset(0);
        RETURN_IF_ERROR(drive.Fill(SlotRange(0, 1), length));
        auto state = std::make_shared<StateBuffer>(static_cast<size_t>(bytes));
        RETURN_IF_ERROR(drive.Wait(executor.Save(0, state->span())));
        TurnSpec turn;
        turn.session_id = id;
        turn.prompt = Ids(executor.info().vocab_size, length, 1);
        ASSIGN_OR_RETURN(BeginTurnResult begun, manager->BeginTurn(std::move(turn)));
        begun.turn->Snapshot(length, state);
        absl::Notification ended;
        begun.turn->Finish(RequestState::kFinished, "", [&](const absl::Status&, int64_t) { ended.Notify(); });
        ended.WaitForNotification();
        RETURN_IF_ERROR(manager->Flush());
        std::vector<double> seconds;
        for (int i = 0; i < times; ++i) {
          const double start = Seconds();
          ASSIGN_OR_RETURN(const RestoredState restored, manager->ReadState(id, nullptr));
          if (restored.tier != (host ? "host" : "store") || restored.position != length) {
            return absl::InternalError(absl::StrCat("restored from ", restored.tier, " at ", restored.position));
          }
          RETURN_IF_ERROR(drive.Wait(executor.Load(0, restored.state->span())));
          seconds.push_back(Seconds() - start);
        }
        figures[tier][absl::StrCat(length)] = Spread(seconds);
      }
    }
    figures["state_bytes"] = bytes;
    return figures;
  };
  return OverBatches(
      GpuRunner(device, 1), {1}, [](int) { return 1; }, measure);
}

absl::StatusOr<json> ForkFigures(const SessionBenchOptions& options) {
  std::vector<std::string> flags;
  if (!options.store_url.empty()) flags.push_back("--store_url=" + options.store_url);
  ServerProcess server(ServerOptionsOf(options, flags));
  RETURN_IF_ERROR(server.Start());
  auto client = server.NewClient();
  ASSIGN_OR_RETURN(const int vocabulary, Vocabulary(*client));
  const int times = options.quick ? 3 : 20 * options.rounds;
  json figures;
  for (const int length : options.lengths) {
    const std::string parent = absl::StrCat("sessions/f", length);
    RETURN_IF_ERROR(Fill(*client, parent, vocabulary, length));
    RETURN_IF_ERROR(FirstToken(*client, parent).status());
    std::vector<double> fork, rollback, first;
    for (int i = 0; i < times; ++i) {
      v1::ForkSessionRequest request;
      request.set_name(parent);
      v1::Session child;
      double start = Seconds();
      RETURN_IF_ERROR(ToStatus(client->ForkSession(request, &child), "ForkSession"));
      fork.push_back(Seconds() - start);
      if (i < times / 4 + 1) {
        ASSIGN_OR_RETURN(first.emplace_back(), FirstToken(*client, child.name()));
        v1::RollbackSessionRequest undo;
        undo.set_name(child.name());
        undo.set_turns(1);
        start = Seconds();
        RETURN_IF_ERROR(ToStatus(client->RollbackSession(undo, &child), "RollbackSession"));
        rollback.push_back(Seconds() - start);
      }
      v1::DeleteSessionRequest remove;
      remove.set_name(child.name());
      RETURN_IF_ERROR(ToStatus(client->DeleteSession(remove), "DeleteSession"));
    }
    figures[absl::StrCat(length)] = {
        {"fork", Spread(fork)}, {"rollback", Spread(rollback)}, {"first_token_of_fork", Spread(first)}};
  }
  return figures;
}

absl::StatusOr<json> RecoveryFigures(const SessionBenchOptions& options) {
  const int streams = options.quick ? 4 : options.streams;
  ServerProcess::Options server_options = ServerOptionsOf(options, {absl::StrCat("--max_queue=", 2 * streams)});
  server_options.same_address = true;
  ServerProcess server(server_options);
  RETURN_IF_ERROR(server.Start());
  ASSIGN_OR_RETURN(const int vocabulary, Vocabulary(*server.NewClient()));
  LoopbackClient client(server.address(), (streams + 15) / 16);
  StreamLoad load = {.streams = streams, .tokens = 1 << 20};
  load.session_prefix = "sessions/k-";
  load.request_id = "r";
  std::thread killer([&] {
    absl::SleepFor(absl::Seconds(options.quick ? 1 : 5));
    server.Kill();
  });
  client.Rate(vocabulary, load).status().IgnoreError();  // they are all cut off
  killer.join();
  const double killed = Seconds();
  RETURN_IF_ERROR(server.Start(absl::Minutes(2)));
  const double ready = Seconds();
  auto resumer = server.NewClient();
  v1::ResumeGenerateRequest resume;
  resume.set_session("sessions/k-0");
  resume.set_request_id("r");
  v1::Generation generation;
  RETURN_IF_ERROR(ToStatus(resumer->GetGeneration("sessions/k-0", "r", &generation), "GetGeneration"));
  resume.set_after_position(generation.position());
  double first = 0;
  const client::Error error = resumer->ResumeGenerate(resume, [&](const v1::GenerationEvent& event) {
    if (event.has_chunk()) first = Seconds();
    return first == 0;
  });
  if (first == 0) RETURN_IF_ERROR(ToStatus(error, "ResumeGenerate"));
  return json{{"streams", streams},
              {"position", generation.position()},
              {"start_to_ready_s", ready - killed},
              {"ready_to_first_token_s", first - ready}};
}

absl::StatusOr<json> DrainFigures(const SessionBenchOptions& options) {
  const int streams = options.quick ? 4 : options.streams;
  ServerProcess server(
      ServerOptionsOf(options, {absl::StrCat("--max_slots=", streams), absl::StrCat("--max_queue=", 2 * streams)}));
  RETURN_IF_ERROR(server.Start());
  const auto asker = server.NewClient();
  ASSIGN_OR_RETURN(const int vocabulary, Vocabulary(*asker));
  LoopbackClient client(server.address(), (streams + 15) / 16);
  StreamLoad load = {.streams = streams, .tokens = 1 << 20};
  load.session_prefix = "sessions/t-";
  load.request_id = "r";
  std::thread reader([&] { client.Rate(vocabulary, load).status().IgnoreError(); });  // they are all cut off
  const auto count = [&](client::Client& from, v1::GenerationState state) {
    int n = 0;
    for (int i = 0; i < streams; ++i) {
      v1::Generation generation;
      const bool found = from.GetGeneration(absl::StrCat("sessions/t-", i), "r", &generation).ok();
      n += found && generation.state() == state &&
           generation.position() > generation.start_position() + generation.prompt_tokens();
    }
    return n;
  };
  int running = 0;
  for (const double limit = Seconds() + 60; running < streams && Seconds() < limit;) {
    absl::SleepFor(absl::Milliseconds(100));
    running = count(*asker, v1::GENERATION_STATE_RUNNING);
  }
  const double asked = Seconds();
  const absl::StatusOr<int> exit_code = server.Terminate(absl::Minutes(1));
  const double ended = Seconds();
  reader.join();
  if (running < streams) return absl::InternalError(absl::StrCat(running, " of ", streams, " streams ran"));
  RETURN_IF_ERROR(exit_code.status());
  RETURN_IF_ERROR(server.Start(absl::Minutes(2)));
  const auto after = server.NewClient();
  return json{{"streams", streams},
              {"exit_code", *exit_code},
              {"sigterm_to_exit_s", ended - asked},
              {"parked", count(*after, v1::GENERATION_STATE_PARKED)}};
}

}  // namespace smt::bench
