// Headers of sessions: decoded or refused; what was decoded is encoded and decoded to the same again.
#include "server/session/session_record.h"
#include "tests/fuzz/fuzz_target.h"

namespace smt::fuzz {
namespace {

void Run(std::string_view bytes) {
  const auto header = DecodeHeader(bytes);
  if (!header.ok()) {
    FUZZ_CHECK(absl::IsDataLoss(header.status()));
    return;
  }
  const std::string encoded = EncodeHeader(*header);
  const auto again = DecodeHeader(encoded);
  FUZZ_CHECK(again.ok());
  FUZZ_CHECK(EncodeHeader(*again) == encoded);
  FUZZ_CHECK(again->labels == header->labels && again->before == header->before && again->ttl == header->ttl &&
             again->expire_time == header->expire_time && again->checkpoints.size() == header->checkpoints.size());

  // What is made of one.
  const SessionKey key{"a", 1};
  const SessionInfo info = MakeInfo(key, *header);
  FUZZ_CHECK(info.position == header->position && !info.etag.empty());
  const auto references = ReferencesOf(key, *header);
  std::vector<SnapshotName> present;
  for (int64_t i = 0; i < 4; ++i) present.push_back({header->branch, header->position - i});
  FUZZ_CHECK(SuperfluousSnapshots(key, *header, header->position, present).size() <= present.size());
  const Lineage cut = CutLineage(ViewOf(key, *header), present, header->position);
  FUZZ_CHECK(cut.end() >= header->before.end() || header->before.end() > header->position);
}

std::vector<std::string> Seeds() {
  SessionHeader plain;
  plain.revision = 1;
  SessionHeader full = plain;
  full.branch = 2;
  full.position = full.durable_position = 9000;
  full.turn_open = true;
  full.open_request_id = "r1";
  full.model_fingerprint = "0123456789abcdef";
  full.create_time = full.update_time = absl::FromUnixSeconds(1'700'000'000);
  full.ttl = absl::Hours(1);
  full.expire_time = full.update_time + full.ttl;
  full.labels = {{"a", "1"}, {"b", ""}};
  full.before.log = {{{"parent", 7}, 0, 5000}, {{"self", 8}, 1, 8000}};
  full.before.states = {{{"parent", 7}, 0, 4096}, {{"self", 8}, 1, 7000}};
  AddCheckpoint(&full,
                {{.id = "turn-2-8500", .position = 8500, .branch = 2, .automatic = true, .request_id = "r1"}, {}});
  AddCheckpoint(&full, {{.id = "mark", .position = 100, .branch = 0}, Lineage{{{{"parent", 7}, 0, 100}}, {}}});
  std::string first_version = EncodeHeader(plain);  // which had neither lineage nor checkpoints
  first_version.resize(first_version.size() - 12);
  return {EncodeHeader(plain), EncodeHeader(full), std::move(first_version)};
}

}  // namespace

extern const FuzzTarget session_header_target;
const FuzzTarget session_header_target = {"session_header", Run, Seeds};

}  // namespace smt::fuzz
