#include "server/session/session_record.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"

#include "absl/strings/str_format.h"

#include "model/base/strings.h"
#include "server/store/record_format.h"

namespace smt {
namespace {

constexpr int64_t kInfinite = INT64_MAX;
constexpr size_t kMaxLabels = 64, kMaxLabelBytes = 256, kMaxRequestIdBytes = 128;

// Nanoseconds since 1970; INT64_MAX is the infinite future.
void PutTime(RecordWriter* w, absl::Time t) { w->I64(t == absl::InfiniteFuture() ? kInfinite : absl::ToUnixNanos(t)); }
absl::Time GetTime(RecordReader* r) {
  const int64_t v = r->I64();
  return v == kInfinite ? absl::InfiniteFuture() : absl::FromUnixNanos(v);
}

absl::Status Malformed(std::string_view what) {
  return absl::DataLossError(StrCat("the ", what, " record's fields do not fit its length"));
}

void PutKey(RecordWriter* w, const SessionKey& key) {
  w->Str(key.id);
  w->U64(key.uid);
}
SessionKey GetKey(RecordReader* r) {
  SessionKey key;
  key.id = r->Str();
  key.uid = r->U64();
  return key;
}

void PutLineage(RecordWriter* w, const Lineage& lineage) {
  w->U32(static_cast<uint32_t>(lineage.log.size()));
  for (const LogPiece& piece : lineage.log) {
    PutKey(w, piece.owner);
    w->I64(piece.branch);
    w->I64(piece.last);
  }
  w->U32(static_cast<uint32_t>(lineage.states.size()));
  for (const StateName& state : lineage.states) {
    PutKey(w, state.owner);
    w->I64(state.branch);
    w->I64(state.position);
  }
}
Lineage GetLineage(RecordReader* r) {
  Lineage out;
  const uint32_t pieces = r->U32();
  for (uint32_t i = 0; i < pieces && r->ok(); ++i) {
    LogPiece& piece = out.log.emplace_back();
    piece.owner = GetKey(r);
    piece.branch = r->I64();
    piece.last = r->I64();
  }
  const uint32_t states = r->U32();
  for (uint32_t i = 0; i < states && r->ok(); ++i) {
    StateName& state = out.states.emplace_back();
    state.owner = GetKey(r);
    state.branch = r->I64();
    state.position = r->I64();
  }
  return out;
}

void PutCheckpoint(RecordWriter* w, const StoredCheckpoint& c) {
  w->Str(c.info.id);
  w->I64(c.info.position);
  w->I64(c.info.branch);
  w->U8(c.info.automatic);
  w->Str(c.info.request_id);
  PutTime(w, c.info.create_time);
  w->U8(c.lineage.has_value());
  if (c.lineage) PutLineage(w, *c.lineage);
}
StoredCheckpoint GetCheckpoint(RecordReader* r) {
  StoredCheckpoint c;
  c.info.id = r->Str();
  c.info.position = r->I64();
  c.info.branch = r->I64();
  c.info.automatic = r->U8() != 0;
  c.info.request_id = r->Str();
  c.info.create_time = GetTime(r);
  if (r->U8() != 0) c.lineage = GetLineage(r);
  return c;
}

std::string Printable(std::string_view value) {
  return absl::CHexEscape(value.size() <= 64 ? std::string(value) : StrCat(value.substr(0, 61), "..."));
}

}  // namespace

std::string EncodeHeader(const SessionHeader& h) {
  RecordWriter w;
  w.U64(h.revision);
  w.I64(h.branch);
  w.I64(h.position);
  w.I64(h.durable_position);
  w.U8(h.turn_open);
  w.Str(h.open_request_id);
  w.Str(h.model_fingerprint);
  PutTime(&w, h.create_time);
  PutTime(&w, h.update_time);
  PutTime(&w, h.expire_time);
  w.I64(h.ttl == absl::InfiniteDuration() ? kInfinite : absl::ToInt64Nanoseconds(h.ttl));
  w.U32(static_cast<uint32_t>(h.labels.size()));
  for (const auto& [key, value] : h.labels) {
    w.Str(key);
    w.Str(value);
  }
  PutLineage(&w, h.before);
  w.U32(static_cast<uint32_t>(h.checkpoints.size()));
  for (const StoredCheckpoint& c : h.checkpoints) PutCheckpoint(&w, c);
  return w.Take();
}

absl::StatusOr<SessionHeader> DecodeHeader(std::string_view payload) {
  RecordReader r(payload);
  SessionHeader h;
  h.revision = r.U64();
  h.branch = r.I64();
  h.position = r.I64();
  h.durable_position = r.I64();
  h.turn_open = r.U8() != 0;
  h.open_request_id = r.Str();
  h.model_fingerprint = r.Str();
  h.create_time = GetTime(&r);
  h.update_time = GetTime(&r);
  h.expire_time = GetTime(&r);
  const int64_t ttl = r.I64();
  h.ttl = ttl == kInfinite ? absl::InfiniteDuration() : absl::Nanoseconds(ttl);
  const uint32_t labels = r.U32();
  for (uint32_t i = 0; i < labels && r.ok(); ++i) {
    std::string key(r.Str());
    h.labels[std::move(key)] = std::string(r.Str());
  }
  if (!r.done()) {  // the first version ended here
    h.before = GetLineage(&r);
    const uint32_t checkpoints = r.U32();
    for (uint32_t i = 0; i < checkpoints && r.ok(); ++i) h.checkpoints.push_back(GetCheckpoint(&r));
  }
  if (!r.done() || h.branch < 0 || h.position < h.before.end()) return Malformed("session");
  return h;
}

std::string EncodeRequest(const RequestRecord& q) {
  RecordWriter w;
  w.Str(q.request_id);
  w.Str(q.semantic_hash);
  w.Str(q.params);
  w.U8(static_cast<uint8_t>(q.state));
  w.I64(q.branch);
  w.I64(q.start_position);
  w.I64(q.prompt_tokens);
  w.I64(q.end_position);
  w.U64(q.seed);
  w.U8(static_cast<uint8_t>(q.durability));
  w.Str(q.outcome);
  PutTime(&w, q.create_time);
  PutTime(&w, q.end_time);
  return w.Take();
}

absl::StatusOr<RequestRecord> DecodeRequest(std::string_view payload) {
  RecordReader r(payload);
  RequestRecord q;
  q.request_id = r.Str();
  q.semantic_hash = r.Str();
  q.params = r.Str();
  const uint8_t state = r.U8();
  q.branch = r.I64();
  q.start_position = r.I64();
  q.prompt_tokens = r.I64();
  q.end_position = r.I64();
  q.seed = r.U64();
  const uint8_t durability = r.U8();
  q.outcome = r.Str();
  q.create_time = GetTime(&r);
  q.end_time = GetTime(&r);
  if (!r.done() || state > static_cast<uint8_t>(RequestState::kOperation) ||
      durability > static_cast<uint8_t>(Durability::kToken)) {
    return Malformed("request");
  }
  q.state = static_cast<RequestState>(state);
  q.durability = static_cast<Durability>(durability);
  return q;
}

std::string EncodeSnapshot(const SnapshotRecord& s) {
  const auto bytes = s.state->span();
  const std::string_view view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  RecordWriter w;
  w.I64(s.branch);
  w.I64(s.position);
  w.Str(s.model_fingerprint);
  w.Str(s.numerics_id);
  w.U64(Xxh3(view));
  w.U64(view.size());
  w.Raw(view);
  return w.Take();
}

absl::StatusOr<SnapshotRecord> DecodeSnapshot(std::string_view payload) {
  RecordReader r(payload);
  SnapshotRecord s;
  s.branch = r.I64();
  s.position = r.I64();
  s.model_fingerprint = r.Str();
  s.numerics_id = r.Str();
  s.digest = r.U64();
  const std::string_view bytes = r.Raw(r.U64());
  if (!r.done() || s.position < 0) return Malformed("snapshot");
  if (Xxh3(bytes) != s.digest) return absl::DataLossError("the snapshot's state does not match its digest");
  auto state = std::make_shared<StateBuffer>(bytes.size());
  std::memcpy(state->span().data(), bytes.data(), bytes.size());
  s.state = std::move(state);
  return s;
}

absl::Status CheckSessionId(std::string_view id) {
  const auto alnum = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  const auto allowed = [&](char c) { return alnum(c) || c == '-' || c == '_' || c == '.'; };
  if (!id.empty() && id.size() <= 63 && alnum(id[0]) && std::all_of(id.begin(), id.end(), allowed)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      StrCat("session id \"", Printable(id),
             "\" is not allowed: 1 to 63 characters of a-z, 0-9, '-', '_' and '.', the first a letter or digit"));
}

absl::Status CheckRequestId(std::string_view id) {
  const auto allowed = [](char c) { return c > ' ' && c < 0x7f; };
  if (id.size() <= kMaxRequestIdBytes && std::all_of(id.begin(), id.end(), allowed)) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat("request_id \"", Printable(id), "\" is not allowed: at most ",
                                           kMaxRequestIdBytes, " printable ASCII characters without spaces"));
}

