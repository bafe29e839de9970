#include <algorithm>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/store/record_format.h"
#include "server/store/redis_store_impl.h"

namespace smt::store_internal {
namespace {

constexpr int kHandoverSeconds = 60;  // how long a request for one is kept
constexpr absl::Duration kHandoverRetry = absl::Milliseconds(100);

// The owner in "incarnation:epoch:owner".
std::string_view OwnerOf(std::string_view token) {
  const size_t colon = token.find(':', std::min(token.find(':'), token.size() - 1) + 1);
  return colon == std::string_view::npos ? std::string_view() : token.substr(colon + 1);
}

std::string Milliseconds(absl::Duration d) {
  return std::to_string(std::max<int64_t>(1, absl::ToInt64Milliseconds(d)));
}

}  // namespace

absl::Status RedisStoreImpl::LeaseLost(const SessionKey& key, std::string_view present) const {
  const std::string_view owner = OwnerOf(present);
  return WithDetails(
      absl::UnavailableError(StrCat("session '", key.id, "': this server's lease has ended",
                                    owner.empty() ? std::string() : StrCat(" and '", owner, "' has it now"),
                                    "; nothing was written")),
      {.reason = kLeaseLost, .retry_delay = kHandoverRetry});
}

absl::StatusOr<LeaseState> RedisStoreImpl::Acquire(const SessionKey& key, std::string_view owner, absl::Duration ttl) {
  const std::vector<RedisCommand> commands = {
      {"GET", keys_.Format()},
      client_->Script(RedisScript::kAcquire, {keys_.Meta(key.uid), keys_.Lease(key.uid)},
                      {client_->incarnation(), std::string(owner), Milliseconds(ttl), client_->instance(),
                       std::to_string(++acquired_)})};
  ASSIGN_OR_RETURN(const std::vector<RedisReply> replies, client_->Run(commands, Effect::kWrite));
  RETURN_IF_ERROR(client_->CheckFormat(replies[0]));
  RETURN_IF_ERROR(client_->StatusOf(replies[1]));
  const std::vector<RedisReply>& e = replies[1].elements;
  LeaseState out;
  out.acquired = e[0].number == 1;
  if (out.acquired) out.token = e[1].text;
  out.present = e[1].text;
  out.holder = OwnerOf(e[1].text);
  out.remaining = absl::Milliseconds(std::max<int64_t>(0, e[2].number));
  return out;
}

std::vector<absl::Status> RedisStoreImpl::Renew(std::span<const HeldLease> leases, absl::Duration ttl) {
  std::vector<RedisCommand> commands = {{"GET", keys_.Format()}};
  for (const HeldLease& lease : leases) {
    commands.push_back(
        client_->Script(RedisScript::kRenew, {keys_.Lease(lease.key.uid)}, {lease.token, Milliseconds(ttl)}));
  }
  const auto replies = client_->Run(commands, Effect::kWrite);
  absl::Status status = replies.status();
  if (status.ok()) status = client_->CheckFormat((*replies)[0]);
  std::vector<absl::Status> out(leases.size(), status);
  for (size_t i = 0; i < leases.size() && status.ok(); ++i) {
    const RedisReply& reply = (*replies)[i + 1];
    out[i] = client_->StatusOf(reply);
    if (out[i].ok() && reply.number != 1) out[i] = LeaseLost(leases[i].key, reply.text);
  }
  return out;
}

absl::Status RedisStoreImpl::Release(std::span<const HeldLease> leases) {
  std::vector<RedisCommand> commands;
  for (const HeldLease& lease : leases) {
    commands.push_back(client_->Script(RedisScript::kRelease, {keys_.Lease(lease.key.uid)}, {lease.token}));
  }
  ASSIGN_OR_RETURN(const std::vector<RedisReply> replies, client_->Run(commands, Effect::kWrite));
  for (const RedisReply& reply : replies) RETURN_IF_ERROR(client_->StatusOf(reply));
  return absl::OkStatus();
}

absl::Status RedisStoreImpl::RequestHandover(const WantedLease& wanted) {
  const std::string_view owner = OwnerOf(wanted.lease.token);
  if (owner.empty()) return absl::OkStatus();
  const std::vector<RedisCommand> ask = {{"ZADD", keys_.Handovers(owner), "0", RedisKeys::Wanted(wanted)},
                                         {"EXPIRE", keys_.Handovers(owner), std::to_string(kHandoverSeconds)}};
  ASSIGN_OR_RETURN(const std::vector<RedisReply> replies, client_->Run(ask, Effect::kWrite));
  return client_->StatusOf(replies[0]);
}

absl::StatusOr<std::vector<WantedLease>> RedisStoreImpl::PendingHandovers(std::string_view owner, absl::Duration wait) {
  const std::string key = keys_.Handovers(owner);
  std::vector<WantedLease> out;
  const auto take = [&](const std::string& member) {
    if (auto wanted = RedisKeys::ParseWanted(member)) out.push_back(*std::move(wanted));
  };
  std::vector<RedisCommand> commands;
  if (wait > absl::ZeroDuration()) {
    commands.push_back({"BZPOPMIN", key, StrCat(absl::ToDoubleSeconds(std::max(wait, absl::Milliseconds(1))))});
  }
  commands.push_back({"ZPOPMIN", key, "1000"});
  // A reply that is lost takes requests with it: they are made again.
  ASSIGN_OR_RETURN(const std::vector<RedisReply> replies,
                   client_->Run(commands, Effect::kRead, Lane::kWaiting, std::max(wait, absl::ZeroDuration())));
  for (const RedisReply& reply : replies) RETURN_IF_ERROR(client_->StatusOf(reply));
  if (commands.size() == 2 && replies[0].elements.size() == 3) take(replies[0].elements[1].text);
  for (size_t i = 0; i < replies.back().elements.size(); i += 2) take(replies.back().elements[i].text);
  return out;
}

absl::Status RedisStoreImpl::PutSnapshotLeased(const SessionKey& key, std::string_view lease, const SnapshotName& name,
                                               std::string_view bytes, std::span<const SnapshotName> drop) {
  Words words = {key.id, std::string(lease), RedisKeys::SnapshotField(name),
                 SealRecord(RecordType::kSnapshot, kRedisRecordVersion, keys_.Snapshot(key.uid, name), bytes)};
  for (const SnapshotName& other : drop) words.push_back(RedisKeys::SnapshotField(other));
  const std::vector<RedisCommand> commands = {
      {"GET", keys_.Format()},
      client_->Script(RedisScript::kPutSnapshot, {keys_.Meta(key.uid), keys_.Lease(key.uid), keys_.Snapshots(key.uid)},
                      std::move(words))};
  ASSIGN_OR_RETURN(const std::vector<RedisReply> replies, client_->Run(commands, Effect::kWrite));
  RETURN_IF_ERROR(client_->CheckFormat(replies[0]));
  RETURN_IF_ERROR(client_->StatusOf(replies[1]));
  const std::string_view outcome = replies[1].text;
  if (outcome == "GONE") return Gone(key);
  if (outcome.starts_with("LEASE ")) return LeaseLost(key, outcome.substr(6));
  return absl::OkStatus();
}

absl::Status RedisStoreImpl::AdoptReplacedStore() {
  absl::MutexLock lock(&commit_mu_);
  deferred_.clear();
  return client_->Adopt();
}

}  // namespace smt::store_internal
