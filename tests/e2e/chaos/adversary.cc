#include "tests/e2e/chaos/adversary.h"

#include <signal.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace smt::testing {
namespace {

constexpr absl::Duration kLease = absl::Seconds(1);
constexpr int kKilled = 128 + SIGKILL;

struct Place {
  const char* name;
  int64_t most;  // passages before it strikes: some places are passed often
};
constexpr Place kPlaces[] = {{"before_commit", 150}, {"after_commit", 150}, {"before_sync", 150}, {"after_sync", 150},
                             {"before_snapshot", 8}, {"after_snapshot", 8}, {"before_send", 300}, {"after_send", 300}};

std::string LastLines(const std::string& text) { return text.size() <= 1500 ? text : text.substr(text.size() - 1500); }

}  // namespace

Adversary::Adversary(Options options, Findings* findings)
    : options_(std::move(options)),
      findings_(findings),
      dice_(options_.seed, {3, static_cast<uint64_t>(options_.number)}),
      proxy_(options_.ports),
      server_({.dir = options_.dir,
               .store_dir = options_.disk != nullptr ? options_.disk->path() + "/store" : "",
               .store_url = options_.store_url}) {}

std::vector<std::string> Adversary::Flags() {
  // Few slots, so that sessions are parked and restored all the time.
  std::vector<std::string> flags = {absl::StrCat("--max_slots=", dice_.Between(2, 8))};
  if (options_.disk != nullptr) {
    flags.push_back(absl::StrCat("--store_min_free_bytes=", dice_.Chance(0.5) ? 0 : 2 << 20));
  }
  if (!options_.store_url.empty()) {
    flags.push_back("--lease_ttl=" + absl::FormatDuration(kLease));
    flags.push_back("--store_wait=10s");
  }
  return flags;
}

absl::Status Adversary::Run(const std::function<bool()>& enough) {
  while (!enough()) {
    if (absl::Status status = Live(); !status.ok()) return status;
  }
  server_.Use("smt_server", Flags());
  if (absl::Status status = server_.Start(); !status.ok()) return status;
  proxy_.SetUpstream(server_.address());
  return absl::OkStatus();
}

void Adversary::Stop() {
  if (!server_.Running()) return;
  const absl::StatusOr<int> exit_code = server_.Terminate(absl::Seconds(20));
  if (exit_code.ok() && *exit_code == 0) return;
  findings_->Fail(findings_->errors, absl::StrCat("server ", options_.number, ": SIGTERM ends it with ",
                                                  exit_code.ok() ? absl::StrCat(*exit_code) : "nothing in 20 s", "\n",
                                                  LastLines(server_.Stderr())));
  server_.Kill();
}

