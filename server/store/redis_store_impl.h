// RedisStore's parts: writing in redis_commit.cc, references and cleaning up in redis_references.cc, reading in
// redis_reader.cc, leases in redis_leases.cc. Not for others.
//
// The order in which a session comes and goes, over keys that no single script may touch together:
//   made      data under its uid, index entry · then its id is claimed, which is when it exists
//   removed   data under its uid, which is when it ceases to exist · then its id and index entry
// An id whose uid has no data is free. Data whose uid no id leads to is swept, as is what refers to others beyond what
// its session says it does: `pending` lists where to look.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/store/redis_client.h"
#include "server/store/redis_store.h"

namespace smt::store_internal {

class RedisStoreImpl final : public RedisStore {
 public:
  explicit RedisStoreImpl(std::unique_ptr<RedisClient> client);
  ~RedisStoreImpl() override;

  std::vector<absl::Status> Commit(std::span<const SessionWrite> writes, bool sync) override;
  absl::StatusOr<StoredSession> Find(std::string_view id) override;
  absl::StatusOr<std::vector<StoredSession>> List(std::string_view after, size_t limit) override;
  absl::StatusOr<int64_t> Count() override;
  absl::StatusOr<int64_t> LogEnd(const SessionKey& key, int64_t branch) override;
  absl::StatusOr<std::vector<int32_t>> ReadLog(const SessionKey& key, int64_t branch, int64_t first,
                                               int64_t last) override;
  absl::StatusOr<std::string> GetRequest(const SessionKey& key, std::string_view request_id) override;
  absl::StatusOr<std::string> GetRemoval(std::string_view id, std::string_view request_id) override;
  absl::StatusOr<std::vector<StoredRequest>> ListRequests(std::string* cursor, size_t limit) override;
  absl::Status RemoveRequests(std::span<const StoredRequest> requests) override;
  absl::Status PutSnapshot(const SessionKey& key, const SnapshotName& name, std::string_view bytes,
                           std::span<const SnapshotName> drop) override {
    return PutSnapshotLeased(key, "", name, bytes, drop);
  }
  absl::StatusOr<std::vector<SnapshotName>> ListSnapshots(const SessionKey& key) override;
  absl::StatusOr<std::string> GetSnapshot(const SessionKey& key, const SnapshotName& name) override;
  absl::Status Health() override { return client_->Health(); }
  int64_t FreeBytes() override { return client_->FreeBytes(); }

  absl::StatusOr<LeaseState> Acquire(const SessionKey& key, std::string_view owner, absl::Duration ttl) override;
  std::vector<absl::Status> Renew(std::span<const HeldLease> leases, absl::Duration ttl) override;
  absl::Status Release(std::span<const HeldLease> leases) override;
  absl::Status RequestHandover(const WantedLease& wanted) override;
  absl::StatusOr<std::vector<WantedLease>> PendingHandovers(std::string_view owner, absl::Duration wait) override;
  absl::Status PutSnapshotLeased(const SessionKey& key, std::string_view lease, const SnapshotName& name,
                                 std::string_view bytes, std::span<const SnapshotName> drop) override;
  absl::Status AdoptReplacedStore() override;

  bool durable_sync() const override { return client_->durable_sync(); }
  std::string Description() const override { return client_->Description(); }
  absl::Status Sweep() override;

 private:
  using Effect = RedisClient::Effect;
  using Lane = RedisClient::Lane;

  // Consecutive writes of a group that are sent together.
  struct Wave {
    struct Session {
      SessionKey key;
      std::vector<size_t> writes;
      bool creates = false, removes = false;  // what is asked for
      bool created = false, removed = false;  // what its script did
      bool stale = false;                     // references are to be let go of
      bool unfinished = false;                // left to the sweep
      std::vector<int64_t> long_tails;        // branches
      size_t command = 0;                     // the one whose reply tells
    };
    std::vector<Session> sessions;
    bool names = false;  // ids come or go
  };