absl::Status CheckTtl(absl::Duration ttl) {
  // 100 years keeps times far from the ends of int64 nanoseconds.
  if (ttl == absl::InfiniteDuration() || (ttl > absl::ZeroDuration() && ttl <= absl::Hours(24 * 365 * 100))) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      StrCat("ttl ", absl::FormatDuration(ttl), " is not allowed: more than 0 and at most 100 years, or unset"));
}

absl::Status CheckLabels(const std::map<std::string, std::string>& labels) {
  if (labels.size() > kMaxLabels) {
    return absl::InvalidArgumentError(
        StrCat("labels has ", labels.size(), " entries, at most ", kMaxLabels, " are allowed"));
  }
  for (const auto& [key, value] : labels) {
    if (key.empty() || key.size() > kMaxLabelBytes || value.size() > kMaxLabelBytes) {
      return absl::InvalidArgumentError(StrCat("label \"", Printable(key), "\" is not allowed: a key has 1 to ",
                                               kMaxLabelBytes, " bytes and a value at most ", kMaxLabelBytes));
    }
  }
  return absl::OkStatus();
}

std::string Etag(uint64_t uid, const SessionHeader& header) {
  return absl::StrFormat("%x-%x", uid & 0xffffffff, header.revision);
}

std::string SessionStateKey(const SessionKey& key, int64_t branch) {
  return absl::StrFormat("%s@%016x/%d", key.id, key.uid, branch);
}