absl::Status Adversary::Live() {
  const double fate = dice_.Fraction();
  const bool shared = !options_.store_url.empty();  // no disk of its own to lose anything from
  const Ending ending = options_.dishonest_disk ? Ending::kPowerCut
                        : fate < 0.30           ? Ending::kKill
                        : fate < 0.65           ? Ending::kCrashPoint
                        : fate < 0.78           ? (shared ? Ending::kKill : Ending::kPowerCut)
                        : fate < 0.86           ? Ending::kCrashAtStart
                                                : Ending::kTerminate;
  std::vector<std::string> flags = Flags();
  std::string how = "SIGKILL";
  const bool crashes = ending == Ending::kCrashPoint || ending == Ending::kPowerCut || ending == Ending::kCrashAtStart;
  const bool power = crashes && !shared && dice_.Chance(0.5);
  if (power) flags.push_back("--power_cut");
  if (crashes && options_.dishonest_disk) flags.push_back("--dishonest_disk");
  if (ending == Ending::kCrashPoint) {
    const Place& place = dice_.OneOf(kPlaces);
    how = absl::StrCat(place.name, ":", dice_.Between(1, place.most));
    flags.push_back("--crash_at=" + how);
  } else if (ending == Ending::kCrashAtStart) {
    how = absl::FormatDuration(dice_.Between(absl::Milliseconds(20), absl::Milliseconds(450)));
    flags.push_back("--crash_after=" + how);
  }
  server_.Use(crashes ? "smt_crashing_server" : "smt_server", flags);
  const absl::Time until = absl::Now() + absl::Milliseconds(100) + dice_.Waiting(options_.mean_life);
  const absl::Status started = server_.Start(absl::Seconds(30));
  if (!started.ok()) {
    const absl::StatusOr<int> exit_code = server_.WaitForExit(absl::ZeroDuration());
    if (!crashes || !exit_code.ok() || *exit_code != kKilled) return started;
    CountDeath(ending, how);
    return absl::OkStatus();
  }
  proxy_.SetUpstream(server_.address());
  bool dead = false;
  while (!dead && absl::Now() < until) {
    const absl::Duration pause = std::min(dice_.Waiting(options_.mean_life / 3), until - absl::Now());
    dead = EndsByItself(absl::Now() + pause);
    if (!dead && absl::Now() < until) Annoy();
  }
  proxy_.SetUpstream("");
  if (ending == Ending::kTerminate) {
    ++findings_->terms;
    Stop();
  } else if (!dead) {
    server_.Signal(ending == Ending::kPowerCut ? SIGUSR1 : SIGKILL);
    dead = server_.WaitForExit(absl::Seconds(10)).ok();
    if (ending != Ending::kPowerCut) how = "SIGKILL";
  }
  if (ending != Ending::kTerminate) {
    const absl::StatusOr<int> exit_code = server_.WaitForExit(absl::ZeroDuration());
    if (exit_code.ok() && *exit_code == kKilled) {
      CountDeath(ending, how);
    } else {
      findings_->Fail(findings_->errors,
                      absl::StrCat("server ", options_.number, " ends with ", exit_code.ok() ? *exit_code : -1,
                                   " instead of by ", how, "\n", LastLines(server_.Stderr())));
      server_.Kill();
    }
  }
  if (dice_.Chance(0.3)) absl::SleepFor(dice_.Between(absl::Milliseconds(1), absl::Milliseconds(400)));
  return absl::OkStatus();
}

void Adversary::CountDeath(Ending ending, const std::string& how) {
  ++findings_->kills;
  if (ending == Ending::kCrashPoint && how != "SIGKILL") {
    ++findings_->crash_points;
    findings_->Note("crash point " + how.substr(0, how.find(':')));
  }
  if (ending == Ending::kPowerCut) ++findings_->power_cuts;
}

bool Adversary::EndsByItself(absl::Time until) {
  while (absl::Now() < until) {
    if (!server_.Running()) return true;
    absl::SleepFor(absl::Milliseconds(3));
  }
  return !server_.Running();
}

void Adversary::Annoy() {
  const int port = dice_.Chance(0.3) ? -1 : static_cast<int>(dice_.Between(0, options_.ports - 1));
  const double what = dice_.Fraction();
  if (what < 0.35) {
    ++findings_->drops;
    proxy_.Drop(port);
  } else if (what < 0.5) {
    ++findings_->delays;
    proxy_.Delay(port, dice_.Between(absl::Milliseconds(5), absl::Milliseconds(150)), absl::Seconds(1));
  } else if (what < 0.65) {
    ++findings_->silences;
    proxy_.Silence(port, dice_.Between(absl::Milliseconds(50), absl::Milliseconds(800)));
    if (!dice_.Chance(0.5)) return;
    EndsByItself(absl::Now() + absl::Milliseconds(50));
    proxy_.Drop(port);  // the client notices when the silence ends
  } else if (what < 0.85 || options_.disk == nullptr) {
    ++findings_->freezes;
    server_.Signal(SIGSTOP);
    // In a shared store also for longer than a lease: it wakes up a zombie.
    const bool zombie = !options_.store_url.empty() && dice_.Chance(0.4);
    absl::SleepFor(zombie ? dice_.Between(kLease, 2.5 * kLease)
                          : dice_.Between(absl::Milliseconds(20), absl::Milliseconds(600)));
    if (zombie) findings_->Note("frozen for longer than a lease");
    server_.Signal(SIGCONT);
  } else {
    ++findings_->full_disks;
    constexpr int64_t kLeft[] = {0, 64 << 10, 1 << 20};
    options_.disk->Fill(dice_.OneOf(kLeft));
    EndsByItself(absl::Now() + dice_.Between(absl::Milliseconds(100), absl::Milliseconds(900)));
    options_.disk->Free();
  }
}

}  // namespace smt::testing
