// Names of a store's keys in Redis. docs/formats.md lists them. A session's keys hold its uid in braces: in a cluster
// they are in one place, as a script's keys must be.
#pragma once

#include <charconv>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "model/base/strings.h"
#include "server/store/lease_store.h"
#include "server/store/record_format.h"
#include "server/store/session_store.h"

namespace smt::store_internal {

inline constexpr uint16_t kRedisRecordVersion = 1;
inline constexpr uint64_t kIndexShards = 16;

inline std::string UidText(uint64_t uid) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out(16, '0');
  for (size_t i = 16; i-- > 0; uid >>= 4) out[i] = kDigits[uid & 15];
  return out;
}
inline std::optional<uint64_t> ParseUid(std::string_view text) {
  uint64_t uid = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), uid, 16);
  if (text.size() != 16 || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return uid;
}

class RedisKeys {
 public:
  explicit RedisKeys(std::string prefix) : prefix_(std::move(prefix)) {}

  std::string Format() const { return prefix_ + "format"; }
  std::string Writer(std::string_view instance) const { return StrCat(prefix_, "writer:", instance); }
  std::string Pending() const { return prefix_ + "pending"; }
  std::string Name(std::string_view id) const { return StrCat(prefix_, "name:", id); }
  std::string Removal(std::string_view id, std::string_view request_id) const {
    return StrCat(prefix_, "removed:", id, ":", request_id);
  }
  std::string Index(uint64_t shard) const { return StrCat(prefix_, "index:", shard); }
  std::string IndexOf(std::string_view id) const { return Index(Xxh3(id) % kIndexShards); }
  std::string Handovers(std::string_view owner) const { return StrCat(prefix_, "handover:", owner); }

  std::string Of(uint64_t uid, std::string_view what) const { return StrCat(prefix_, "{", UidText(uid), "}:", what); }
  std::string Meta(uint64_t uid) const { return Of(uid, "m"); }
  std::string Header(const SessionKey& key) const { return StrCat(Of(key.uid, "h:"), key.id); }
  std::string Lease(uint64_t uid) const { return Of(uid, "o"); }
  std::string Ends(uint64_t uid) const { return Of(uid, "e"); }
  std::string Requests(uint64_t uid) const { return Of(uid, "q"); }
  std::string References(uint64_t uid) const { return Of(uid, "f"); }
  std::string Referrers(uint64_t uid) const { return Of(uid, "r"); }
  std::string Snapshots(uint64_t uid) const { return Of(uid, "S"); }
  std::string Segment(uint64_t uid, int64_t branch, int64_t start) const {
    return StrCat(Of(uid, "l:"), branch, ":", start);
  }
  std::string Snapshot(uint64_t uid, const SnapshotName& name) const {
    return StrCat(Of(uid, "s:"), name.branch, ":", name.position);
  }
  // Of no key but of a field: what a request's checksum covers.
  std::string Request(uint64_t uid, std::string_view request_id) const { return StrCat(Of(uid, "q:"), request_id); }

  static std::string SnapshotField(const SnapshotName& name) { return StrCat(name.branch, ":", name.position); }
  // In an index and in `pending`: id, NUL, uid. Sorts as ids do.
  static std::string Member(const SessionKey& key) { return StrCat(key.id, std::string(1, '\0'), UidText(key.uid)); }
  static std::optional<SessionKey> ParseMember(std::string_view member) {
    if (member.size() < 17 || member[member.size() - 17] != '\0') return std::nullopt;
    const std::optional<uint64_t> uid = ParseUid(member.substr(member.size() - 16));
    if (!uid) return std::nullopt;
    return SessionKey{std::string(member.substr(0, member.size() - 17)), *uid};
  }
  // In a handover set: token, NUL, member, and NUL and "c" where its request is to be cancelled.
  static std::string Wanted(const WantedLease& wanted) {
    const std::string_view suffix = wanted.handover == Handover::kCancel ? kCancelSuffix : std::string_view();
    return StrCat(wanted.lease.token, std::string(1, '\0'), Member(wanted.lease.key), suffix);
  }
  static std::optional<WantedLease> ParseWanted(std::string_view member) {
    WantedLease out;
    if (member.ends_with(kCancelSuffix)) {
      out.handover = Handover::kCancel;
      member.remove_suffix(kCancelSuffix.size());
    }
    const size_t end = member.find('\0');
    if (end == std::string_view::npos) return std::nullopt;
    std::optional<SessionKey> key = ParseMember(member.substr(end + 1));
    if (!key) return std::nullopt;
    out.lease = {*std::move(key), std::string(member.substr(0, end))};
    return out;
  }
  std::string SealName(const SessionKey& key) const {
    RecordWriter payload;
    payload.U64(key.uid);
    return SealRecord(RecordType::kName, kRedisRecordVersion, Name(key.id), payload.Take());
  }

 private:
  static constexpr std::string_view kCancelSuffix{"\0c", 2};

  const std::string prefix_;
};

}  // namespace smt::store_internal
