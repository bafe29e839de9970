// The leases this server holds in a store that several share: taken for each turn and each change of a session, renewed
// in the background, given back afterwards.
//
// Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/store/lease_store.h"

namespace smt {

class LeaseKeeper {
 public:
  struct Options {
    absl::Duration ttl = absl::Seconds(10);  // renewed each third of it
    // Called by threads of the keeper, no lock held; must not wait for the keeper.
    std::function<void(const SessionKey& key, const std::string& token)> on_lost;  // ran out, or was taken
    std::function<void(const WantedLease& wanted)> on_wanted;                      // another server asks for it
    // The store is another one than before, and was adopted: nothing known of sessions holds any more.
    std::function<void()> on_replaced;
  };
  LeaseKeeper(LeaseStore& store, Options options);
  ~LeaseKeeper();  // gives all leases back

  enum class Patience {
    kNone,  // ABORTED at once when another server holds it
    kWait,  // until it is free or the deadline comes
    kAsk,   // asks the holder to let go, and waits until one that is dead must have lost it
    // The same, but what it runs is to end for good; the holder may be this server itself.
    kCancel,
  };
  // Token of the lease. ABORTED when another server holds it. With kAsk and kCancel, `may_ask` is called once a holder
  // is known and says whether what that one does may be broken off; nobody is asked who takes the lease after it.
  absl::StatusOr<std::string> Acquire(const SessionKey& key, Patience patience, absl::Time deadline,
                                      const std::function<absl::StatusOr<bool>()>& may_ask = nullptr);
  // Gives it back; others can have it on return. What was handed over for writing under it must be written.
  void Release(const SessionKey& key, const std::string& token);
  // Calls with(token) under the lease that a turn holds now, or one taken for this call.
  absl::Status Borrow(const SessionKey& key, const std::function<absl::Status(const std::string& token)>& with);
  // Whether the lease still holds, with a margin, by this server's own clock.
  bool Holds(const SessionKey& key, const std::string& token) const;
  // A store's answer; starts over with the store when it says STORE_REPLACED.
  void Note(const absl::Status& status);

  int64_t held() const;
  int64_t renew_failures() const { return renew_failures_; }
  int64_t conflicts() const { return conflicts_; }

 private:
  struct Held {
    std::string token;
    int64_t until_ns = 0;  // CLOCK_BOOTTIME
  };
  absl::StatusOr<LeaseState> TryAcquire(const SessionKey& key, bool wait_for_own);
  void RenewLoop();
  void StartOver();
  void WatchLoop();
  void Renew();
  int64_t End(int64_t asked_ns) const;  // of a lease that was asked for then

  LeaseStore& store_;
  const Options options_;
  const std::string owner_;
  std::atomic<int64_t> renew_failures_{0}, conflicts_{0};
  mutable absl::Mutex mu_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  bool replaced_ ABSL_GUARDED_BY(mu_) = false;
  std::map<uint64_t, std::pair<SessionKey, Held>> held_ ABSL_GUARDED_BY(mu_);  // by uid
  std::set<uint64_t> taking_ ABSL_GUARDED_BY(mu_);  // uids of which the store is asked for the lease
  std::thread renew_thread_, watch_thread_;
};

}  // namespace smt
