// A group of writes goes out in waves. A wave has one script a session, all in one round trip; creations and removals
// take a second one for the ids. A wave ends where a write depends on an earlier one's outcome elsewhere: an id that
// passes from one uid to another, references.
#include <algorithm>
#include <cstring>
#include <random>
#include <set>

#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/store/record_format.h"
#include "server/store/redis_store_impl.h"

namespace smt::store_internal {
namespace {

constexpr size_t kMaxSegmentIds = 4096;  // a reader decodes whole segments
constexpr int kTailSegments = 96;        // looked at to join short ones
constexpr size_t kMostJoins = 16;        // in one commit
using Kind = SessionWrite::Kind;

uint64_t RandomBits() {
  static thread_local std::mt19937_64 engine{std::random_device{}()};
  return engine();
}

}  // namespace

std::vector<absl::Status> RedisStoreImpl::Commit(std::span<const SessionWrite> writes, bool sync) {
  absl::MutexLock lock(&commit_mu_);
  const absl::Time begin = absl::Now();
  std::vector<absl::Status> out(writes.size());
  absl::Status status;
  for (size_t at = 0; status.ok() && (at < writes.size() || writes.empty());) {
    const size_t end = WaveEnd(writes, at);
    const bool last = end == writes.size();
    status = CommitWave(writes.subspan(at, end - at), std::span(out).subspan(at, end - at), last, last && sync);
    at = end;
    if (!status.ok()) std::fill(out.begin() + static_cast<int64_t>(at), out.end(), status);
    if (writes.empty()) break;
  }
  if (sync && !status.ok()) {
    // What was applied may not be on disk.
    for (absl::Status& s : out) {
      if (s.ok()) s = status;
    }
  }
  if (sync && status.ok() && client_->options().on_sync) client_->options().on_sync(absl::Now() - begin);
  return out;
}

size_t RedisStoreImpl::WaveEnd(std::span<const SessionWrite> writes, size_t begin) {
  struct Use {
    uint64_t uid = 0;
    bool created = false, removed = false;
  };
  std::map<std::string_view, Use> uses;
  size_t end = begin;
  for (; end < writes.size(); ++end) {
    const SessionWrite& w = writes[end];
    if (w.references && end > begin) break;
    const auto [it, fresh] = uses.try_emplace(w.key.id, Use{w.key.uid});
    Use& use = it->second;
    if (!fresh &&
        (use.uid != w.key.uid || use.removed || w.kind == Kind::kCreate || (use.created && w.kind == Kind::kRemove))) {
      break;
    }
    use.created |= w.kind == Kind::kCreate;
    use.removed |= w.kind == Kind::kRemove;
    if (w.references) return end + 1;
  }
  return end;
}

absl::Status RedisStoreImpl::CommitWave(std::span<const SessionWrite> writes, std::span<absl::Status> out, bool last,
                                        bool sync) {
  const bool references = writes.size() == 1 && writes[0].references.has_value() && writes[0].kind != Kind::kRemove;
  if (references) {
    out[0] = BeginReferences(writes[0]);
    if (!out[0].ok()) return absl::IsUnavailable(out[0]) ? out[0] : absl::OkStatus();
  }
  Wave wave = MakeWave(writes);
  const auto fail = [&](const absl::Status& status) {
    for (absl::Status& s : out) {
      if (s.ok()) s = status;
    }
    return status;
  };

  // The first trip: a script for each session.
  std::vector<RedisCommand> commands;
  commands.swap(deferred_);
  for (Wave::Session& s : wave.sessions) {
    if (s.creates || s.removes) commands.push_back(MarkPending(s.key));
    if (s.creates) commands.push_back({"ZADD", keys_.IndexOf(s.key.id), "0", RedisKeys::Member(s.key)});
    for (const size_t i : s.writes) {
      if (writes[i].removal) commands.push_back(NoteRemoval(s.key, *writes[i].removal));
    }
    s.command = commands.size();
    commands.push_back(CommitCommand(s.key, writes, s.writes));
  }
  auto replies = Exchange(std::move(commands), Effect::kWrite, last && !wave.names, sync && !wave.names);
  if (!replies.ok()) return fail(replies.status());
  for (Wave::Session& s : wave.sessions) TakeOutcomes(*replies, writes, out, &s);

  // The second: ids.
  if (wave.names) {
    commands.clear();
    for (Wave::Session& s : wave.sessions) {
      s.command = commands.size();
      if (s.created) {
        commands.push_back(client_->Script(RedisScript::kClaim, {keys_.Name(s.key.id)}, {keys_.SealName(s.key), ""}));
      } else if (s.removed) {
        commands.push_back(client_->Script(RedisScript::kUnname, {keys_.Name(s.key.id)}, {keys_.SealName(s.key)}));
        commands.push_back(UnIndex(s.key));
      } else if (s.creates) {
        commands.push_back(UnIndex(s.key));
      }
    }
    replies = Exchange(std::move(commands), Effect::kFinish, last, sync);
    if (!replies.ok()) return fail(replies.status());
    for (Wave::Session& s : wave.sessions) {
      if (s.removed) Unname(s.key, (*replies)[s.command]);
      if (!s.created) continue;
      const absl::Status status = FinishClaim(s.key, (*replies)[s.command], sync);
      if (status.ok()) continue;
      s.unfinished = !absl::IsAlreadyExists(status) && !absl::IsResourceExhausted(status);
      // Nothing was made, so what came after it found nothing.
      for (const size_t i : s.writes) {
        const bool itself = writes[i].kind == Kind::kCreate || !absl::IsAlreadyExists(status);
        if (out[i].ok()) out[i] = itself ? status : Gone(s.key);
      }
    }
  }

  for (const Wave::Session& s : wave.sessions) {
    const bool released = !(s.stale || references) || ReleaseStale(s.key).ok();
    if (released && !s.unfinished && (s.creates || s.removes || references)) deferred_.push_back(ClearPending(s.key));
  }
  JoinTails(wave);
  return absl::OkStatus();
}

RedisStoreImpl::Wave RedisStoreImpl::MakeWave(std::span<const SessionWrite> writes) {
  Wave wave;
  std::map<uint64_t, size_t> by_uid;
  for (size_t i = 0; i < writes.size(); ++i) {
    const auto [it, fresh] = by_uid.try_emplace(writes[i].key.uid, wave.sessions.size());
    if (fresh) wave.sessions.emplace_back().key = writes[i].key;
    Wave::Session& s = wave.sessions[it->second];
    s.writes.push_back(i);
    s.creates |= writes[i].kind == Kind::kCreate;
    s.removes |= writes[i].kind == Kind::kRemove;
    wave.names |= s.creates || s.removes;
  }
  return wave;
}

void RedisStoreImpl::TakeOutcomes(const std::vector<RedisReply>& replies, std::span<const SessionWrite> writes,
                                  std::span<absl::Status> out, Wave::Session* s) {
  const RedisReply& reply = replies[s->command];
  absl::Status status = client_->StatusOf(reply);
  if (status.ok() && s->creates) {
    // Without its place in the index it would not be listed.
    status = client_->StatusOf(replies[s->command - 1]);
    if (!status.ok()) Purge(s->key).IgnoreError();
  }
  if (!status.ok()) {
    for (const size_t i : s->writes) out[i] = status;
    return;
  }
  const std::vector<absl::string_view> outcomes = absl::StrSplit(ToAbsl(reply.elements[0].text), '\n');
  for (size_t i = 0; i < s->writes.size(); ++i) {
    const absl::string_view outcome = outcomes[std::min(i, outcomes.size() - 1)];
    const SessionWrite& w = writes[s->writes[i]];
    out[s->writes[i]] = ToStatus(w, {outcome.data(), outcome.size()});
    if (!out[s->writes[i]].ok()) continue;
    s->created |= w.kind == Kind::kCreate;
    s->removed |= w.kind == Kind::kRemove;
  }
  for (const RedisReply& branch : reply.elements[1].elements) {
    s->long_tails.push_back(std::strtoll(branch.text.c_str(), nullptr, 10));
  }
  s->stale = !reply.elements[2].elements.empty();
}

absl::StatusOr<std::vector<RedisReply>> RedisStoreImpl::Exchange(std::vector<RedisCommand> commands, Effect effect,
                                                                 bool seal, bool sync) {
  commands.insert(commands.begin(), RedisCommand{"GET", keys_.Format()});
  if (seal) client_->AddCount(&commands);
  const bool waits = seal && sync && client_->has_waitaof();
  const absl::Duration patience = client_->options().command_timeout;
  if (waits) commands.push_back({"WAITAOF", "1", "0", std::to_string(absl::ToInt64Milliseconds(patience))});
  ASSIGN_OR_RETURN(std::vector<RedisReply> replies,
                   client_->Run(commands, effect, Lane::kCommit, waits ? patience : absl::ZeroDuration()));
  RETURN_IF_ERROR(client_->CheckFormat(replies[0]));
  if (waits) {
    RETURN_IF_ERROR(client_->StatusOf(replies.back()));
    if (replies.back().elements.empty() || replies.back().elements[0].number < 1) {
      return absl::UnavailableError(StrCat(client_->Description(), ": what was written is not on its disk within ",
                                           absl::FormatDuration(patience)));
    }
    replies.pop_back();
  }
  if (seal) client_->Counted(replies.back());
  replies.erase(replies.begin());
  return replies;
}

RedisCommand RedisStoreImpl::CommitCommand(const SessionKey& key, std::span<const SessionWrite> writes,
                                           const std::vector<size_t>& of) {
  Words words = {key.id, client_->instance(), std::to_string(++sequence_), std::to_string(of.size())};
  for (const size_t i : of) AppendWrite(writes[i], &words);
  const uint64_t uid = key.uid;
  return client_->Script(RedisScript::kCommit,
                         {keys_.Meta(uid), keys_.Header(key), keys_.Lease(uid), keys_.Ends(uid), keys_.Requests(uid),
                          keys_.References(uid)},
                         std::move(words));
}

void RedisStoreImpl::AppendWrite(const SessionWrite& w, Words* words) const {
  const bool removes = w.kind == Kind::kRemove, creates = w.kind == Kind::kCreate;
  const bool header = w.header.has_value() || creates;
  words->push_back(removes ? "R" : creates ? "C" : "U");
  words->push_back(w.lease);
  words->push_back(header && !removes ? "1" : "0");
  words->push_back(header && !removes ? SealRecord(RecordType::kSession, kRedisRecordVersion, keys_.Header(w.key),
                                                   w.header.value_or(""))
                                      : "");
  const bool appends = w.position.has_value() && !removes;
  const int64_t position = appends ? *w.position : 0;
  words->push_back(appends ? std::to_string(position) : "");
  words->push_back(std::to_string(w.branch));
  words->push_back(std::to_string(w.log_begin));
  words->push_back(std::to_string(position + static_cast<int64_t>(w.ids.size())));

  const size_t ids = appends ? w.ids.size() : 0;
  words->push_back(std::to_string((ids + kMaxSegmentIds - 1) / kMaxSegmentIds));
  for (size_t at = 0; at < ids; at += kMaxSegmentIds) {
    const int64_t start = position + static_cast<int64_t>(at);
    const std::string_view bytes(reinterpret_cast<const char*>(w.ids.data() + at),
                                 std::min(kMaxSegmentIds, ids - at) * 4);
    words->push_back(std::to_string(start));
    words->push_back(
        SealRecord(RecordType::kLog, kRedisRecordVersion, keys_.Segment(w.key.uid, w.branch, start), bytes));
  }
  words->push_back(std::to_string(removes ? 0 : w.requests.size()));
  for (size_t i = 0; i < w.requests.size() && !removes; ++i) {
    const auto& [request_id, record] = w.requests[i];
    words->push_back(request_id);
    words->push_back(
        SealRecord(RecordType::kRequest, kRedisRecordVersion, keys_.Request(w.key.uid, request_id), record));
  }
  if (!w.references || removes) {
    words->push_back("-1");
  } else {
    const Words members = ReferenceMembers(w);
    words->push_back(std::to_string(members.size()));
    words->insert(words->end(), members.begin(), members.end());
  }
  const SessionWrite::KeptLogs kept = w.kept_logs && !removes ? *w.kept_logs : SessionWrite::KeptLogs();
  words->push_back(std::to_string(kept.below));
  words->push_back(std::to_string(kept.logs.size()));
  for (const auto& [branch, last] : kept.logs) {
    words->push_back(std::to_string(branch));
    words->push_back(std::to_string(last));
  }
}

absl::Status RedisStoreImpl::ToStatus(const SessionWrite& w, std::string_view outcome) const {
  if (outcome == "OK") return absl::OkStatus();
  if (outcome == "GONE") return Gone(w.key);
  if (outcome == "EXISTS") return absl::AlreadyExistsError(StrCat("session '", w.key.id, "' exists already"));
  if (outcome.starts_with("LEASE ")) return LeaseLost(w.key, outcome.substr(6));
  if (outcome.starts_with("END ")) {
    return absl::AbortedError(StrCat("session '", w.key.id, "': the log ends at position ", outcome.substr(4),
                                     ", the writer expects ", *w.position));
  }
  return absl::AbortedError(StrCat("session '", w.key.id, "': a later write came before this one: ", outcome));
}

// An id that is taken, unless whom it leads to is gone: then its removal was cut short.
absl::Status RedisStoreImpl::FinishClaim(const SessionKey& key, const RedisReply& reply, bool sync) {
  absl::Status status = client_->StatusOf(reply);
  std::string present = reply.text;
  for (int attempt = 0; status.ok() && present != "OK"; ++attempt) {
    const absl::StatusOr<uint64_t> uid = ParseName(key.id, present);
    bool dead = false;
    if (uid.ok() && attempt < 3) {
      const auto id = client_->Run(RedisCommand{"HGET", keys_.Meta(*uid), "id"}, Effect::kRead);
      status = id.status();
      dead = id.ok() && id->text != key.id;
    }
    if (status.ok() && !dead) status = absl::AlreadyExistsError(StrCat("session '", key.id, "' exists already"));
    if (!status.ok()) break;
    auto again = Exchange({client_->Script(RedisScript::kClaim, {keys_.Name(key.id)}, {keys_.SealName(key), present})},
                          Effect::kFinish, true, sync);
    status = again.ok() ? client_->StatusOf((*again)[0]) : again.status();
    if (status.ok()) present = (*again)[0].text;
  }
  if (absl::IsAlreadyExists(status) || absl::IsResourceExhausted(status)) {
    Purge(key).IgnoreError();
    deferred_.push_back(UnIndex(key));
  }
  return status;
}

// An id whose record is damaged leads nowhere; with its session it goes too.
void RedisStoreImpl::Unname(const SessionKey& key, const RedisReply& reply) {
  if (reply.is_error() || reply.text == "OK" || ParseName(key.id, reply.text).ok()) return;
  deferred_.push_back(client_->Script(RedisScript::kUnname, {keys_.Name(key.id)}, {reply.text}));
}

absl::Status RedisStoreImpl::Purge(const SessionKey& key) {
  const uint64_t uid = key.uid;
  return client_
      ->Run(client_->Script(
                RedisScript::kPurge,
                {keys_.Meta(uid), keys_.Header(key), keys_.Lease(uid), keys_.Requests(uid), keys_.References(uid)}, {}),
            Effect::kWrite)
      .status();
}

// Appends of one id each leave a record for each: a run of them becomes one, so that a log takes little more than its
// ids. Nothing depends on its success, and those left out come again with their next append.
void RedisStoreImpl::JoinTails(const Wave& wave) const {
  std::vector<std::pair<const SessionKey*, int64_t>> tails;
  std::vector<RedisCommand> commands;
  for (const Wave::Session& s : wave.sessions) {
    for (const int64_t branch : s.long_tails) {
      if (tails.size() == kMostJoins) break;
      tails.emplace_back(&s.key, branch);
      commands.push_back(TailCommand(s.key, branch, kTailSegments, kMaxSegmentIds * 4));
    }
  }
  const auto replies = client_->Run(commands, Effect::kRead, Lane::kCommit);
  if (!replies.ok()) return;
  commands.clear();
  for (size_t i = 0; i < tails.size(); ++i) {
    if (auto join = JoinCommand(*tails[i].first, tails[i].second, (*replies)[i])) commands.push_back(*std::move(join));
  }
  client_->Run(commands, Effect::kRead, Lane::kCommit).IgnoreError();
}

std::optional<RedisCommand> RedisStoreImpl::JoinCommand(const SessionKey& key, int64_t branch,
                                                        const RedisReply& reply) const {
  if (reply.is_error()) return std::nullopt;
  const absl::StatusOr<Tail> tail = ToTail(key, branch, reply);
  if (!tail.ok()) return std::nullopt;
  size_t ids = 0, n = 0;
  for (; n < tail->segments.size() && ids + tail->segments[n].ids.size() <= kMaxSegmentIds; ++n) {
    if (n > 0 && tail->segments[n].end() != tail->segments[n - 1].start) break;
    ids += tail->segments[n].ids.size();
  }
  Words words = {std::to_string(branch), ""};
  if (n >= 2) {
    std::vector<int32_t> joined;
    for (size_t i = n; i-- > 0;) {
      const Segment& s = tail->segments[i];
      joined.insert(joined.end(), s.ids.begin(), s.ids.end());
      words.push_back(std::to_string(s.start));
      words.push_back(std::to_string(s.record_bytes));
    }
    const std::string_view bytes(reinterpret_cast<const char*>(joined.data()), joined.size() * 4);
    words[1] = SealRecord(RecordType::kLog, kRedisRecordVersion,
                          keys_.Segment(key.uid, branch, tail->segments[n - 1].start), bytes);
  }
  return client_->Script(RedisScript::kJoin, {keys_.Meta(key.uid), keys_.Ends(key.uid)}, std::move(words));
}

RedisCommand RedisStoreImpl::MarkPending(const SessionKey& key) {
  // The score tells this change from a later one of the same session.
  return {"ZADD", keys_.Pending(), std::to_string(RandomBits() >> 12), RedisKeys::Member(key)};
}
// Before the session goes: whoever finds it and the session looks whether that is still the one it names.
RedisCommand RedisStoreImpl::NoteRemoval(const SessionKey& key, const SessionWrite::Removal& removal) const {
  const std::string name = keys_.Removal(key.id, removal.request_id);
  return {"SET", name, SealRecord(RecordType::kRequest, kRedisRecordVersion, name, removal.record), "PX",
          std::to_string(std::max<int64_t>(1, absl::ToInt64Milliseconds(removal.keep)))};
}
RedisCommand RedisStoreImpl::ClearPending(const SessionKey& key) const {
  return {"ZREM", keys_.Pending(), RedisKeys::Member(key)};
}
RedisCommand RedisStoreImpl::UnIndex(const SessionKey& key) const {
  return {"ZREM", keys_.IndexOf(key.id), RedisKeys::Member(key)};
}

}  // namespace smt::store_internal