absl::StatusOr<ParsedStateKey> ParseSessionStateKey(std::string_view state_key) {
  ParsedStateKey out;
  const size_t at = state_key.find('@'), slash = state_key.find('/');
  if (at != std::string_view::npos && slash == at + 17 &&
      absl::SimpleAtoi(std::string(state_key.substr(slash + 1)), &out.branch) &&
      absl::SimpleHexAtoi(std::string(state_key.substr(at + 1, 16)), &out.key.uid)) {
    out.key.id = std::string(state_key.substr(0, at));
    return out;
  }
  return absl::InvalidArgumentError(StrCat("\"", Printable(state_key), "\" is not a session's key"));
}

void AddCheckpoint(SessionHeader* header, StoredCheckpoint checkpoint) {
  const auto order = [](const StoredCheckpoint& a, const StoredCheckpoint& b) {
    return std::tie(a.info.position, a.info.branch, a.info.id) < std::tie(b.info.position, b.info.branch, b.info.id);
  };
  auto& all = header->checkpoints;
  all.insert(std::upper_bound(all.begin(), all.end(), checkpoint, order), std::move(checkpoint));
}

const StoredCheckpoint* FindCheckpoint(const SessionHeader& header, std::string_view id) {
  for (const StoredCheckpoint& c : header.checkpoints) {
    if (c.info.id == id) return &c;
  }
  return nullptr;
}

BranchView ViewOf(const SessionKey& key, const SessionHeader& header) { return {key, header.branch, header.before}; }

std::vector<StoreReference> ReferencesOf(const SessionKey& key, const SessionHeader& header) {
  std::vector<StoreReference> out;
  AddReferences(key.uid, header.before, &out);
  for (const StoredCheckpoint& c : header.checkpoints) {
    if (c.lineage) AddReferences(key.uid, *c.lineage, &out);
  }
  return out;
}

std::vector<SnapshotName> SuperfluousSnapshots(const SessionKey& key, const SessionHeader& header, int64_t position,
                                               std::span<const SnapshotName> present) {
  std::vector<int64_t> own = {position};  // of the branch, newest first
  std::set<std::pair<int64_t, int64_t>> keep = {{header.branch, position}};
  for (const SnapshotName& name : present) {
    if (name.branch == header.branch && name.position != position) own.push_back(name.position);
  }
  std::sort(own.rbegin(), own.rend());
  for (size_t i = 0; i < own.size() && i < 2; ++i) keep.emplace(header.branch, own[i]);
  const auto keep_states = [&](const Lineage& lineage) {
    for (const StateName& state : lineage.states) {
      if (state.owner.uid == key.uid) keep.emplace(state.branch, state.position);
    }
  };
  keep_states(header.before);
  for (const StoredCheckpoint& c : header.checkpoints) {
    if (c.lineage) {
      keep_states(*c.lineage);
      continue;
    }
    const auto newest = std::find_if(own.begin(), own.end(), [&](int64_t p) { return p <= c.info.position; });
    if (newest != own.end()) keep.emplace(header.branch, *newest);
  }
  std::vector<SnapshotName> out;
  for (const SnapshotName& name : present) {
    if (keep.count({name.branch, name.position}) == 0) out.push_back(name);
  }
  return out;
}

SessionInfo MakeInfo(const SessionKey& key, const SessionHeader& h) {
  SessionInfo info;
  info.id = key.id;
  info.position = h.position;
  info.branch = h.branch;
  info.create_time = h.create_time;
  info.update_time = h.update_time;
  info.expire_time = h.expire_time;
  info.ttl = h.ttl;
  info.labels = h.labels;
  info.etag = Etag(key.uid, h);
  info.model_fingerprint = h.model_fingerprint;
  info.key = SessionStateKey(key, h.branch);
  return info;
}

}  // namespace smt
