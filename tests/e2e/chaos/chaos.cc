// smt_chaos: proves on real servers that streams are exactly once, by doing to the servers whatever it can.
// docs/testing.md says what that is and how to read the result.
#include <signal.h>
#include <stdlib.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "nlohmann/json.hpp"
#include "tests/e2e/chaos/adversary.h"
#include "tests/e2e/chaos/findings.h"
#include "tests/e2e/chaos/full_disk.h"
#include "tests/e2e/chaos/player.h"
#include "tests/e2e/chaos/reference.h"
#include "tests/e2e/chaos/story.h"
#include "tests/server/store/redis_testing.h"

namespace smt::testing {
namespace {

struct Options {
  int64_t kills = 20;
  uint64_t seed = 1;
  int servers = 3;
  int clients = 9;
  double interval = 1.4;  // seconds a kill, of all servers together
  double patience = 60;
  double most_seconds = 0;
  int64_t longest_turn = 1500;
  bool full_disk = true;
  bool branching = false;
  bool replicas = false;
  bool dishonest_disk = false;
  bool keep = false;
  std::string dir;
};

// The first client has the last server to itself: where nobody else's sync makes its turns durable too, a missing one
// shows. The others share the other servers.
int ServerOf(const Options& options, int client) {
  if (options.servers == 1) return 0;
  return client == 0 ? options.servers - 1 : client % (options.servers - 1);
}
int NumberOnServer(const Options& options, int client) {
  return options.replicas ? client : client / std::max(1, options.servers - 1);
}

// Where a client's calls go, on its first connection or its second: to one server, or, where all share a store, to any
// that answers, each client's own first.
std::string AddressOf(const Options& options, int client, const std::vector<std::unique_ptr<Adversary>>& adversaries,
                      int connection) {
  const int server = ServerOf(options, client), port = 2 * NumberOnServer(options, client) + connection;
  if (!options.replicas) return adversaries[server]->proxy().address(port);
  std::string all = "ipv4:";
  for (int i = 0; i < options.servers; ++i) {
    const auto& proxy = adversaries[(server + connection + i) % options.servers]->proxy();
    absl::StrAppend(&all, i > 0 ? "," : "", proxy.address(port));
  }
  return all;
}

// Kills and freezes the shared Redis, which loses nothing that it has acknowledged.
void DisturbRedis(const Options& options, RedisServer* redis, const std::function<bool()>& enough, Findings* findings) {
  Dice dice(options.seed, {4});
  while (!enough()) {
    for (absl::Time next = absl::Now() + dice.Waiting(absl::Seconds(4 * options.interval));
         absl::Now() < next && !enough();) {
      absl::SleepFor(absl::Milliseconds(20));
    }
    if (enough()) return;
    if (dice.Chance(0.5)) {
      findings->Note("Redis killed");
      redis->Kill();
      absl::SleepFor(dice.Between(absl::Milliseconds(1), absl::Milliseconds(700)));
      redis->Restart();
    } else {
      findings->Note("Redis frozen");
      ::kill(redis->pid(), SIGSTOP);
      absl::SleepFor(dice.Between(absl::Milliseconds(20), absl::Milliseconds(1500)));
      ::kill(redis->pid(), SIGCONT);
    }
  }
}

// One client: story after story, each compared with the undisturbed run and with what the server has stored.
void PlayStories(const Options& options, int client, const std::vector<std::unique_ptr<Adversary>>& adversaries,
                 bool disk_fills, const std::string& reference_address, const std::function<bool()>& enough,
                 Findings* findings) {
  Player player({.address = AddressOf(options, client, adversaries, 0),
                 .second_address = AddressOf(options, client, adversaries, 1),
                 .patience = absl::Seconds(options.patience),
                 .disk_fills = disk_fills},
                findings);
  Reference reference(reference_address, findings);
  std::vector<Book> shelf;
  std::vector<std::string> names;  // of deleted sessions, to be used again
  for (int chapter = 0; !enough(); ++chapter) {
    const Story story = MakeStory({options.seed, options.longest_turn, options.branching}, client, chapter);
    Book book;
    if (!shelf.empty() && story.begin_anew < 0.4) {
      std::swap(book, shelf[static_cast<size_t>(story.begin_anew / 0.4 * static_cast<double>(shelf.size()))]);
      std::erase_if(shelf, [](const Book& other) { return other.session.empty(); });
    } else {
      ++findings->sessions;
      book.session = absl::StrCat("client-", client, "-", chapter);
      if (!names.empty()) {
        book.session = names.back();
        names.pop_back();
      }
    }
    const size_t earlier = book.entries.size();
    const std::string name = book.session;
    const bool played = player.Play(story, &book);
    reference.Compare(&book);
    if (!played || !player.CheckStored(&book, earlier)) {
      findings->Say(absl::StrCat("  that was chapter ", chapter, " of client ", client, ", session ", name));
    } else if (!story.delete_at_end) {
      shelf.push_back(std::move(book));
    } else if (player.Delete(&book)) {
      reference.Forget(book);
      names.push_back(book.session);
    }
  }
  // Whatever the server went through since.
  for (Book& book : shelf) player.CheckStored(&book, 0);
}

std::string Reproduce(const Options& options) {
  return absl::StrCat("scripts/chaos --kills=", options.kills, " --seed=", options.seed, " --servers=", options.servers,
                      " --clients=", options.clients, " --interval=", options.interval,
                      " --longest_turn=", options.longest_turn, options.full_disk ? "" : " --no_full_disk",
                      options.branching ? " --branching" : "", options.replicas ? " --replicas" : "",
                      options.dishonest_disk ? " --dishonest_disk" : "");
}

int Run(Options options) {
  Findings findings;
  // Before any thread is there.
  std::unique_ptr<RedisServer> redis;
  if (options.replicas) {
    options.full_disk = false;
    redis = RedisServer::Start({"--appendonly", "yes", "--appendfsync", "always"});
    if (redis == nullptr) {
      std::fputs("smt_chaos: redis-server is not installed\n", stderr);
      return 77;
    }
  }
  absl::Status mounts = options.full_disk ? FullDisk::PrivateMounts()
                                          : absl::UnavailableError(options.replicas ? "--replicas" : "--no_full_disk");
  const bool own_dir = options.dir.empty();
  if (own_dir) {
    const char* base = std::getenv("TMPDIR");
    std::string name = absl::StrCat(base != nullptr ? base : "/tmp", "/smt-chaos-XXXXXX");
    if (mkdtemp(name.data()) == nullptr) {
      std::perror("smt_chaos: making a temporary folder");
      return 2;
    }
    options.dir = name;
  }
  const auto make_dir = [&](const std::string& name) {
    std::filesystem::create_directories(options.dir + "/" + name);
    return options.dir + "/" + name;
  };
  FullDisk disk;
  if (mounts.ok()) mounts = disk.Mount(options.dir + "/disk", int64_t{64} << 20);

  ServerProcess undisturbed({.dir = make_dir("reference")});
  if (absl::Status status = undisturbed.Start(); !status.ok()) {
    std::fprintf(stderr, "smt_chaos: %s\n", std::string(status.message()).c_str());
    return 2;
  }
  const int clients_each = NumberOnServer(options, options.clients - 1) + 1;
  std::vector<std::unique_ptr<Adversary>> adversaries;
  for (int i = 0; i < options.servers; ++i) {
    adversaries.push_back(std::make_unique<Adversary>(
        Adversary::Options{
            .number = i,
            .seed = options.seed,
            .dir = make_dir(absl::StrCat("server-", i)),
            .store_url = redis != nullptr ? redis->socket() : "",
            .disk = i == 0 && mounts.ok() ? &disk : nullptr,
            // A start takes about half a second.
            .mean_life = std::max(absl::Seconds(options.interval * options.servers - 0.9), absl::Milliseconds(200)),
            .ports = 2 * clients_each,
            .dishonest_disk = options.dishonest_disk},
        &findings));
  }
  std::atomic<bool> broken = false;  // a server does not start any more
  std::atomic<int> disturbing = options.servers;
  const auto enough = [&] {
    return broken || findings.kills >= options.kills ||
           (options.most_seconds > 0 && findings.elapsed() > absl::Seconds(options.most_seconds));
  };
  std::vector<std::thread> threads;
  for (auto& adversary : adversaries) {
    threads.emplace_back([&, adversary = adversary.get()] {
      if (absl::Status status = adversary->Run(enough); !status.ok()) {
        broken = true;
        findings.Fail(findings.errors, absl::StrCat("a server does not start: ", std::string(status.message())));
      }
      --disturbing;
    });
  }
  for (int i = 0; i < options.clients; ++i) {
    const int server = ServerOf(options, i);
    threads.emplace_back([&, i, server] {
      PlayStories(
          options, i, adversaries, server == 0 && mounts.ok(), undisturbed.address(),
          [&] { return broken || disturbing == 0; }, &findings);
    });
  }
  std::atomic<bool> over = false;
  std::thread redis_thread([&] {
    if (redis != nullptr) DisturbRedis(options, redis.get(), enough, &findings);
    while (!over) absl::SleepFor(absl::Milliseconds(20));  // a Redis dies with the thread that started it
  });
  std::thread progress([&] {
    for (int64_t tick = 1; disturbing > 0; ++tick) {
      absl::SleepFor(absl::Milliseconds(100));
      if (tick % 100 != 0) continue;
      findings.Say(absl::StrCat(findings.kills.load(), " kills, ", findings.streams.load(), " streams, ",
                                findings.tokens.load(), " tokens, ", findings.resumed.load(), " resumed"));
    }
  });
  for (std::thread& thread : threads) thread.join();
  progress.join();
  for (auto& adversary : adversaries) adversary->Stop();
  undisturbed.Terminate().IgnoreError();
  over = true;
  redis_thread.join();

  const bool enough_kills = findings.kills >= options.kills || options.most_seconds > 0;
  const bool passed = (findings.failures() > 0) == options.dishonest_disk && enough_kills;
  nlohmann::ordered_json summary = findings.Summary();
  if (!mounts.ok()) summary["full_disks_skipped"] = std::string(mounts.message());
  summary["seconds"] = std::round(absl::ToDoubleSeconds(findings.elapsed()) * 10) / 10;
  summary["seed"] = options.seed;
  if (!passed) std::fprintf(stderr, "smt_chaos: again with: %s\n", Reproduce(options).c_str());
  if (options.keep || !passed) {
    std::fprintf(stderr, "smt_chaos: stores and logs are in %s\n", options.dir.c_str());
  }
  adversaries.clear();
  std::puts(summary.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
  if (!options.keep && passed && own_dir) {
    std::error_code ignored;
    std::filesystem::remove_all(options.dir, ignored);
  }
  return passed ? 0 : 1;
}

}  // namespace
}  // namespace smt::testing

int main(int argc, char** argv) {
  smt::testing::Options options;
  CLI::App app("kills servers while clients read, and compares what they were given with an undisturbed run");
  app.add_option("--kills", options.kills, "Servers to kill (default: 20)")->check(CLI::Range(0, 1000000));
  app.add_option("--seed", options.seed, "Of everything that is drawn (default: 1)");
  app.add_option("--servers", options.servers, "Servers at once (default: 3)")->check(CLI::Range(1, 64));
  app.add_option("--clients", options.clients, "Clients at once (default: 9)")->check(CLI::Range(1, 1024));
  app.add_option("--interval", options.interval, "Seconds a kill, of all servers together, about (default: 1.4)")
      ->check(CLI::Range(0.1, 3600.0));
  app.add_option("--seconds", options.most_seconds, "Ends after so long, whatever the kills; 0 (default): no limit")
      ->check(CLI::Range(0.0, 1e6));
  app.add_option("--patience", options.patience, "Seconds without news after which a stream is stuck (default: 60)")
      ->check(CLI::Range(1.0, 3600.0));
  app.add_option("--longest_turn", options.longest_turn, "Most tokens of a turn (default: 1500)")
      ->check(CLI::Range(10, 1000000));
  app.add_option("--dir", options.dir, "Where stores and logs go; kept. Default: a temporary folder");
  app.add_flag("--no_full_disk{false}", options.full_disk, "No tmpfs is mounted and filled");
  app.add_flag("--branching", options.branching, "Forks and rollbacks too; the servers must have them");
  app.add_flag("--replicas", options.replicas,
               "The servers share a Redis, which is disturbed too, and clients go on with any of them");
  app.add_flag("--dishonest_disk", options.dishonest_disk,
               "Syncs are pretended, and the run passes when it finds what losses of power take: a test of this test");
  app.add_flag("--keep", options.keep, "Keeps the temporary folder, which a failure does anyway");
  CLI11_PARSE(app, argc, argv);
  ::signal(SIGPIPE, SIG_IGN);
  return smt::testing::Run(options);
}
