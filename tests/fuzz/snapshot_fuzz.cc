// Snapshots. A digest stands before the state; so that inputs get past it, each is also tried with the digest that its
// state has.
#include <cstring>

#include "server/session/session_record.h"
#include "server/store/record_format.h"
#include "tests/fuzz/fuzz_target.h"

namespace smt::fuzz {
namespace {

void Decode(std::string_view bytes) {
  const auto snapshot = DecodeSnapshot(bytes);
  if (!snapshot.ok()) {
    FUZZ_CHECK(absl::IsDataLoss(snapshot.status()));
    return;
  }
  FUZZ_CHECK(snapshot->position >= 0 && snapshot->state != nullptr && snapshot->state->size() <= bytes.size());
  FUZZ_CHECK(EncodeSnapshot(*snapshot) == bytes);
}

void Run(std::string_view bytes) {
  Decode(bytes);
  RecordReader r(bytes);
  r.I64();
  r.I64();
  const size_t strings = r.Str().size() + r.Str().size();
  const size_t digest = 16 + 8 + strings;
  r.U64();
  const std::string_view state = r.Raw(r.U64());
  if (!r.done()) return;
  std::string repaired(bytes);
  const uint64_t right = Xxh3(state);
  std::memcpy(repaired.data() + digest, &right, 8);
  Decode(repaired);
}

std::vector<std::string> Seeds() {
  SnapshotRecord empty;
  empty.state = std::make_shared<StateBuffer>(0);
  SnapshotRecord full;
  full.branch = 1;
  full.position = 100;
  full.model_fingerprint = "model";
  full.numerics_id = "cpu/avx2/float32/deterministic";
  auto state = std::make_shared<StateBuffer>(96);
  std::memset(state->span().data(), 7, 96);
  full.state = state;
  return {EncodeSnapshot(empty), EncodeSnapshot(full)};
}

}  // namespace

extern const FuzzTarget snapshot_target;
const FuzzTarget snapshot_target = {"snapshot", Run, Seeds};

}  // namespace smt::fuzz
