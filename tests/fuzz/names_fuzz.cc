// Names and tokens that clients send: ids, page tokens, keys of states.
#include "server/session/session_manager_impl.h"
#include "server/session/session_record.h"
#include "tests/fuzz/fuzz_target.h"

namespace smt::fuzz {
namespace {

void Run(std::string_view bytes) {
  const absl::Status id = CheckSessionId(bytes), request_id = CheckRequestId(bytes);
  FUZZ_CHECK(id.ok() || absl::IsInvalidArgument(id));
  FUZZ_CHECK(request_id.ok() || absl::IsInvalidArgument(request_id));
  FUZZ_CHECK(!id.ok() || request_id.ok());

  const auto key = ParseSessionStateKey(bytes);
  if (key.ok()) {
    const std::string written = SessionStateKey(key->key, key->branch);
    const auto again = ParseSessionStateKey(written);
    FUZZ_CHECK(again.ok() && again->key == key->key && again->branch == key->branch);
  }
  if (id.ok()) {
    const SessionKey session{std::string(bytes), Xxh3(bytes) >> 1};
    const auto back = ParseSessionStateKey(SessionStateKey(session, static_cast<int64_t>(bytes.size())));
    FUZZ_CHECK(back.ok() && back->key == session && back->branch == static_cast<int64_t>(bytes.size()));
  }

  const auto token = ParsePageToken(std::string(bytes), "List");
  if (token.ok() && !token->empty()) {
    const auto again = ParsePageToken(MakePageToken(*token), "List");
    FUZZ_CHECK(again.ok() && *again == *token);
  }
  if (!bytes.empty()) {
    const auto made = ParsePageToken(MakePageToken(bytes), "List");
    FUZZ_CHECK(made.ok() && *made == bytes);
  }
}

std::vector<std::string> Seeds() {
  return {"session-1", MakePageToken("session-1"), SessionStateKey({"session-1", 0x1234567890abcdef}, 3)};
}

}  // namespace

extern const FuzzTarget names_target;
const FuzzTarget names_target = {"names", Run, Seeds};

}  // namespace smt::fuzz
