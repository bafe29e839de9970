// A SessionStore in memory that counts commits, can be held up in a sync and told to fail. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/store/session_store.h"

namespace smt {

class MemoryStore final : public SessionStore {
 public:
  // Commits wait, before they apply anything, while held.
  void Hold(bool held);
  void WaitUntilCommitWaits();  // for a commit that waits since Hold(true)
  // The next commit's writes fail with this, applying nothing.
  void FailCommits(int count, absl::Status status);
  // The next write of which this is true fails with this; those beside it do not.
  void FailWrite(absl::Status status, std::function<bool(const SessionWrite& write, bool sync)> which);
  // Reads of a log at this position are DATA_LOSS from now on; 0: no longer.
  void DamageLog(int64_t position);
  int64_t commits() const;
  int64_t syncs() const;
  std::vector<size_t> group_sizes() const;

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
                           std::span<const SnapshotName> drop) override;
  absl::StatusOr<std::vector<SnapshotName>> ListSnapshots(const SessionKey& key) override;
  absl::StatusOr<std::string> GetSnapshot(const SessionKey& key, const SnapshotName& name) override;
  absl::Status Health() override { return absl::OkStatus(); }
  int64_t FreeBytes() override { return -1; }

 private:
  struct Log {
    int64_t start = 0;
    std::vector<int32_t> ids;
    int64_t end() const { return start + static_cast<int64_t>(ids.size()); }
  };
  struct Session {
    uint64_t uid = 0;
    std::string header;
  };
  // By uid: they outlive their session while another refers to them.
  struct Data {
    std::map<int64_t, Log> logs;                                   // by branch
    std::map<std::pair<int64_t, int64_t>, std::string> snapshots;  // by branch, position
    std::vector<StoreReference> references;                        // to others
    bool deleted = false;
  };
  bool Referred(StoreReference::Kind kind, uint64_t uid, int64_t branch, int64_t position)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Drops what belonged to sessions that are deleted and nobody refers to.
  void Collect() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Apply(const SessionWrite& write) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Session* Of(const SessionKey& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable absl::Mutex mu_;
  bool held_ ABSL_GUARDED_BY(mu_) = false;
  bool waiting_ ABSL_GUARDED_BY(mu_) = false;
  int fail_count_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status fail_status_ ABSL_GUARDED_BY(mu_);
  std::function<bool(const SessionWrite&, bool)> fails_ ABSL_GUARDED_BY(mu_);
  int64_t damaged_position_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t syncs_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<size_t> group_sizes_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, Session> sessions_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, Data> data_ ABSL_GUARDED_BY(mu_);
  std::map<std::pair<uint64_t, std::string>, std::string> requests_ ABSL_GUARDED_BY(mu_);
};

}  // namespace smt
