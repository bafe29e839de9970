// Who may write a session, where several servers share a store. A holder's token stands in every write, and the store
// refuses, in the same step that writes, one that is not the present token: a holder that lost its lease unaware
// changes nothing.
//
// Tokens are opaque and compared for equality, never for order: a store that lost its last writes counts from an
// earlier number again. A token holds the store's incarnation, a number that grows with each change of holder, and the
// owner.
//
// An owner is one server process: its id is drawn at random at start-up and never used again. Time decides only when a
// lease ends for want of renewal. A holder stops writing and sending before that by its own clock (CLOCK_BOOTTIME,
// which goes on while the machine sleeps), counted from before the call that renewed it.
//
// Thread-safe. Errors of every call: UNAVAILABLE as in session_store.h, with reason STORE_REPLACED once the store is
// another one than the one opened (emptied, or back without writes it had acknowledged).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/store/session_store.h"

namespace smt {

// ErrorInfo.reason of UNAVAILABLE: a token that is not, or no longer, the session's; the store is another one.
inline constexpr char kLeaseLost[] = "LEASE_LOST";
inline constexpr char kStoreReplaced[] = "STORE_REPLACED";

struct LeaseState {
  bool acquired = false;
  std::string token;         // when acquired: for SessionWrite::lease
  std::string present;       // token of whoever holds it: for RequestHandover
  std::string holder;        // owner id in that
  absl::Duration remaining;  // until it ends unless it is renewed
};

struct HeldLease {
  SessionKey key;
  std::string token;
  friend bool operator==(const HeldLease&, const HeldLease&) = default;
};

// What becomes of the request that a holder who is asked for its lease is running.
enum class Handover {
  kPark,    // another server goes on with it
  kCancel,  // it has ended
};
struct WantedLease {
  HeldLease lease;
  Handover handover = Handover::kPark;
  friend bool operator==(const WantedLease&, const WantedLease&) = default;
};

class LeaseStore {
 public:
  virtual ~LeaseStore() = default;

  // Takes the session's lease if nobody holds it, or says who does. An owner that holds it already gets a new token
  // and its old one ends. Looks at the uid alone and not at whether the session exists: one that makes a session takes
  // the lease of the uid it has drawn first.
  virtual absl::StatusOr<LeaseState> Acquire(const SessionKey& key, std::string_view owner, absl::Duration ttl) = 0;
  // One status each, in one round trip: OK, they last `ttl` from now; UNAVAILABLE with reason kLeaseLost.
  virtual std::vector<absl::Status> Renew(std::span<const HeldLease> leases, absl::Duration ttl) = 0;
  // Ends those that are still held. What was handed over for writing must be written before.
  virtual absl::Status Release(std::span<const HeldLease> leases) = 0;

  // Asks a lease's holder, which Acquire has told, to let go of it. OK as well when it has. The request lapses after a
  // minute; asking again changes nothing, and it is asked again until Acquire succeeds.
  virtual absl::Status RequestHandover(const WantedLease& wanted) = 0;
  // Leases that others have asked this owner for since the last call, also such that have ended since; waits up to
  // `wait` for the first. One thread.
  virtual absl::StatusOr<std::vector<WantedLease>> PendingHandovers(std::string_view owner, absl::Duration wait) = 0;

  // SessionStore::PutSnapshot, refused with kLeaseLost unless `lease` is the session's token.
  virtual absl::Status PutSnapshotLeased(const SessionKey& key, std::string_view lease, const SnapshotName& name,
                                         std::string_view bytes, std::span<const SnapshotName> drop) = 0;

  // After STORE_REPLACED: goes on with the store as it is now. The caller has dropped everything it knew of the former
  // one: leases, headers, positions.
  virtual absl::Status AdoptReplacedStore() = 0;
};

}  // namespace smt
