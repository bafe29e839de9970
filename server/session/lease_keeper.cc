#include "server/session/lease_keeper.h"

#include <time.h>

#include <algorithm>
#include <vector>

#include "absl/random/random.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/status_details.h"

namespace smt {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(20);  // of one that waits for a lease
constexpr absl::Duration kWatch = absl::Milliseconds(500);
constexpr absl::Duration kGrace = absl::Seconds(1);  // after a dead holder's lease must have ended

// Goes on while the machine sleeps, so that a server that slept through its lease knows.
int64_t BootNanos() {
  timespec t;
  ::clock_gettime(CLOCK_BOOTTIME, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

std::string DrawOwner() {
  absl::BitGen random;
  return absl::StrFormat("%016x%016x", absl::Uniform<uint64_t>(random), absl::Uniform<uint64_t>(random));
}

absl::Status HeldElsewhere(const SessionKey& key, absl::Duration remaining) {
  return WithDetails(
      absl::AbortedError(
          StrCat("session '", key.id, "' is being written through another server; try again when it ends")),
      {.reason = "SESSION_BUSY", .retry_delay = std::clamp(remaining, absl::Milliseconds(100), absl::Seconds(1))});
}

bool IsReplaced(const absl::Status& status) {
  return absl::IsUnavailable(status) && GetDetails(status).reason == kStoreReplaced;
}

}  // namespace

LeaseKeeper::LeaseKeeper(LeaseStore& store, Options options)
    : store_(store), options_(std::move(options)), owner_(DrawOwner()) {
  renew_thread_ = std::thread([this] { RenewLoop(); });
  watch_thread_ = std::thread([this] { WatchLoop(); });
}

LeaseKeeper::~LeaseKeeper() {
  std::vector<HeldLease> all;
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
    for (const auto& [uid, held] : held_) all.push_back({held.first, held.second.token});
    held_.clear();
  }
  renew_thread_.join();
  watch_thread_.join();
  if (!all.empty()) store_.Release(all).IgnoreError();
}

// A tenth is left for what is on its way when the time comes.
int64_t LeaseKeeper::End(int64_t asked_ns) const { return asked_ns + absl::ToInt64Nanoseconds(options_.ttl * 0.9); }

// One at a time for each session: a second token of this owner would end the first.
absl::StatusOr<LeaseState> LeaseKeeper::TryAcquire(const SessionKey& key, bool wait_for_own) {
  {
    const auto free = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
      return stop_ || (taking_.count(key.uid) == 0 && (!wait_for_own || held_.count(key.uid) == 0));
    };
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&free));
    if (stop_) return absl::UnavailableError("the server is going down");
    if (const auto own = held_.find(key.uid); own != held_.end()) {
      LeaseState state;
      state.present = own->second.second.token;
      state.holder = owner_;
      return state;
    }
    taking_.insert(key.uid);
  }
  const int64_t asked = BootNanos();
  absl::StatusOr<LeaseState> state = store_.Acquire(key, owner_, options_.ttl);
  {
    absl::MutexLock lock(&mu_);
    taking_.erase(key.uid);
    if (state.ok() && state->acquired) held_[key.uid] = {key, {state->token, End(asked)}};
  }
  Note(state.status());
  return state;
}

absl::StatusOr<std::string> LeaseKeeper::Acquire(const SessionKey& key, Patience patience, absl::Time deadline,
                                                 const std::function<absl::StatusOr<bool>()>& may_ask) {
  if (patience == Patience::kNone) deadline = absl::InfinitePast();
  const bool asks = patience == Patience::kAsk || patience == Patience::kCancel;
  if (asks) deadline = std::min(deadline, absl::Now() + options_.ttl + kGrace);
  std::string holder;  // token of the one that is asked
  for (bool first = true;; first = false) {
    ASSIGN_OR_RETURN(LeaseState state, TryAcquire(key, patience != Patience::kCancel));
    if (state.acquired) return std::move(state.token);
    if (first) ++conflicts_;
    if (absl::Now() >= deadline) return HeldElsewhere(key, state.remaining);
    if (asks) {
      if (first) {
        holder = state.present;
        ASSIGN_OR_RETURN(const bool may, may_ask ? may_ask() : true);
        if (!may) return HeldElsewhere(key, state.remaining);
      }
      if (state.present != holder) return HeldElsewhere(key, state.remaining);
      const absl::Status asked =
          store_.RequestHandover({{key, holder}, patience == Patience::kCancel ? Handover::kCancel : Handover::kPark});
      Note(asked);
      RETURN_IF_ERROR(asked);
    }
    absl::SleepFor(std::min(kPoll, std::max(deadline - absl::Now(), absl::ZeroDuration())));
  }
}