  // redis_commit.cc
  static size_t WaveEnd(std::span<const SessionWrite> writes, size_t begin);
  absl::Status CommitWave(std::span<const SessionWrite> writes, std::span<absl::Status> out, bool last, bool sync)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(commit_mu_);
  static Wave MakeWave(std::span<const SessionWrite> writes);
  void TakeOutcomes(const std::vector<RedisReply>& replies, std::span<const SessionWrite> writes,
                    std::span<absl::Status> out, Wave::Session* session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(commit_mu_);
  // Sends commands after a look at the format record and, sealed, before the commit's counter; gives their replies.
  absl::StatusOr<std::vector<RedisReply>> Exchange(std::vector<RedisCommand> commands, Effect effect, bool seal,
                                                   bool sync) ABSL_EXCLUSIVE_LOCKS_REQUIRED(commit_mu_);
  RedisCommand CommitCommand(const SessionKey& key, std::span<const SessionWrite> writes, const std::vector<size_t>& of)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(commit_mu_);
  void AppendWrite(const SessionWrite& write, Words* words) const;
  absl::Status ToStatus(const SessionWrite& write, std::string_view outcome) const;
  absl::Status FinishClaim(const SessionKey& key, const RedisReply& reply, bool sync)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(commit_mu_);
  void Unname(const SessionKey& key, const RedisReply& reply) ABSL_EXCLUSIVE_LOCKS_REQUIRED(commit_mu_);
  absl::Status Purge(const SessionKey& key);
  void JoinTails(const Wave& wave) const;
  std::optional<RedisCommand> JoinCommand(const SessionKey& key, int64_t branch, const RedisReply& tail) const;
  RedisCommand MarkPending(const SessionKey& key);
  RedisCommand NoteRemoval(const SessionKey& key, const SessionWrite::Removal& removal) const;
  RedisCommand ClearPending(const SessionKey& key) const;
  RedisCommand UnIndex(const SessionKey& key) const;

  // redis_references.cc
  // What the session's list holds: "OWNER:KIND:BRANCH:POSITION"; nothing of itself, which it has anyway.
  static Words ReferenceMembers(const SessionWrite& write);
  absl::Status BeginReferences(const SessionWrite& write) ABSL_EXCLUSIVE_LOCKS_REQUIRED(commit_mu_);
  // Lets go of what the session's list holds beyond what it says it refers to.
  absl::Status ReleaseStale(const SessionKey& key);
  absl::Status SweepOne(const SessionKey& key);
  void SweepLoop();

  // redis_reader.cc
  struct Segment {
    int64_t start = 0;
    size_t record_bytes = 0;
    std::vector<int32_t> ids;
    int64_t end() const { return start + static_cast<int64_t>(ids.size()); }
  };
  absl::StatusOr<Segment> ToSegment(const SessionKey& key, int64_t branch, const RedisReply& start,
                                    const RedisReply& bytes) const;
  struct Tail {
    std::optional<int64_t> end;
    std::vector<Segment> segments;  // last first
  };
  // At least the last segment, and others before it up to so many of so many bytes together.
  RedisCommand TailCommand(const SessionKey& key, int64_t branch, int most_segments, size_t most_bytes) const;
  absl::StatusOr<Tail> ToTail(const SessionKey& key, int64_t branch, const RedisReply& reply) const;
  absl::StatusOr<StoredSession> FindDamaged(std::string_view id, const absl::Status& damage);
  absl::StatusOr<uint64_t> ParseName(std::string_view id, std::string_view record) const;
  // Ids and uids of the indexes from `after` on, which itself belongs to it with `inclusive`.
  absl::StatusOr<std::vector<SessionKey>> ReadIndex(std::string_view after, bool inclusive, size_t limit);
  absl::Status Gone(const SessionKey& key) const;

  // redis_leases.cc
  absl::Status LeaseLost(const SessionKey& key, std::string_view present) const;

  const std::unique_ptr<RedisClient> client_;
  const RedisKeys& keys_;

  absl::Mutex commit_mu_;  // orders commits, so that their numbers go up
  int64_t sequence_ ABSL_GUARDED_BY(commit_mu_) = 0;
  std::vector<RedisCommand> deferred_ ABSL_GUARDED_BY(commit_mu_);  // sent along with the next commit

  std::atomic<int64_t> acquired_{0};  // leases asked for

  absl::Mutex sweep_mu_;
  bool stop_ ABSL_GUARDED_BY(sweep_mu_) = false;
  absl::Mutex seen_mu_;
  struct Seen {
    std::string score;
    SteadyTime since;
  };
  std::map<std::string, Seen> seen_ ABSL_GUARDED_BY(seen_mu_);  // entries of `pending`, by member
  std::thread sweep_thread_;
};

}  // namespace smt::store_internal
