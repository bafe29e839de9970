// References between sessions, whose keys no script may touch together. Each is noted twice: in the list of the session
// that refers (`f`), first as pending, and with the owner (`r`), where it keeps what it names. The list always holds at
// least what owners have noted, so a change cut short anywhere is put right from the list alone.
//
//   list: pending · owners: noted · the write, which makes the list's exact (committed, the others dropping)
//   · owners: dropped ones forgotten · list: likewise
#include <algorithm>
#include <utility>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/store/redis_store_impl.h"

namespace smt::store_internal {
namespace {

constexpr size_t kSweepBatch = 256;

std::string Member(uint64_t uid, const StoreReference& r) {
  return StrCat(UidText(uid), r.kind == StoreReference::Kind::kLog ? ":L:" : ":S:", r.branch, ":", r.position);
}

// "OWNER:rest" of a list as "SESSION:rest" of the owner's, and the owner.
std::optional<std::pair<uint64_t, std::string>> WithOwner(std::string_view member, uint64_t session) {
  const std::optional<uint64_t> owner = ParseUid(member.substr(0, 16));
  if (!owner) return std::nullopt;
  return std::make_pair(*owner, StrCat(UidText(session), member.substr(16)));
}

}  // namespace

Words RedisStoreImpl::ReferenceMembers(const SessionWrite& w) {
  Words out;
  for (const StoreReference& r : *w.references) {
    if (r.owner.uid != w.key.uid) out.push_back(Member(r.owner.uid, r));
  }
  return out;
}

absl::Status RedisStoreImpl::BeginReferences(const SessionWrite& w) {
  const uint64_t uid = w.key.uid;
  const bool creates = w.kind == SessionWrite::Kind::kCreate;
  Words words = ReferenceMembers(w);
  words.insert(words.begin(), creates ? "" : w.key.id);
  ASSIGN_OR_RETURN(
      std::vector<RedisReply> replies,
      Exchange({MarkPending(w.key),
                client_->Script(RedisScript::kBeginRefs, {keys_.Meta(uid), keys_.References(uid)}, std::move(words))},
               Effect::kWrite, false, false));
  for (const RedisReply& reply : replies) RETURN_IF_ERROR(client_->StatusOf(reply));
  if (replies[1].text != "OK") {
    deferred_.push_back(ClearPending(w.key));
    return Gone(w.key);
  }

  std::map<uint64_t, std::vector<const StoreReference*>> by_owner;
  for (const StoreReference& r : *w.references) {
    if (r.owner.uid != uid) by_owner[r.owner.uid].push_back(&r);
  }
  std::vector<RedisCommand> commands;
  for (const auto& [owner, references] : by_owner) {
    Words members;
    for (const StoreReference* r : references) members.push_back(Member(uid, *r));
    commands.push_back(client_->Script(
        RedisScript::kAddRefs, {keys_.Meta(owner), keys_.Referrers(owner), keys_.Ends(owner), keys_.Snapshots(owner)},
        std::move(members)));
  }
  if (commands.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(replies, Exchange(std::move(commands), Effect::kFinish, false, false));
  absl::Status status;
  size_t at = 0;
  for (const auto& [owner, references] : by_owner) {
    const RedisReply& reply = replies[at++];
    if (status.ok()) status = client_->StatusOf(reply);
    if (!status.ok() || reply.number == 0) continue;
    const StoreReference& r = *references[static_cast<size_t>(reply.number) - 1];
    status = absl::NotFoundError(StrCat("session '", r.owner.id, "' has no ",
                                        r.kind == StoreReference::Kind::kLog ? "log up to" : "snapshot at",
                                        " position ", r.position, " on branch ", r.branch, " (any more)"));
  }
  if (!status.ok() && ReleaseStale(w.key).ok()) deferred_.push_back(ClearPending(w.key));
  return status;
}

absl::Status RedisStoreImpl::ReleaseStale(const SessionKey& key) {
  const uint64_t uid = key.uid;
  const std::vector<RedisCommand> look = {{"HGET", keys_.Meta(uid), "id"}, {"HGETALL", keys_.References(uid)}};
  ASSIGN_OR_RETURN(std::vector<RedisReply> replies, client_->Run(look, Effect::kRead));
  for (const RedisReply& reply : replies) RETURN_IF_ERROR(client_->StatusOf(reply));
  const bool alive = replies[0].text == key.id;
  const std::vector<RedisReply>& states = replies[1].elements;
  std::map<uint64_t, Words> by_owner;
  Words stale;
  for (size_t i = 0; i + 1 < states.size(); i += 2) {
    if (alive && states[i + 1].text == "c") continue;
    stale.push_back(states[i].text);
    if (auto with = WithOwner(states[i].text, uid)) by_owner[with->first].push_back(std::move(with->second));
  }
  if (stale.empty()) return absl::OkStatus();
  std::vector<RedisCommand> commands;
  for (auto& [owner, members] : by_owner) {
    commands.push_back(
        client_->Script(RedisScript::kDropRefs, {keys_.Meta(owner), keys_.Referrers(owner)}, std::move(members)));
  }
  ASSIGN_OR_RETURN(replies, client_->Run(commands, Effect::kWrite));
  for (const RedisReply& reply : replies) RETURN_IF_ERROR(client_->StatusOf(reply));
  return client_
      ->Run(client_->Script(RedisScript::kEndRefs, {keys_.Meta(uid), keys_.References(uid)}, std::move(stale)),
            Effect::kWrite)
      .status();
}

absl::Status RedisStoreImpl::Sweep() {
  ASSIGN_OR_RETURN(const RedisReply pending,
                   client_->Run(RedisCommand{"ZRANGE", keys_.Pending(), "0", "-1", "WITHSCORES"}, Effect::kRead));
  const SteadyTime now = std::chrono::steady_clock::now();
  std::vector<SessionKey> due;
  {
    absl::MutexLock lock(&seen_mu_);
    std::map<std::string, Seen> seen;
    for (size_t i = 0; i + 1 < pending.elements.size(); i += 2) {
      const std::string &member = pending.elements[i].text, &score = pending.elements[i + 1].text;
      const auto before = seen_.find(member);
      const bool same = before != seen_.end() && before->second.score == score;
      const SteadyTime since = same ? before->second.since : now;
      seen[member] = {score, since};
      const auto key = RedisKeys::ParseMember(member);
      // By this clock and this object's own looks: clocks of others say nothing.
      if (same && key && now - since >= absl::ToChronoMilliseconds(client_->options().sweep_grace) &&
          due.size() < kSweepBatch) {
        due.push_back(*key);
      }
    }
    seen_ = std::move(seen);
  }
  absl::Status result;
  for (const SessionKey& key : due) {
    const absl::Status status = SweepOne(key);
    if (result.ok()) result = status;
  }
  return result;
}

absl::Status RedisStoreImpl::SweepOne(const SessionKey& key) {
  const std::vector<RedisCommand> look = {{"GET", keys_.Name(key.id)}, {"HGET", keys_.Meta(key.uid), "id"}};
  ASSIGN_OR_RETURN(const std::vector<RedisReply> replies, client_->Run(look, Effect::kRead));
  for (const RedisReply& reply : replies) RETURN_IF_ERROR(client_->StatusOf(reply));
  const bool named = replies[0].text == keys_.SealName(key), alive = replies[1].text == key.id;
  if (!named || !alive) {
    RETURN_IF_ERROR(Purge(key));
    const std::vector<RedisCommand> forget = {
        client_->Script(RedisScript::kUnname, {keys_.Name(key.id)}, {keys_.SealName(key)}), UnIndex(key)};
    RETURN_IF_ERROR(client_->Run(forget, Effect::kWrite).status());
  }
  RETURN_IF_ERROR(ReleaseStale(key));
  return client_->Run(ClearPending(key), Effect::kWrite).status();
}

void RedisStoreImpl::SweepLoop() {
  const auto stopped = [](bool* stop) { return *stop; };
  for (;;) {
    {
      absl::MutexLock lock(&sweep_mu_);
      if (sweep_mu_.AwaitWithTimeout(absl::Condition(+stopped, &stop_), client_->options().sweep_interval)) return;
    }
    Sweep().IgnoreError();  // Redis may be away; the next look comes
  }
}

}  // namespace smt::store_internal
