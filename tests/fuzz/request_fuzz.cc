// Records of requests: decoded or refused; what was decoded is encoded to the same bytes again.
#include "server/session/session_record.h"
#include "tests/fuzz/fuzz_target.h"

namespace smt::fuzz {
namespace {

void Run(std::string_view bytes) {
  const auto record = DecodeRequest(bytes);
  if (!record.ok()) {
    FUZZ_CHECK(absl::IsDataLoss(record.status()));
    return;
  }
  FUZZ_CHECK(EncodeRequest(*record) == bytes);
}

std::vector<std::string> Seeds() {
  RequestRecord plain;
  RequestRecord full;
  full.request_id = "r1";
  full.semantic_hash = "12345678";
  full.params = std::string("\x0a\x03\x08\x01\x00", 5);
  full.state = RequestState::kInterrupted;
  full.branch = 1;
  full.start_position = 10;
  full.prompt_tokens = 20;
  full.end_position = 40;
  full.seed = 7;
  full.durability = Durability::kToken;
  full.outcome = "outcome";
  full.create_time = absl::FromUnixSeconds(1'700'000'000);
  full.end_time = absl::InfiniteFuture();
  return {EncodeRequest(plain), EncodeRequest(full)};
}

}  // namespace

extern const FuzzTarget request_target;
const FuzzTarget request_target = {"request", Run, Seeds};

}  // namespace smt::fuzz