void LeaseKeeper::Release(const SessionKey& key, const std::string& token) {
  {
    absl::MutexLock lock(&mu_);
    const auto found = held_.find(key.uid);
    if (found == held_.end() || found->second.second.token != token) return;
    held_.erase(found);
  }
  const HeldLease lease{key, token};
  Note(store_.Release({&lease, 1}));  // one that could not be given back runs out
}

absl::Status LeaseKeeper::Borrow(const SessionKey& key,
                                 const std::function<absl::Status(const std::string& token)>& with) {
  std::string token;
  {
    absl::MutexLock lock(&mu_);
    if (const auto found = held_.find(key.uid); found != held_.end()) token = found->second.second.token;
  }
  if (!token.empty()) return with(token);
  ASSIGN_OR_RETURN(token, Acquire(key, Patience::kNone, absl::InfinitePast()));
  const absl::Status status = with(token);
  Release(key, token);
  return status;
}

bool LeaseKeeper::Holds(const SessionKey& key, const std::string& token) const {
  absl::MutexLock lock(&mu_);
  const auto found = held_.find(key.uid);
  return found != held_.end() && found->second.second.token == token && BootNanos() < found->second.second.until_ns;
}

int64_t LeaseKeeper::held() const {
  absl::MutexLock lock(&mu_);
  return static_cast<int64_t>(held_.size());
}

void LeaseKeeper::Note(const absl::Status& status) {
  if (!IsReplaced(status)) return;
  absl::MutexLock lock(&mu_);
  replaced_ = true;  // the renewing thread starts over
}

void LeaseKeeper::RenewLoop() {
  absl::Time next = absl::Now();
  for (;;) {
    bool replaced;
    {
      const auto due = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return stop_ || replaced_; };
      absl::MutexLock lock(&mu_);
      mu_.AwaitWithDeadline(absl::Condition(&due), next);
      if (stop_) return;
      replaced = std::exchange(replaced_, false);
    }
    if (replaced) StartOver();
    if (absl::Now() < next) continue;
    next = absl::Now() + options_.ttl / 3;
    Renew();
  }
}

void LeaseKeeper::StartOver() {
  std::vector<std::pair<SessionKey, std::string>> lost;
  {
    absl::MutexLock lock(&mu_);
    for (const auto& [uid, held] : held_) lost.emplace_back(held.first, held.second.token);
    held_.clear();
  }
  for (const auto& [key, token] : lost) options_.on_lost(key, token);
  if (options_.on_replaced) options_.on_replaced();
  if (const absl::Status adopted = store_.AdoptReplacedStore(); !adopted.ok()) {
    absl::SleepFor(kWatch);
    absl::MutexLock lock(&mu_);
    replaced_ = true;
  }
}

void LeaseKeeper::Renew() {
  std::vector<HeldLease> all;
  {
    absl::MutexLock lock(&mu_);
    for (const auto& [uid, held] : held_) all.push_back({held.first, held.second.token});
  }
  if (all.empty()) return;
  const int64_t asked = BootNanos();
  const std::vector<absl::Status> renewed = store_.Renew(all, options_.ttl);
  std::vector<HeldLease> lost;
  {
    absl::MutexLock lock(&mu_);
    const int64_t now = BootNanos();
    for (size_t i = 0; i < all.size(); ++i) {
      const auto found = held_.find(all[i].key.uid);
      if (found == held_.end() || found->second.second.token != all[i].token) continue;  // given back meanwhile
      if (renewed[i].ok()) {
        found->second.second.until_ns = End(asked);
        continue;
      }
      ++renew_failures_;
      const bool taken = GetDetails(renewed[i]).reason == kLeaseLost;
      if (!taken && now < found->second.second.until_ns) continue;  // another try is left
      lost.push_back(all[i]);
      held_.erase(found);
    }
  }
  for (const absl::Status& status : renewed) Note(status);
  for (const HeldLease& lease : lost) options_.on_lost(lease.key, lease.token);
}

void LeaseKeeper::WatchLoop() {
  for (;;) {
    {
      absl::MutexLock lock(&mu_);
      if (stop_) return;
    }
    const auto wanted = store_.PendingHandovers(owner_, kWatch);
    if (!wanted.ok()) {
      Note(wanted.status());
      absl::SleepFor(kPoll);
      continue;
    }
    for (const WantedLease& lease : *wanted) options_.on_wanted(lease);
  }
}

}  // namespace smt
