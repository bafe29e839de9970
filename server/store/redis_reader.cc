#include <algorithm>
#include <cstring>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "server/store/record_format.h"
#include "server/store/redis_store_impl.h"

namespace smt::store_internal {
namespace {

constexpr int kSegmentsPerRead = 64;  // 1 MiB of ids

// "session 'a': <what>", keeping the code.
absl::Status About(std::string_view id, std::string_view what, const absl::Status& s) {
  return absl::Status(s.code(), StrCat("session '", id, "': ", what, ": ", std::string(s.message())));
}

absl::StatusOr<std::string> Payload(RecordType type, std::string_view key, std::string_view record, std::string_view id,
                                    std::string_view what) {
  const auto opened = OpenRecord(type, kRedisRecordVersion, key, record);
  if (!opened.ok()) return About(id, StrCat(what, " is damaged"), opened.status());
  return std::string(opened->payload);
}

int64_t ToInt(const std::string& text) { return std::strtoll(text.c_str(), nullptr, 10); }

}  // namespace

absl::Status RedisStoreImpl::Gone(const SessionKey& key) const {
  return absl::NotFoundError(StrCat("session '", key.id, "' does not exist any more"));
}

absl::StatusOr<uint64_t> RedisStoreImpl::ParseName(std::string_view id, std::string_view record) const {
  ASSIGN_OR_RETURN(const std::string payload,
                   Payload(RecordType::kName, keys_.Name(id), record, id, "the record of its id"));
  RecordReader reader(payload);
  const uint64_t uid = reader.U64();
  if (!reader.done()) return absl::DataLossError(StrCat("session '", id, "': the record of its id is damaged"));
  return uid;
}

absl::StatusOr<StoredSession> RedisStoreImpl::Find(std::string_view id) {
  std::string before;
  for (;;) {
    ASSIGN_OR_RETURN(const RedisReply name, client_->Run(RedisCommand{"GET", keys_.Name(id)}, Effect::kRead));
    if (name.is_nil() || name.text == before) {
      return absl::NotFoundError(StrCat("session '", id, "' does not exist"));
    }
    const auto uid = ParseName(id, name.text);
    if (!uid.ok()) return FindDamaged(id, uid.status());
    StoredSession out{{std::string(id), *uid}, std::string()};
    const std::vector<RedisCommand> read = {{"HGET", keys_.Meta(*uid), "id"}, {"GET", keys_.Header(out.key)}};
    ASSIGN_OR_RETURN(const std::vector<RedisReply> replies, client_->Run(read, Effect::kRead));
    for (const RedisReply& reply : replies) RETURN_IF_ERROR(client_->StatusOf(reply));
    if (replies[0].text == id) {
      out.header = Payload(RecordType::kSession, keys_.Header(out.key), replies[1].text, id, "its header");
      return out;
    }
    before = name.text;  // gone; perhaps made anew in between
  }
}

// It can still be removed: the index knows the uid.
absl::StatusOr<StoredSession> RedisStoreImpl::FindDamaged(std::string_view id, const absl::Status& damage) {
  StoredSession out{{std::string(id), 0}, damage};
  const std::string from = StrCat("[", id, std::string(1, '\0')), to = StrCat("(", id, std::string(1, '\x01'));
  ASSIGN_OR_RETURN(const RedisReply members,
                   client_->Run(RedisCommand{"ZRANGEBYLEX", keys_.IndexOf(id), from, to}, Effect::kRead));
  for (const RedisReply& member : members.elements) {
    if (const auto key = RedisKeys::ParseMember(member.text)) out.key = *key;
  }
  return out;
}

absl::StatusOr<std::vector<SessionKey>> RedisStoreImpl::ReadIndex(std::string_view after, bool inclusive,
                                                                  size_t limit) {
  // Members are an id, a NUL and a uid; \x01 is beyond all of an id's.
  const std::string from = after.empty() ? "-" : StrCat("[", after, std::string(1, inclusive ? '\0' : '\x01'));
  std::vector<RedisCommand> commands;
  for (uint64_t shard = 0; shard < kIndexShards; ++shard) {
    commands.push_back({"ZRANGEBYLEX", keys_.Index(shard), from, "+", "LIMIT", "0", std::to_string(limit)});
  }
  ASSIGN_OR_RETURN(const std::vector<RedisReply> replies, client_->Run(commands, Effect::kRead));
  std::vector<std::string> members;
  for (const RedisReply& reply : replies) {
    RETURN_IF_ERROR(client_->StatusOf(reply));
    for (const RedisReply& member : reply.elements) members.push_back(member.text);
  }
  std::sort(members.begin(), members.end());
  if (members.size() > limit) members.resize(limit);
  std::vector<SessionKey> out;
  for (const std::string& member : members) {
    if (auto key = RedisKeys::ParseMember(member)) out.push_back(*std::move(key));
  }
  return out;
}

absl::StatusOr<std::vector<StoredSession>> RedisStoreImpl::List(std::string_view after, size_t limit) {
  std::vector<StoredSession> out;
  std::string from(after);
  while (out.size() < limit) {
    const size_t wanted = limit - out.size();
    ASSIGN_OR_RETURN(const std::vector<SessionKey> keys, ReadIndex(from, false, wanted));
    std::vector<RedisCommand> commands;
    for (const SessionKey& key : keys) {
      commands.push_back({"GET", keys_.Name(key.id)});
      commands.push_back({"HGET", keys_.Meta(key.uid), "id"});
      commands.push_back({"GET", keys_.Header(key)});
    }
    ASSIGN_OR_RETURN(const std::vector<RedisReply> replies, client_->Run(commands, Effect::kRead));
    for (const RedisReply& reply : replies) RETURN_IF_ERROR(client_->StatusOf(reply));
    for (size_t i = 0; i < keys.size(); ++i) {
      const RedisReply &name = replies[3 * i], &id = replies[3 * i + 1], &header = replies[3 * i + 2];
      // Not claimed yet, or on its way out.
      if (name.is_nil() || id.text != keys[i].id) continue;
      StoredSession session{keys[i], std::string()};
      const auto uid = ParseName(keys[i].id, name.text);
      if (uid.ok() && *uid != keys[i].uid) continue;
      session.header = uid.ok()
                           ? Payload(RecordType::kSession, keys_.Header(keys[i]), header.text, keys[i].id, "its header")
                           : uid.status();
      out.push_back(std::move(session));
    }
    if (keys.size() < wanted) break;
    from = keys.back().id;
  }
  return out;
}

absl::StatusOr<int64_t> RedisStoreImpl::Count() {
  std::vector<RedisCommand> commands;
  for (uint64_t shard = 0; shard < kIndexShards; ++shard) commands.push_back({"ZCARD", keys_.Index(shard)});
  ASSIGN_OR_RETURN(const std::vector<RedisReply> replies, client_->Run(commands, Effect::kRead));
  int64_t out = 0;
  for (const RedisReply& reply : replies) {
    RETURN_IF_ERROR(client_->StatusOf(reply));
    out += reply.number;
  }
  return out;
}

absl::StatusOr<RedisStoreImpl::Segment> RedisStoreImpl::ToSegment(const SessionKey& key, int64_t branch,
                                                                  const RedisReply& start,
                                                                  const RedisReply& bytes) const {
  Segment out;
  out.start = ToInt(start.text);
  out.record_bytes = bytes.text.size();
  ASSIGN_OR_RETURN(const std::string ids, Payload(RecordType::kLog, keys_.Segment(key.uid, branch, out.start),
                                                  bytes.text, key.id, StrCat("the log after position ", out.start)));
  out.ids.resize(ids.size() / 4);
  std::memcpy(out.ids.data(), ids.data(), out.ids.size() * 4);
  return out;
}

RedisCommand RedisStoreImpl::TailCommand(const SessionKey& key, int64_t branch, int most_segments,
                                         size_t most_bytes) const {
  return client_->Script(RedisScript::kTail, {keys_.Meta(key.uid), keys_.Ends(key.uid)},
                         {std::to_string(branch), std::to_string(most_segments), std::to_string(most_bytes)});
}

absl::StatusOr<RedisStoreImpl::Tail> RedisStoreImpl::ToTail(const SessionKey& key, int64_t branch,
                                                            const RedisReply& reply) const {
  Tail out;
  if (reply.elements.empty() || reply.elements[0].is_nil()) return out;
  out.end = ToInt(reply.elements[0].text);
  for (size_t i = 1; i + 1 < reply.elements.size(); i += 2) {
    ASSIGN_OR_RETURN(Segment segment, ToSegment(key, branch, reply.elements[i], reply.elements[i + 1]));
    out.segments.push_back(std::move(segment));
  }
  if (out.segments.empty() || out.segments[0].end() != *out.end) {
    return absl::DataLossError(
        StrCat("session '", key.id, "': the log's last segment does not reach its end at position ", *out.end));
  }
  return out;
}

absl::StatusOr<int64_t> RedisStoreImpl::LogEnd(const SessionKey& key, int64_t branch) {
  ASSIGN_OR_RETURN(const RedisReply reply, client_->Run(TailCommand(key, branch, 1, 0), Effect::kRead));
  ASSIGN_OR_RETURN(const Tail tail, ToTail(key, branch, reply));
  return tail.end.value_or(0);
}

absl::StatusOr<std::vector<int32_t>> RedisStoreImpl::ReadLog(const SessionKey& key, int64_t branch, int64_t first,
                                                             int64_t last) {
  std::vector<int32_t> out;
  if (first < 1 || last < first) return out;
  int64_t next = first;  // the position wanted next
  bool more = true;
  while (more && next <= last) {
    ASSIGN_OR_RETURN(const RedisReply reply,
                     client_->Run(client_->Script(RedisScript::kReadLog, {keys_.Meta(key.uid)},
                                                  {std::to_string(branch), std::to_string(next), std::to_string(last),
                                                   std::to_string(kSegmentsPerRead)}),
                                  Effect::kRead));
    more = false;
    for (size_t i = 0; i + 1 < reply.elements.size() && next <= last; i += 2) {
      ASSIGN_OR_RETURN(const Segment s, ToSegment(key, branch, reply.elements[i], reply.elements[i + 1]));
      more = s.start < next && s.end() >= next;
      if (!more) break;
      const int64_t take = std::min(s.end(), last) - next + 1;
      const auto from = s.ids.begin() + (next - 1 - s.start);
      out.insert(out.end(), from, from + take);
      next += take;
    }
  }
  if (next <= last) {
    return absl::DataLossError(
        StrCat("session '", key.id, "': the log has no id at position ", next, ", which was asked for up to ", last));
  }
  return out;
}

absl::StatusOr<std::string> RedisStoreImpl::GetRequest(const SessionKey& key, std::string_view request_id) {
  ASSIGN_OR_RETURN(const RedisReply reply,
                   client_->Run(RedisCommand{"HGET", keys_.Requests(key.uid), std::string(request_id)}, Effect::kRead));
  const std::string what = StrCat("request '", request_id, "'");
  if (reply.is_nil()) return absl::NotFoundError(StrCat("session '", key.id, "' has no ", what));
  return Payload(RecordType::kRequest, keys_.Request(key.uid, request_id), reply.text, key.id, what);
}

absl::StatusOr<std::string> RedisStoreImpl::GetRemoval(std::string_view id, std::string_view request_id) {
  const std::string key = keys_.Removal(id, request_id);
  ASSIGN_OR_RETURN(const RedisReply reply, client_->Run(RedisCommand{"GET", key}, Effect::kRead));
  const std::string what = StrCat("removal by request '", request_id, "'");
  if (reply.is_nil()) return absl::NotFoundError(StrCat("session '", id, "' has no ", what));
  return Payload(RecordType::kRequest, key, reply.text, std::string(id), what);
}

// A cursor is the id of the session, a NUL, and the request id that was last.
absl::StatusOr<std::vector<StoredRequest>> RedisStoreImpl::ListRequests(std::string* cursor, size_t limit) {
  std::vector<StoredRequest> out;
  if (limit == 0) return out;
  while (out.size() < limit) {
    const size_t nul = std::min(cursor->find('\0'), cursor->size());
    const std::string id = cursor->substr(0, nul);
    const std::string after = nul < cursor->size() ? cursor->substr(nul + 1) : "";
    ASSIGN_OR_RETURN(const std::vector<SessionKey> keys, ReadIndex(id, true, limit));
    std::vector<RedisCommand> commands;
    for (const SessionKey& key : keys) commands.push_back({"HKEYS", keys_.Requests(key.uid)});
    ASSIGN_OR_RETURN(std::vector<RedisReply> replies, client_->Run(commands, Effect::kRead));

    std::vector<std::pair<const SessionKey*, std::string>> wanted;
    commands.clear();
    const SessionKey* seen_last = nullptr;
    for (size_t i = 0; i < keys.size() && wanted.size() < limit - out.size(); ++i) {
      RETURN_IF_ERROR(client_->StatusOf(replies[i]));
      std::vector<std::string> ids;
      for (const RedisReply& field : replies[i].elements) {
        if (keys[i].id != id || nul == cursor->size() || field.text > after) ids.push_back(field.text);
      }
      std::sort(ids.begin(), ids.end());
      for (std::string& request_id : ids) {
        if (wanted.size() == limit - out.size()) break;
        commands.push_back({"HGET", keys_.Requests(keys[i].uid), request_id});
        wanted.emplace_back(&keys[i], std::move(request_id));
      }
      seen_last = &keys[i];
    }
    ASSIGN_OR_RETURN(replies, client_->Run(commands, Effect::kRead));
    for (size_t i = 0; i < wanted.size(); ++i) {
      RETURN_IF_ERROR(client_->StatusOf(replies[i]));
      if (replies[i].is_nil()) continue;
      const auto& [key, request_id] = wanted[i];
      out.push_back({key->uid, request_id,
                     Payload(RecordType::kRequest, keys_.Request(key->uid, request_id), replies[i].text, key->id,
                             StrCat("request '", request_id, "'"))});
    }
    if (out.size() >= limit) {
      *cursor = StrCat(wanted.back().first->id, std::string(1, '\0'), wanted.back().second);
      return out;
    }
    if (keys.size() < limit) break;
    // Beyond all of the last session's requests.
    *cursor = StrCat(seen_last->id, std::string(1, '\0'), "\xff\xff");
  }
  cursor->clear();
  return out;
}

absl::Status RedisStoreImpl::RemoveRequests(std::span<const StoredRequest> requests) {
  std::vector<RedisCommand> commands;
  for (const StoredRequest& r : requests) {
    if (!r.record.ok()) continue;
    commands.push_back(client_->Script(RedisScript::kDropRequest, {keys_.Requests(r.uid)},
                                       {r.request_id, SealRecord(RecordType::kRequest, kRedisRecordVersion,
                                                                 keys_.Request(r.uid, r.request_id), *r.record)}));
  }
  ASSIGN_OR_RETURN(const std::vector<RedisReply> replies, client_->Run(commands, Effect::kWrite));
  for (const RedisReply& reply : replies) RETURN_IF_ERROR(client_->StatusOf(reply));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SnapshotName>> RedisStoreImpl::ListSnapshots(const SessionKey& key) {
  ASSIGN_OR_RETURN(const RedisReply reply,
                   client_->Run(RedisCommand{"SMEMBERS", keys_.Snapshots(key.uid)}, Effect::kRead));
  std::vector<SnapshotName> out;
  for (const RedisReply& member : reply.elements) {
    char* end = nullptr;
    const int64_t branch = std::strtoll(member.text.c_str(), &end, 10);
    if (*end == ':') out.push_back({branch, ToInt(std::string(end + 1))});
  }
  std::sort(out.begin(), out.end(), [](const SnapshotName& a, const SnapshotName& b) {
    return std::pair(a.branch, a.position) > std::pair(b.branch, b.position);
  });
  return out;
}

absl::StatusOr<std::string> RedisStoreImpl::GetSnapshot(const SessionKey& key, const SnapshotName& name) {
  const std::string redis_key = keys_.Snapshot(key.uid, name);
  ASSIGN_OR_RETURN(const RedisReply reply, client_->Run(RedisCommand{"GET", redis_key}, Effect::kRead));
  if (reply.is_nil()) {
    return absl::NotFoundError(StrCat("session '", key.id, "' has no snapshot at position ", name.position));
  }
  return Payload(RecordType::kSnapshot, redis_key, reply.text, key.id, StrCat("snapshot at position ", name.position));
}

}  // namespace smt::store_internal
